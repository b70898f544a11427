//! One token of [`crate::ops::linear_attention`]: what enters the state, and what is read of it.

use crate::Result;
use crate::ops::Documents;
use crate::ops::cpu::simd::{axpy, dot, simd};
use crate::ops::cpu::{HeadsView, Output, Slice};
use crate::ops::operator::{no_formula, on_device};
use candle_core::Tensor;
use rayon::prelude::*;
use std::ops::Range;

/// Keys that enter the state with one token.
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
    let step = || linear_attention_step_cpu(a, entering, documents, state, normaliser);
    on_device(state, step, no_formula)
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
