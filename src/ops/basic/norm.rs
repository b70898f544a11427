//! Norms of rows, a row being the last dim or the last few: a head's values, or all heads' together.
//!
//! ```text
//! rms    x / sqrt(mean(x^2) + eps)                        RMSNorm, arXiv 1910.07467
//! layer  (x - mean(x)) / sqrt(var(x) + eps)               LayerNorm, arXiv 1607.06450; over a head: GroupNorm
//! l2     x / sqrt(sum(x^2) + eps)                         as flash-linear-attention normalises keys (eps 1e-6)
//! ```
//!
//! PyTorch's `normalize`, x / max(|x|, 1e-12), is l2 with eps 1e-24 to rounding.

use crate::Result;
use crate::ops::broadcast::affine;
use crate::ops::cpu::simd::{dot, simd, sum};
use crate::ops::cpu::{Output, Slice};
use crate::ops::operator::{Operator, apply1, misfit};
use crate::ops::tape::Var;
use candle_core::Tensor;
use rayon::prelude::*;

/// Elements of one task, roughly.
const BLOCK: usize = 1 << 14;

/// What is divided by what.
#[derive(Debug, Clone, Copy)]
struct Norm {
    /// Elements of a row.
    width: usize,
    centred: bool,
    /// The sum of squares is divided by this.
    divisor: f32,
    eps: f32,
}

impl Norm {
    /// Elements of one task: whole rows.
    fn task(self) -> usize {
        self.width * (BLOCK / self.width).max(1)
    }

    #[inline(always)]
    fn scale(self, x: &[f32]) -> f32 {
        1.0 / (dot(x, x) / self.divisor + self.eps).sqrt()
    }

    /// x, or x minus its mean in `buffer`.
    #[inline(always)]
    fn centre<'a>(self, x: &'a [f32], buffer: &'a mut [f32]) -> &'a [f32] {
        if !self.centred {
            return x;
        }
        let mean = sum(x) / self.width as f32;
        buffer.iter_mut().zip(x).for_each(|(y, x)| *y = x - mean);
        buffer
    }

    /// The norm, times a frozen weight as wide as a row.
    fn apply(self, x: &Var, weight: Option<&Tensor>) -> Result<Var> {
        match weight {
            Some(weight) => apply1(self, &[x, &weight.clone().into()]),
            None => apply1(self, &[x]),
        }
    }
}

impl Operator for Norm {
    type Kept = ();

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let rows = inputs[0].reshape(((), self.width))?;
        let mean = |x: &Tensor, divisor: f64| x.sum_keepdim(1)? / divisor;
        let rows = if self.centred { rows.broadcast_sub(&mean(&rows, self.width as f64)?)? } else { rows };
        let size = (mean(&rows.sqr()?, f64::from(self.divisor))? + f64::from(self.eps))?.sqrt()?;
        let y = rows.broadcast_div(&size)?;
        let y = if let Some(weight) = inputs.get(1) { y.broadcast_mul(weight)? } else { y };
        Ok(vec![y.reshape(inputs[0].shape())?])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, ())> {
        let (x, weight, width) = (&inputs[0], inputs.get(1), self.width);
        let (xs, ws) = (Slice::of(x)?, weight.map(Slice::of).transpose()?);
        let mut y = Output::unwritten(x.dims());
        y.data().par_chunks_mut(self.task()).zip(xs.par_chunks(self.task())).for_each(|(y, x)| {
            let mut buffer = vec![0.0; if self.centred { width } else { 0 }];
            simd(|| {
                for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let x = self.centre(x, &mut buffer);
                    let scale = self.scale(x);
                    match &ws {
                        Some(ws) => (0..width).for_each(|i| y[i] = x[i] * scale * ws[i]),
                        None => (0..width).for_each(|i| y[i] = x[i] * scale),
                    }
                }
            });
        });
        Ok((vec![y.tensor()?], ()))
    }

    /// With s the scale, g the gradient times the weight: dx = s (g - x s^2 (g.x) / divisor), x and g centred.
    fn backward_cpu(&self, inputs: &[Tensor], _: (), wanted: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        let (x, weight, g, width) = (&inputs[0], inputs.get(1), &up[0], self.width);
        let (xs, ws, gs) = (Slice::of(x)?, weight.map(Slice::of).transpose()?, Slice::of(g)?);
        let mut dx = Output::unwritten(x.dims());
        let inputs = xs.par_chunks(self.task()).zip(gs.par_chunks(self.task()));
        dx.data().par_chunks_mut(self.task()).zip(inputs).for_each(|(dx, (x, g))| {
            let mut buffer = vec![0.0; if self.centred { width } else { 0 }];
            simd(|| {
                for ((dx, x), g) in dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(g.chunks_exact(width)) {
                    let x = self.centre(x, &mut buffer);
                    let scale = self.scale(x);
                    match &ws {
                        Some(ws) => (0..width).for_each(|i| dx[i] = g[i] * ws[i]),
                        None => dx.copy_from_slice(g),
                    }
                    if self.centred {
                        let mean = sum(dx) / width as f32;
                        dx.iter_mut().for_each(|d| *d -= mean);
                    }
                    let along = dot(dx, x) * scale * scale / self.divisor;
                    for i in 0..width {
                        dx[i] = scale * (dx[i] - along * x[i]);
                    }
                }
            });
        });
        let mut gradients = vec![None; wanted.len()];
        gradients[0] = Some(dx.tensor()?);
        Ok(gradients)
    }
}

/// Elements of the last `dims` dims of x.
fn width(x: &Var, dims: usize) -> Result<usize> {
    let shape = x.value().dims();
    match shape.len().checked_sub(dims) {
        Some(lead) if dims > 0 => Ok(shape[lead..].iter().product::<usize>().max(1)),
        _ => misfit(format!("norm over {dims} dims of {shape:?}")),
    }
}

/// RMSNorm: `x` [.., D], frozen `weight` `[D]` -> [.., D].
pub fn rms_norm(x: &Var, weight: &Tensor, eps: f64) -> Result<Var> {
    let width = weight.dims1()?;
    if width == 0 || x.value().dims().last() != Some(&width) {
        return misfit(format!("rms norm: {:?} by weight [{width}]", x.value().dims()));
    }
    Norm { width, centred: false, divisor: width as f32, eps: eps as f32 }.apply(x, Some(weight))
}

/// The same times one plus the weight (Gemma).
pub fn rms_norm_plus_one(x: &Var, weight: &Tensor, eps: f64) -> Result<Var> {
    rms_norm(x, &(weight + 1.0)?, eps)
}

/// RMSNorm over the last `dims` dims, times `weight` spread as in [`crate::ops::broadcast`]: over `x` [B, T, H, V] each head by
/// itself (1) or the full width (2), with a weight `[V]`, [H, V] or none.
pub fn rms_norm_over(x: &Var, dims: usize, weight: Option<&Var>, eps: f64) -> Result<Var> {
    let width = width(x, dims)?;
    let y = Norm { width, centred: false, divisor: width as f32, eps: eps as f32 }.apply(x, None)?;
    affine(&y, weight, None)
}

/// LayerNorm over the last `dims` dims, then weight and bias as for [`rms_norm_over`]; over one head's values, with
/// [H, V], it is GroupNorm of H groups.
pub fn layer_norm(x: &Var, dims: usize, weight: Option<&Var>, bias: Option<&Var>, eps: f64) -> Result<Var> {
    let width = width(x, dims)?;
    let y = Norm { width, centred: true, divisor: width as f32, eps: eps as f32 }.apply(x, None)?;
    affine(&y, weight, bias)
}

/// x / sqrt(sum(x^2) + eps) over the last dim.
pub fn l2_norm(x: &Var, eps: f64) -> Result<Var> {
    Norm { width: width(x, 1)?, centred: false, divisor: 1.0, eps: eps as f32 }.apply(x, None)
}
