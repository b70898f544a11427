//! Per-head learned feature maps: phi(x) = [softmax(x W), softmax(-x W)]  (Hedgehog as LoLCATs defines it,
//! arXiv 2410.10254; the reference code clamps features below at 1e-12).

use crate::Result;
use crate::ops::cpu::simd::{dot, exp_minus, max, simd};
use crate::ops::cpu::{HeadsView, Output, Slice, blocks, matrix::Mat, matrix::MatMut};
use crate::ops::formulas;
use crate::ops::operator::{Operator, apply1, misfit};
use crate::ops::per_head_linear;
use crate::ops::tape::Var;
use candle_core::{D, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// Smallest feature.
const FLOOR: f32 = 1e-12;
/// Tokens of one task.
const ROWS: usize = 128;

/// `x` [B, T, H or G, K] (query head h reads kv head h / (H/G)), `w` [H, K, f] -> features [B, T, H, 2f].
pub fn two_softmaxes(x: &Var, w: &Var) -> Result<Var> {
    let (_, _, kv_heads, inner) = x.value().dims4()?;
    let (heads, width, _) = w.value().dims3()?;
    if kv_heads == 0 || heads % kv_heads != 0 || inner != width {
        return misfit(format!("feature map: {:?} by {:?}", x.value().dims(), w.value().dims()));
    }
    apply1(TwoSoftmaxes, &[x, w])
}

struct TwoSoftmaxes;

impl Operator for TwoSoftmaxes {
    /// The features.
    type Kept = Tensor;

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let y = per_head_linear::by_formula(&inputs[0], &inputs[1])?;
        let half = |y: &Tensor| {
            let p = formulas::softmax(y)?;
            formulas::replace(&p, &p.le(f64::from(FLOOR))?, f64::from(FLOOR))
        };
        Ok(vec![Tensor::cat(&[half(&y)?, half(&y.neg()?)?], D::Minus1)?])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, Tensor)> {
        let (batch, tokens, kv_heads, _) = inputs[0].dims4()?;
        let (heads, width, half) = inputs[1].dims3()?;
        let group = heads / kv_heads;
        let y = {
            let (xs, ws) = (HeadsView::of(&inputs[0])?, Slice::of(&inputs[1])?);
            let mut y = Output::unwritten(&[batch, tokens, heads, 2 * half]);
            let at = y.pointer();
            each_block(batch, tokens, |b, r| {
                for h in 0..heads {
                    // SAFETY: rows r of batch row b belong to this task.
                    let mut out = unsafe {
                        at.rows(((b * tokens + r.start) * heads + h) * 2 * half, r.len(), 2 * half, heads * 2 * half)
                    };
                    let mut left = unsafe {
                        at.rows(((b * tokens + r.start) * heads + h) * 2 * half, r.len(), half, heads * 2 * half)
                    };
                    let w = Mat::new(&ws[h * width * half..][..width * half], width, half);
                    left.product(1.0, xs.head(b, h / group, r.clone()), w, 0.0);
                    simd(|| (0..r.len()).for_each(|i| activate(out.row(i), half)));
                }
            });
            y.tensor()?
        };
        Ok((vec![y.clone()], y))
    }

    fn backward_cpu(
        &self,
        inputs: &[Tensor],
        features: Tensor,
        wanted: &[bool],
        up: &[Tensor],
    ) -> Result<Vec<Option<Tensor>>> {
        backward(&inputs[0], &inputs[1], &features, wanted, &up[0])
    }
}

/// [y, _] -> [softmax(y), softmax(-y)].
#[inline(always)]
fn activate(row: &mut [f32], half: usize) {
    let (plus, minus) = row.split_at_mut(half);
    for i in 0..half {
        minus[i] = -plus[i];
    }
    for part in [plus, minus] {
        let m = max(part);
        let scale = 1.0 / exp_minus(part, m);
        for v in part.iter_mut() {
            let p = *v * scale;
            *v = if p < FLOOR { FLOOR } else { p };
        }
    }
}

/// dy = p (g - p.g) of the positive half minus the same of the negative half; clamped features pass no gradient.
#[inline(always)]
fn activate_backward(dy: &mut [f32], features: &[f32], g: &[f32], masked: &mut [f32]) {
    let half = dy.len();
    dy.fill(0.0);
    for (side, sign) in [(0, 1.0f32), (half, -1.0)] {
        let (p, g) = (&features[side..side + half], &g[side..side + half]);
        for i in 0..half {
            masked[i] = if p[i] > FLOOR { g[i] } else { 0.0 };
        }
        let along = dot(p, masked);
        for i in 0..half {
            dy[i] += sign * p[i] * (masked[i] - along);
        }
    }
}

fn each_block(batch: usize, tokens: usize, f: impl Fn(usize, Range<usize>) + Sync) {
    (0..batch).into_par_iter().for_each(|b| blocks(tokens, ROWS).for_each(|r| f(b, r)));
}

fn backward(x: &Tensor, w: &Tensor, features: &Tensor, wanted: &[bool], g: &Tensor) -> Result<Vec<Option<Tensor>>> {
    let (batch, tokens, kv_heads, width) = x.dims4()?;
    let (heads, _, half) = w.dims3()?;
    let group = heads / kv_heads;
    let (xs, ws) = (HeadsView::of(x)?, Slice::of(w)?);
    let (ps, gs) = (HeadsView::of(features)?, HeadsView::of(g)?);
    let mut dy = Output::unwritten(&[batch, tokens, heads, half]);
    let dy_at = dy.pointer();
    each_block(batch, tokens, |b, r| {
        let mut masked = vec![0.0; half];
        for h in 0..heads {
            let (p, g) = (ps.head(b, h, r.clone()), gs.head(b, h, r.clone()));
            // SAFETY: rows r of batch row b belong to this task.
            let mut dy =
                unsafe { dy_at.rows(((b * tokens + r.start) * heads + h) * half, r.len(), half, heads * half) };
            simd(|| (0..r.len()).for_each(|i| activate_backward(dy.row(i), p.row(i), g.row(i), &mut masked)));
        }
    });
    let dy = dy.tensor()?;
    let dys = HeadsView::of(&dy)?;
    let weight = |h: usize| Mat::new(&ws[h * width * half..][..width * half], width, half);
    let dx = if wanted[0] {
        let mut dx = Output::zeros(x.dims());
        let at = dx.pointer();
        each_block(batch, tokens, |b, r| {
            for h in 0..heads {
                // SAFETY: rows r of batch row b belong to this task; heads of a group follow one another.
                let mut dx = unsafe {
                    let start = ((b * tokens + r.start) * kv_heads + h / group) * width;
                    at.rows(start, r.len(), width, kv_heads * width)
                };
                dx.product(1.0, dys.head(b, h, r.clone()), weight(h).t(), 1.0);
            }
        });
        Some(dx.tensor()?)
    } else {
        None
    };
    let dw = if wanted[1] {
        let mut dw = Output::zeros(w.dims());
        dw.data().par_chunks_mut(width * half).enumerate().for_each(|(h, dw)| {
            for b in 0..batch {
                let (x, dy) = (xs.head(b, h / group, 0..tokens), dys.head(b, h, 0..tokens));
                MatMut::new(dw, width, half).product(1.0, x.t(), dy, 1.0);
            }
        });
        Some(dw.tensor()?)
    } else {
        None
    };
    Ok(vec![dx, dw])
}
