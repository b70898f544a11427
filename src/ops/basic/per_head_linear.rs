//! y_h = x_h W_h^T: a linear map of its own for every head.

use crate::Result;
use crate::ops::cpu::{HeadsView, Output, Slice, blocks, matrix::Mat, matrix::MatMut};
use crate::ops::operator::{Operator, apply1, misfit};
use crate::ops::tape::Var;
use candle_core::Tensor;
use rayon::prelude::*;
use std::ops::Range;

/// Tokens of one task.
const ROWS: usize = 128;

/// `x` [B, T, H or G, K] (query head h reads kv head h / (H/G)), `w` [H, f, K] -> [B, T, H, f].
pub fn per_head_linear(x: &Var, w: &Var) -> Result<Var> {
    let (_, _, kv_heads, inner) = x.value().dims4()?;
    let (heads, _, width) = w.value().dims3()?;
    if kv_heads == 0 || heads % kv_heads != 0 || inner != width {
        return misfit(format!("linear map per head: {:?} by {:?}", x.value().dims(), w.value().dims()));
    }
    apply1(PerHeadLinear, &[x, w])
}

/// x_h M_h for `x` [B, T, H or G, K] and `m` [H, K, f]: [B, T, H, f], as one product for every kv head.
pub(super) fn by_formula(x: &Tensor, m: &Tensor) -> Result<Tensor> {
    let ((batch, tokens, kv_heads, width), (heads, _, out)) = (x.dims4()?, m.dims3()?);
    let group = heads / kv_heads;
    let x = x.permute((2, 0, 1, 3))?.reshape((kv_heads, batch * tokens, width))?;
    let m = m.reshape((kv_heads, group, width, out))?.permute((0, 2, 1, 3))?.reshape((kv_heads, width, group * out))?;
    let y = x.matmul(&m)?.reshape((kv_heads, batch, tokens, group, out))?;
    Ok(y.permute((1, 2, 0, 3, 4))?.reshape((batch, tokens, heads, out))?)
}

struct PerHeadLinear;

impl Operator for PerHeadLinear {
    type Kept = ();

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![by_formula(&inputs[0], &inputs[1].transpose(1, 2)?)?])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, ())> {
        let (batch, tokens, kv_heads, _) = inputs[0].dims4()?;
        let (heads, out, width) = inputs[1].dims3()?;
        let (xs, ws) = (HeadsView::of(&inputs[0])?, Slice::of(&inputs[1])?);
        let mut y = Output::unwritten(&[batch, tokens, heads, out]);
        let at = y.pointer();
        each_block(batch, tokens, |b, r| {
            for h in 0..heads {
                let start = ((b * tokens + r.start) * heads + h) * out;
                // SAFETY: rows r of batch row b belong to this task.
                let mut y = unsafe { at.rows(start, r.len(), out, heads * out) };
                let w = Mat::new(&ws[h * out * width..][..out * width], out, width);
                y.product(1.0, xs.head(b, h * kv_heads / heads, r.clone()), w.t(), 0.0);
            }
        });
        Ok((vec![y.tensor()?], ()))
    }

    fn backward_cpu(&self, inputs: &[Tensor], _: (), wanted: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        backward(&inputs[0], &inputs[1], wanted, &up[0])
    }
}

fn each_block(batch: usize, tokens: usize, f: impl Fn(usize, Range<usize>) + Sync) {
    (0..batch).into_par_iter().for_each(|b| blocks(tokens, ROWS).for_each(|r| f(b, r)));
}

fn backward(x: &Tensor, w: &Tensor, wanted: &[bool], g: &Tensor) -> Result<Vec<Option<Tensor>>> {
    let (batch, tokens, kv_heads, width) = x.dims4()?;
    let (heads, out, _) = w.dims3()?;
    let group = heads / kv_heads;
    let (xs, ws, gs) = (HeadsView::of(x)?, Slice::of(w)?, HeadsView::of(g)?);
    let mut gradients = vec![None, None];
    if wanted[0] {
        let mut dx = Output::zeros(x.dims());
        let at = dx.pointer();
        each_block(batch, tokens, |b, r| {
            for h in 0..heads {
                let start = ((b * tokens + r.start) * kv_heads + h / group) * width;
                // SAFETY: rows r of batch row b belong to this task; heads of a group follow one another.
                let mut dx = unsafe { at.rows(start, r.len(), width, kv_heads * width) };
                let w = Mat::new(&ws[h * out * width..][..out * width], out, width);
                dx.product(1.0, gs.head(b, h, r.clone()), w, 1.0);
            }
        });
        gradients[0] = Some(dx.tensor()?);
    }
    if wanted[1] {
        let mut dw = Output::zeros(w.dims());
        dw.data().par_chunks_mut(out * width).enumerate().for_each(|(h, dw)| {
            for b in 0..batch {
                let (x, g) = (xs.head(b, h / group, 0..tokens), gs.head(b, h, 0..tokens));
                MatMut::new(dw, out, width).product(1.0, g.t(), x, 1.0);
            }
        });
        gradients[1] = Some(dw.tensor()?);
    }
    Ok(gradients)
}
