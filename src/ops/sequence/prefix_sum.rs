//! y_t = sum over s <= t of x_s, within a document.
//!
//! Running sums are kept in f64, so that the error does not grow with the length of a text.

use crate::Result;
use crate::ops::cpu::{Output, Slice, blocks};
use crate::ops::documents::Documents;
use crate::ops::layout::gather::{Gather, mask, only};
use crate::ops::operator::{Operator, apply};
use crate::ops::tape::Var;
use candle_core::{DType, Tensor};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Columns of one task.
const COLUMNS: usize = 64;

/// `x` [B, T, ..] and the sum before it, `before` [B, ..] (None: zero), continued by the first document of each row.
/// Returns the sums up to each token, itself included, zero at padding, and the sum after, [B, ..]: of the row's last
/// document, or `before` where a row has none.
pub fn prefix_sum(x: &Var, before: Option<&Var>, documents: &Arc<Documents>) -> Result<(Var, Var)> {
    let dims = x.value().dims().to_vec();
    let short: Vec<usize> = dims.iter().take(1).chain(dims.iter().skip(2)).copied().collect();
    let before = match before {
        Some(before) => before.clone(),
        None => Var::constant(Tensor::zeros(short.as_slice(), DType::F32, x.value().device())?),
    };
    let fits = dims.len() > 1 && (documents.batch(), documents.tokens()) == (dims[0], dims[1]);
    if !fits || before.value().dims() != short {
        let what = format!("prefix sum of {dims:?} after {:?}, {documents:?}", before.value().dims());
        return Err(candle_core::Error::Msg(what).into());
    }
    let mut vars = apply(PrefixSum(documents.clone()), &[x, &before])?;
    let after = vars.pop().expect("two outputs");
    Ok((vars.pop().expect("two outputs"), after))
}

/// One call. Its inputs are x and the sum before.
struct PrefixSum(Arc<Documents>);

impl Operator for PrefixSum {
    type Kept = ();

    const F32_FROM: usize = 1;

    /// By doubling: sums of 2n tokens are those of n and, n tokens before, of n more. Rounding grows with the logarithm
    /// of the length.
    fn formula(&self, x: &[Tensor]) -> Result<Vec<Tensor>> {
        let (x, before, documents) = (&x[0], &x[1], &self.0);
        let (batch, tokens, width) =
            (documents.batch(), documents.tokens(), before.elem_count() / documents.batch().max(1));
        if x.elem_count() == 0 {
            return Ok(vec![x.clone(), before.clone()]);
        }
        let whole = documents.are_whole();
        // Of every token: how many of its document stand before it, and whether that is the row's first.
        let mut place = vec![None; batch * tokens];
        for b in 0..batch {
            for (i, document) in documents.row(b).iter().enumerate() {
                for token in document.clone() {
                    place[b * tokens + token] = Some((token - document.start, i == 0));
                }
            }
        }
        let tokens_that = |holds: &dyn Fn(usize, bool) -> bool, x: &Tensor| -> Result<Tensor> {
            let holds = place.iter().map(|place| place.is_some_and(|(at, first)| holds(at, first))).collect();
            only(&mask(holds, &[batch, tokens, 1], x.device())?, x)
        };
        let mut y = x.reshape((batch, tokens, width))?;
        if !whole {
            y = tokens_that(&|_, _| true, &y)?;
        }
        let longest = place.iter().flatten().map(|(at, _)| at + 1).max().unwrap_or(0);
        let mut n = 1;
        while n < longest {
            let shifted = y.narrow(1, 0, tokens - n)?.pad_with_zeros(1, n, 0)?;
            y = (y + if whole { shifted } else { tokens_that(&|at, _| at >= n, &shifted)? })?;
            n *= 2;
        }
        let carried = before.reshape((batch, 1, width))?;
        let spread = carried.broadcast_as(y.shape())?.contiguous()?;
        y = (y + if whole { spread } else { tokens_that(&|_, first| first, &spread)? })?;
        // The sum before stands in front of each row's tokens: a row without documents ends with it.
        let last = |b: usize| Some(b * (tokens + 1) + documents.row(b).last().map_or(0, |d| d.end));
        let last: Vec<_> = (0..batch).map(last).collect();
        let after = Gather::new(batch * (tokens + 1), &last, x.device())?.of(&Tensor::cat(&[&carried, &y], 1)?)?;
        Ok(vec![y.reshape(x.shape())?, after.reshape(before.shape())?])
    }

    fn forward_cpu(&self, x: &[Tensor], _keep: bool) -> Result<(Vec<Tensor>, ())> {
        Ok((forward(&x[0], &x[1], &self.0)?, ()))
    }

    fn backward_cpu(&self, x: &[Tensor], (): (), wanted: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        let (dx, d_before) = backward(x[0].dims(), x[1].dims(), up, &self.0)?;
        Ok(vec![wanted[0].then_some(dx), wanted[1].then_some(d_before)])
    }
}

/// (batch row, columns) of every task.
fn tasks(batch: usize, width: usize) -> impl ParallelIterator<Item = (usize, Range<usize>)> {
    (0..batch).into_par_iter().flat_map(move |b| blocks(width, COLUMNS).map(move |columns| (b, columns)))
}

fn forward(x: &Tensor, before: &Tensor, documents: &Documents) -> Result<Vec<Tensor>> {
    let (batch, tokens, width) = (documents.batch(), documents.tokens(), x.dims()[2..].iter().product::<usize>());
    let (xs, bs) = (Slice::of(x)?, Slice::of(before)?);
    let (mut y, mut after) = (Output::padded(x.dims(), documents), Output::unwritten(before.dims()));
    let (y_at, after_at) = (y.pointer(), after.pointer());
    tasks(batch, width).for_each(|(b, columns)| {
        let (first, n) = (columns.start, columns.len());
        let mut sums = [0f64; COLUMNS];
        sums.iter_mut().zip(&bs[b * width..][columns]).for_each(|(sum, x)| *sum = f64::from(*x));
        for (i, document) in documents.row(b).iter().enumerate() {
            if i > 0 {
                sums.fill(0.0);
            }
            for t in document.clone() {
                let at = (b * tokens + t) * width + first;
                // SAFETY: these columns of row b belong to this task.
                add(&mut sums, &xs[at..at + n], unsafe { y_at.slice(at, n) });
            }
        }
        // SAFETY: as above.
        let out = unsafe { after_at.slice(b * width + first, n) };
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum as f32);
    });
    Ok(vec![y.tensor()?, after.tensor()?])
}

/// The same sums from the end of each document, which begin with the gradient of the sum after where it is the row's
/// last; what arrives at the row's first is the gradient of the sum before.
fn backward(dims: &[usize], short: &[usize], up: &[Tensor], documents: &Documents) -> Result<(Tensor, Tensor)> {
    let (batch, tokens, width) = (documents.batch(), documents.tokens(), dims[2..].iter().product::<usize>());
    let (dy, d_after) = (Slice::of(&up[0])?, Slice::of(&up[1])?);
    let (mut dx, mut d_before) = (Output::padded(dims, documents), Output::unwritten(short));
    let (dx_at, before_at) = (dx.pointer(), d_before.pointer());
    tasks(batch, width).for_each(|(b, columns)| {
        let (first, n) = (columns.start, columns.len());
        let mut sums = [0f64; COLUMNS];
        sums.iter_mut().zip(&d_after[b * width..][columns]).for_each(|(sum, g)| *sum = f64::from(*g));
        for (i, document) in documents.row(b).iter().rev().enumerate() {
            if i > 0 {
                sums.fill(0.0);
            }
            for t in document.clone().rev() {
                let at = (b * tokens + t) * width + first;
                // SAFETY: these columns of row b belong to this task.
                add(&mut sums, &dy[at..at + n], unsafe { dx_at.slice(at, n) });
            }
        }
        // SAFETY: as above.
        let out = unsafe { before_at.slice(b * width + first, n) };
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum as f32);
    });
    Ok((dx.tensor()?, d_before.tensor()?))
}

/// sums += x; out = sums.
#[inline(always)]
fn add(sums: &mut [f64; COLUMNS], x: &[f32], out: &mut [f32]) {
    for ((sum, x), out) in sums.iter_mut().zip(x).zip(out) {
        *sum += f64::from(*x);
        *out = *sum as f32;
    }
}
