//! Sums, products by a constant, SwiGLU, mean squared error.

use crate::Result;
use crate::ops::cpu::simd::{sigmoid, simd};
use crate::ops::cpu::{Output, Slice, blocks, gradients_of};
use crate::ops::formulas;
use crate::ops::operator::{Operator, apply1, misfit};
use crate::ops::tape::Var;
use candle_core::Tensor;
use rayon::prelude::*;

const BLOCK: usize = 1 << 14;

/// x + y, equal shapes.
pub fn add(x: &Var, y: &Var) -> Result<Var> {
    add_scaled(x, 1.0, y)
}

/// x + alpha y, equal shapes.
pub fn add_scaled(x: &Var, alpha: f32, y: &Var) -> Result<Var> {
    equal_shapes(x.value(), y.value())?;
    apply1(AddScaled(alpha), &[x, y])
}

fn equal_shapes(x: &Tensor, y: &Tensor) -> Result<()> {
    if x.dims() == y.dims() { Ok(()) } else { misfit(format!("elementwise: {:?} and {:?}", x.dims(), y.dims())) }
}

struct AddScaled(f32);

impl Operator for AddScaled {
    type Kept = ();
    const BACKWARD_READS_INPUTS: bool = false;

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![(&inputs[0] + (&inputs[1] * f64::from(self.0))?)?])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, ())> {
        let alpha = self.0;
        Ok((vec![map2(&inputs[0], &inputs[1], move |a, b| a + alpha * b)?], ()))
    }

    fn backward_cpu(&self, _: &[Tensor], _: (), wanted: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        let (alpha, g) = (self.0, &up[0]);
        let dy = match wanted[1] {
            true if alpha == 1.0 => Some(g.clone()),
            true => Some(map2(g, g, move |a, _| alpha * a)?),
            false => None,
        };
        Ok(vec![Some(g.clone()), dy])
    }
}

struct SwiGlu;

/// silu(gate) * up, equal shapes.
pub fn swiglu(gate: &Var, up: &Var) -> Result<Var> {
    equal_shapes(gate.value(), up.value())?;
    apply1(SwiGlu, &[gate, up])
}

impl Operator for SwiGlu {
    type Kept = ();

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![(formulas::silu(&inputs[0])? * &inputs[1])?])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, ())> {
        Ok((vec![map2(&inputs[0], &inputs[1], |g, u| g * sigmoid(g) * u)?], ()))
    }

    fn backward_cpu(&self, inputs: &[Tensor], _: (), wanted: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        let (gs, us, ds) = (Slice::of(&inputs[0])?, Slice::of(&inputs[1])?, Slice::of(&up[0])?);
        let (mut dg, mut du) = (Output::unwritten(up[0].dims()), Output::unwritten(up[0].dims()));
        let (pg, pu) = (dg.pointer(), du.pointer());
        blocks(gs.len(), BLOCK).for_each(|r| {
            // SAFETY: blocks are disjoint.
            let (dg, du) = unsafe { (pg.slice(r.start, r.len()), pu.slice(r.start, r.len())) };
            let (g, u, d) = (&gs[r.clone()], &us[r.clone()], &ds[r]);
            simd(|| {
                for i in 0..dg.len() {
                    let s = sigmoid(g[i]);
                    dg[i] = d[i] * u[i] * s * (1.0 + g[i] * (1.0 - s));
                    du[i] = d[i] * g[i] * s;
                }
            });
        });
        gradients_of(vec![dg, du], wanted)
    }
}

/// Mean of (x - target)^2 over all elements; `target` gets no gradient.
pub fn mean_squared_error(x: &Var, target: &Tensor) -> Result<Var> {
    equal_shapes(x.value(), target)?;
    apply1(MeanSquaredError, &[x, &target.clone().into()])
}

struct MeanSquaredError;

impl Operator for MeanSquaredError {
    type Kept = ();
    const F32_FROM: usize = 0;

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![(&inputs[0] - &inputs[1])?.sqr()?.mean_all()?])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, ())> {
        let (xs, ts) = (Slice::of(&inputs[0])?, Slice::of(&inputs[1])?);
        let parts: Vec<f32> = blocks(xs.len(), BLOCK)
            .map(|r| {
                let (a, b) = (&xs[r.clone()], &ts[r]);
                simd(|| {
                    let mut lanes = [0.0f32; 16];
                    for (a, b) in a.chunks(16).zip(b.chunks(16)) {
                        for i in 0..a.len() {
                            lanes[i] += (a[i] - b[i]) * (a[i] - b[i]);
                        }
                    }
                    lanes.iter().sum()
                })
            })
            .collect();
        let total: f64 = parts.iter().map(|&p| f64::from(p)).sum();
        Ok((vec![Tensor::new((total / xs.len() as f64) as f32, inputs[0].device())?], ()))
    }

    fn backward_cpu(&self, inputs: &[Tensor], _: (), _: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        let n = inputs[0].elem_count() as f64;
        let scale = (2.0 * f64::from(up[0].to_scalar::<f32>()?) / n) as f32;
        Ok(vec![Some(map2(&inputs[0], &inputs[1], move |a, b| scale * (a - b))?), None])
    }
}

/// Elementwise function of two tensors of equal shape.
fn map2(x: &Tensor, y: &Tensor, f: impl Fn(f32, f32) -> f32 + Sync + Copy) -> Result<Tensor> {
    let (xs, ys) = (Slice::of(x)?, Slice::of(y)?);
    let mut out = Output::unwritten(x.dims());
    out.data().par_chunks_mut(BLOCK).enumerate().for_each(|(i, out)| {
        let (x, y) = (&xs[i * BLOCK..][..out.len()], &ys[i * BLOCK..][..out.len()]);
        simd(|| {
            for i in 0..out.len() {
                out[i] = f(x[i], y[i]);
            }
        });
    });
    out.tensor()
}
