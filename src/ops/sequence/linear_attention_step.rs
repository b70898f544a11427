//! One token of [`crate::ops::linear_attention`]: what enters the state, and what is read of it.

use crate::Result;
use crate::ops::Documents;
use crate::ops::chunked::{flat, outer, per_state};
use crate::ops::cpu::simd::{axpy, dot, simd};
use crate::ops::cpu::{HeadsView, Output, Slice};
use crate::ops::layout::gather::{mask, only, widened};
use crate::ops::operator::on_device;
use candle_core::Tensor;
use rayon::prelude::*;
use std::ops::Range;

/// Keys that enter the state with one token.
#[derive(Clone, Copy)]
pub struct Entering<'a> {
    /// [B, n, H, F]
    pub b: &'a Tensor,
    /// [B, n, G, V]
    pub v: &'a Tensor,
    /// Which of the n keys enter in each row: none where the row's token is padding.
    pub rows: &'a [Range<usize>],
}

/// One token a row: absorbs what enters, then reads the state with `a` [B, 1, H, F]; padding reads zero. Returns
/// numerator, denominator, state, normaliser. Beside a window, [`crate::ops::KvLayout::leaving`] says what enters.
pub fn linear_attention_step(
    a: &Tensor,
    entering: Option<Entering>,
    documents: &Documents,
    state: &Tensor,
    normaliser: &Tensor,
) -> Result<(Tensor, Tensor, Tensor, Tensor)> {
    let dtype = a.dtype();
    let a = widened(a)?;
    let entering = entering.map(|e| Ok::<_, crate::Error>((widened(e.b)?, widened(e.v)?, e.rows))).transpose()?;
    let entering = entering.as_ref().map(|(b, v, rows)| Entering { b, v, rows });
    let (num, den, s, z) = on_device(
        state,
        || linear_attention_step_cpu(&a, entering, documents, state, normaliser),
        || linear_attention_step_formula(&a, entering, documents, state, normaliser),
    )?;
    Ok((num.to_dtype(dtype)?, den, s, z))
}

fn linear_attention_step_formula(
    a: &Tensor,
    entering: Option<Entering>,
    documents: &Documents,
    state: &Tensor,
    normaliser: &Tensor,
) -> Result<(Tensor, Tensor, Tensor, Tensor)> {
    let (batch, heads, features, width) = state.dims4()?;
    let a = a.reshape((batch * heads, 1, features))?;
    let (s, z) = (state.reshape((batch * heads, features, width))?, normaliser.reshape((batch * heads, 1, features))?);
    let (mut num, mut den) = (a.matmul(&s)?, (&a * &z)?.sum_keepdim(2)?);
    let (mut s, mut z) = (s, z);
    if let Some(Entering { b, v, rows }) = entering {
        let n = b.dim(1)?;
        let enters = rows.iter().flat_map(|row| (0..n).map(|j| row.contains(&j))).collect();
        let b = only(&mask(enters, &[batch, n, 1, 1], b.device())?, b)?;
        let (b, v) = (flat(&per_state(&b, heads, 1)?)?, flat(&per_state(v, heads, 1)?)?);
        let weights = a.matmul(&b.t()?)?;
        num = (num + weights.matmul(&v)?)?;
        den = (den + weights.sum_keepdim(2)?)?;
        s = (s + outer(&b, &v)?)?;
        z = (z + b.sum_keepdim(1)?)?;
    }
    let reads = (0..batch).map(|row| !documents.row(row).is_empty()).collect();
    let reads = mask(reads, &[batch, 1, 1, 1], a.device())?;
    let num = only(&reads, &num.reshape((batch, 1, heads, width))?)?;
    let den = only(&reads, &den.reshape((batch, 1, heads, 1))?)?.squeeze(3)?;
    Ok((num, den, s.reshape(state.shape())?, z.reshape(normaliser.shape())?))
}

fn linear_attention_step_cpu(
    a: &Tensor,
    entering: Option<Entering>,
    documents: &Documents,
    state: &Tensor,
    normaliser: &Tensor,
) -> Result<(Tensor, Tensor, Tensor, Tensor)> {
    let (batch, heads, features, width) = state.dims4()?;
    let (s0, z0, a) = (Slice::of(state)?, Slice::of(normaliser)?, HeadsView::of(a)?);
    let entering = match entering {
        Some(Entering { b, v, rows }) => Some((HeadsView::of(b)?, HeadsView::of(v)?, rows)),
        None => None,
    };
    let (mut s, mut z) = (Output::unwritten(state.dims()), Output::unwritten(normaliser.dims()));
    let mut num = Output::zeros(&[batch, 1, heads, width]);
    let mut den = Output::zeros(&[batch, 1, heads]);
    let size = features * width;
    s.data().copy_from_slice(&s0);
    z.data().copy_from_slice(&z0);
    let states = s.data().par_chunks_mut(size).zip(z.data().par_chunks_mut(features));
    let outputs = num.data().par_chunks_mut(width).zip(den.data().par_iter_mut());
    states.zip(outputs).enumerate().for_each(|(i, ((s, z), (num, den)))| {
        let (row, h) = (i / heads, i % heads);
        let query = a.head(row, h, 0..1).row(0);
        simd!(|| {
            let reads = !documents.row(row).is_empty();
            if reads {
                for (s, a) in s.chunks_exact(width).zip(query) {
                    axpy(num, *a, s);
                }
                *den = dot(query, z);
            }
            if let Some((b, v, rows)) = &entering {
                let v = v.head(row, h / (heads / v.heads), rows[row].clone());
                let b = b.head(row, h, rows[row].clone());
                for j in 0..b.rows {
                    // Weighed as one, num and den have the same rounding, which cancels: read from the state, what few
                    // tokens wrote can be less than the rounding of its features.
                    if reads {
                        let weight = dot(query, b.row(j));
                        axpy(num, weight, v.row(j));
                        *den += weight;
                    }
                    for (s, b) in s.chunks_exact_mut(width).zip(b.row(j)) {
                        axpy(s, *b, v.row(j));
                    }
                    axpy(z, 1.0, b.row(j));
                }
            }
        });
    });
    Ok((num.tensor()?, den.tensor()?, s.tensor()?, z.tensor()?))
}
