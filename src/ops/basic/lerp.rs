//! Two outputs in shares: o = gamma w + (1 - gamma) l, gamma = sigmoid(factor), one factor per head.

use crate::Result;
use crate::ops::cpu::simd::{sigmoid, simd};
use crate::ops::cpu::{Output, Slice, gradients_of};
use crate::ops::formulas;
use crate::ops::operator::{Operator, apply1, misfit};
use crate::ops::tape::Var;
use candle_core::Tensor;
use rayon::prelude::*;

/// `w` and `l` [B, T, H, V], `factor` `[H]`.
pub fn lerp(w: &Var, l: &Var, factor: &Var) -> Result<Var> {
    let (_, _, heads, _) = w.value().dims4()?;
    if l.value().dims() != w.value().dims() || factor.value().dims() != [heads] {
        let dims = [w, l, factor].map(|x| x.value().dims().to_vec());
        return misfit(format!("lerp of {dims:?}"));
    }
    apply1(Lerp, &[w, l, factor])
}

struct Lerp;

/// The share of `w` in each head.
fn shares(factor: &Tensor) -> Result<Vec<f32>> {
    Ok(Slice::of(factor)?.iter().map(|&f| sigmoid(f)).collect())
}

impl Operator for Lerp {
    type Kept = ();

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let (w, l) = (&inputs[0], &inputs[1]);
        let share = formulas::sigmoid(&inputs[2])?.unsqueeze(1)?;
        Ok(vec![(l + (w - l)?.broadcast_mul(&share)?)?])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, ())> {
        let (_, _, heads, width) = inputs[0].dims4()?;
        let gamma = shares(&inputs[2])?;
        let (ws, ls) = (Slice::of(&inputs[0])?, Slice::of(&inputs[1])?);
        let mut o = Output::unwritten(inputs[0].dims());
        let rows = o.data().par_chunks_mut(width).zip(ws.par_chunks(width)).zip(ls.par_chunks(width));
        rows.enumerate().with_min_len(256).for_each(|(i, ((o, w), l))| {
            let share = gamma[i % heads];
            simd(|| (0..width).for_each(|j| o[j] = l[j] + share * (w[j] - l[j])));
        });
        Ok((vec![o.tensor()?], ()))
    }

    fn backward_cpu(&self, inputs: &[Tensor], _: (), wanted: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        let (_, _, heads, width) = inputs[0].dims4()?;
        let gamma = shares(&inputs[2])?;
        let (ws, ls, gs) = (Slice::of(&inputs[0])?, Slice::of(&inputs[1])?, Slice::of(&up[0])?);
        let (mut dw, mut dl) = (Output::unwritten(up[0].dims()), Output::unwritten(up[0].dims()));
        let rows = dw.data().par_chunks_mut(width).zip(dl.data().par_chunks_mut(width)).zip(gs.par_chunks(width));
        rows.enumerate().with_min_len(256).for_each(|(i, ((dw, dl), g))| {
            let share = gamma[i % heads];
            simd(|| {
                for j in 0..width {
                    dw[j] = share * g[j];
                    dl[j] = g[j] - dw[j];
                }
            });
        });
        let mut d_factor = Output::zeros(&[heads]);
        if wanted[2] {
            let along = |h: usize| -> f64 {
                let rows = gs.chunks_exact(width).zip(ws.chunks_exact(width)).zip(ls.chunks_exact(width));
                let of_head = rows.skip(h).step_by(heads);
                let row = |((g, w), l): ((&[f32], &[f32]), &[f32])| -> f32 {
                    simd(|| g.iter().zip(w).zip(l).map(|((g, w), l)| g * (w - l)).sum())
                };
                of_head.map(|row_of| f64::from(row(row_of))).sum()
            };
            let slope = |h: usize| gamma[h] * (1.0 - gamma[h]);
            d_factor.data().par_iter_mut().enumerate().for_each(|(h, d)| *d = slope(h) * along(h) as f32);
        }
        gradients_of(vec![dw, dl, d_factor], wanted)
    }
}
