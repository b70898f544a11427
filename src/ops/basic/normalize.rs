//! From numerators and denominators to an output: o = (gamma num_w + num_l) / (gamma den_w + den_l + eps).
//!
//! gamma weighs a softmax window against a linear branch under one joint normaliser (LoLCATs, arXiv 2410.10254). With one branch it is that branch's own quotient. Where the denominator is zero, as in padding,
//! so is the output, and no gradient passes.

use crate::Result;
use crate::ops::cpu::simd::{dot, simd};
use crate::ops::cpu::{Output, Slice, gradients_of};
use crate::ops::formulas;
use crate::ops::operator::{Operator, apply1, misfit};
use crate::ops::tape::Var;
use candle_core::Tensor;
use rayon::prelude::*;

#[inline(always)]
fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// num / (den + eps); `num` [B, T, H, V], `den` [B, T, H].
pub fn normalize(num: &Var, den: &Var, eps: f32) -> Result<Var> {
    pair(num, den)?;
    apply1(Normalize(eps), &[num, den])
}

fn pair(num: &Var, den: &Var) -> Result<()> {
    let (num, den) = (num.value().dims(), den.value().dims());
    if num.len() == 4 && den == &num[..3] { Ok(()) } else { misfit(format!("quotient of {num:?} and {den:?}")) }
}

struct Normalize(f32);

impl Operator for Normalize {
    /// Denominator and output.
    type Kept = [Tensor; 2];
    const BACKWARD_READS_INPUTS: bool = false;

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let scale = formulas::inverse(&(&inputs[1] + f64::from(self.0))?)?;
        Ok(vec![inputs[0].broadcast_mul(&scale.unsqueeze(3)?)?])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, Self::Kept)> {
        let (width, eps) = (inputs[0].dim(3)?, self.0);
        let o = {
            let (ns, ds) = (Slice::of(&inputs[0])?, Slice::of(&inputs[1])?);
            let mut o = Output::unwritten(inputs[0].dims());
            o.data().par_chunks_mut(width).zip(ns.par_chunks(width)).zip(ds.par_iter()).with_min_len(256).for_each(
                |((o, n), d)| {
                    let scale = inverse(d + eps);
                    simd!(|| (0..width).for_each(|i| o[i] = n[i] * scale));
                },
            );
            o.tensor()?
        };
        Ok((vec![o.clone()], [inputs[1].clone(), o]))
    }

    fn backward_cpu(
        &self,
        _: &[Tensor],
        [den, o]: Self::Kept,
        wanted: &[bool],
        up: &[Tensor],
    ) -> Result<Vec<Option<Tensor>>> {
        let (width, eps) = (o.dim(3)?, self.0);
        let (ds, os, gs) = (Slice::of(&den)?, Slice::of(&o)?, Slice::of(&up[0])?);
        let (mut dn, mut dd) = (Output::unwritten(o.dims()), Output::unwritten(den.dims()));
        let outputs = dn.data().par_chunks_mut(width).zip(dd.data().par_iter_mut());
        let inputs = gs.par_chunks(width).zip(os.par_chunks(width)).zip(ds.par_iter());
        outputs.zip(inputs).with_min_len(256).for_each(|((dn, dd), ((g, o), d))| {
            let scale = inverse(d + eps);
            simd!(|| {
                (0..width).for_each(|i| dn[i] = g[i] * scale);
                *dd = -scale * dot(g, o);
            });
        });
        gradients_of(vec![dn, dd], wanted)
    }
}

/// Two branches under one normaliser. `window` and `linear` are (num [B, T, H, V], den [B, T, H]), `gamma` `[H]`.
pub fn joint_normalize(window: (&Var, &Var), linear: (&Var, &Var), gamma: &Var) -> Result<Var> {
    pair(window.0, window.1)?;
    pair(linear.0, linear.1)?;
    let dims = window.0.value().dims();
    if dims != linear.0.value().dims() || gamma.value().dims() != [dims[2]] {
        let (linear, gamma) = (linear.0.value().dims(), gamma.value().dims());
        return misfit(format!("joint quotient of {dims:?} and {linear:?} with gamma {gamma:?}"));
    }
    apply1(JointNormalize, &[window.0, window.1, linear.0, linear.1, gamma])
}

struct JointNormalize;

impl Operator for JointNormalize {
    /// The output.
    type Kept = Tensor;

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let [nw, dw, nl, dl, gamma] = [0, 1, 2, 3, 4].map(|i| &inputs[i]);
        let num = (nw.broadcast_mul(&gamma.unsqueeze(1)?)? + nl)?;
        let den = (dw.broadcast_mul(gamma)? + dl)?;
        Ok(vec![num.broadcast_mul(&formulas::inverse(&den)?.unsqueeze(3)?)?])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, Tensor)> {
        let (_, _, heads, width) = inputs[0].dims4()?;
        let o = {
            let [nw, dw, nl, dl, gamma] = [0, 1, 2, 3, 4].map(|i| Slice::of(&inputs[i]));
            let (nw, dw, nl, dl, gamma) = (nw?, dw?, nl?, dl?, gamma?);
            let mut o = Output::unwritten(inputs[0].dims());
            o.data().par_chunks_mut(heads * width).enumerate().with_min_len(64).for_each(|(row, o)| {
                simd!(|| {
                    for h in 0..heads {
                        let i = row * heads + h;
                        let scale = inverse(gamma[h] * dw[i] + dl[i]);
                        let (nw, nl) = (&nw[i * width..][..width], &nl[i * width..][..width]);
                        for (j, o) in o[h * width..][..width].iter_mut().enumerate() {
                            *o = scale * (gamma[h] * nw[j] + nl[j]);
                        }
                    }
                });
            });
            o.tensor()?
        };
        Ok((vec![o.clone()], o))
    }

    fn backward_cpu(
        &self,
        inputs: &[Tensor],
        o: Tensor,
        wanted: &[bool],
        up: &[Tensor],
    ) -> Result<Vec<Option<Tensor>>> {
        let (batch, tokens, heads, width) = o.dims4()?;
        let [nw, dw, dl, gamma] = [0, 1, 3, 4].map(|i| Slice::of(&inputs[i]));
        let (nw, dw, dl, gamma) = (nw?, dw?, dl?, gamma?);
        let (os, gs) = (Slice::of(&o)?, Slice::of(&up[0])?);
        // g over the joint denominator is the gradient of the linear numerator; the others are multiples of it.
        let (mut d_num, mut d_den) = (Output::unwritten(o.dims()), Output::unwritten(inputs[1].dims()));
        let mut d_gamma = Output::unwritten(&[batch * tokens, heads]);
        let outputs = d_num.data().par_chunks_mut(heads * width).zip(d_den.data().par_chunks_mut(heads));
        outputs.zip(d_gamma.data().par_chunks_mut(heads)).enumerate().with_min_len(64).for_each(
            |(row, ((d_num, d_den), d_gamma))| {
                simd!(|| {
                    for h in 0..heads {
                        let i = row * heads + h;
                        let scale = inverse(gamma[h] * dw[i] + dl[i]);
                        let (g, o) = (&gs[i * width..][..width], &os[i * width..][..width]);
                        let d = &mut d_num[h * width..][..width];
                        (0..width).for_each(|j| d[j] = g[j] * scale);
                        d_den[h] = -scale * dot(g, o);
                        d_gamma[h] = dot(d, &nw[i * width..][..width]) + d_den[h] * dw[i];
                    }
                });
            },
        );
        let d_gamma = sum_over_rows(d_gamma.data(), heads)?;
        let (d_num, d_den) = (d_num.tensor()?, d_den.tensor()?);
        let dw_num = if wanted[0] { Some(by_head(&d_num, &gamma, width)?) } else { None };
        let dw_den = if wanted[1] { Some(by_head(&d_den, &gamma, 1)?) } else { None };
        Ok(vec![dw_num, dw_den, Some(d_num), Some(d_den), Some(d_gamma)])
    }
}

/// Sums over [rows, heads] in f64: [heads].
fn sum_over_rows(rows: &[f32], heads: usize) -> Result<Tensor> {
    let mut total = vec![0.0f64; heads];
    for row in rows.chunks_exact(heads) {
        for (sum, d) in total.iter_mut().zip(row) {
            *sum += f64::from(*d);
        }
    }
    let mut sums = Output::unwritten(&[heads]);
    sums.data().iter_mut().zip(total).for_each(|(sum, d)| *sum = d as f32);
    sums.tensor()
}

/// Heads of `x`, `width` elements each, times gamma.
fn by_head(x: &Tensor, gamma: &[f32], width: usize) -> Result<Tensor> {
    let row = gamma.len() * width;
    let xs = Slice::of(x)?;
    let mut y = Output::unwritten(x.dims());
    y.data().par_chunks_mut(row).zip(xs.par_chunks(row)).for_each(|(y, x)| {
        for ((y, x), gamma) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(gamma) {
            y.iter_mut().zip(x).for_each(|(y, x)| *y = gamma * x);
        }
    });
    y.tensor()
}
