//! y_t = sum over s <= t of x_s, within a document.
//!
//! Running sums are kept in f64, so that the error does not grow with the length of a text.

use crate::Result;
use crate::ops::cpu::{Output, Slice, blocks};
use crate::ops::documents::Documents;
use crate::ops::tape::{Var, record};
use candle_core::Tensor;
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
        None => Var::constant(Output::zeros(&short).tensor()?),
    };
    let fits = dims.len() > 1 && (documents.batch(), documents.tokens()) == (dims[0], dims[1]);
    if !fits || before.value().dims() != short {
        let what = format!("prefix sum of {dims:?} after {:?}, {documents:?}", before.value().dims());
        return Err(candle_core::Error::Msg(what).into());
    }
    let outputs = forward(x.value(), before.value(), documents)?;
    let (documents, wanted) = (documents.clone(), [x.tracked(), before.tracked()]);
    let mut vars = record(&[x, &before], outputs, move |g| {
        let (dx, d_before) = backward(&dims, &short, g, &documents)?;
        Ok(vec![wanted[0].then_some(dx), wanted[1].then_some(d_before)])
    })?;
    let after = vars.pop().expect("two outputs");
    Ok((vars.pop().expect("two outputs"), after))
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
fn backward(
    dims: &[usize],
    short: &[usize],
    g: Vec<Option<Tensor>>,
    documents: &Documents,
) -> Result<(Tensor, Tensor)> {
    let (batch, tokens, width) = (documents.batch(), documents.tokens(), dims[2..].iter().product::<usize>());
    let mut g = g.into_iter();
    let mut next = |dims: &[usize]| g.next().flatten().map_or_else(|| Output::zeros(dims).tensor(), Ok);
    let (dy, d_after) = (next(dims)?, next(short)?);
    let (dy, d_after) = (Slice::of(&dy)?, Slice::of(&d_after)?);
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
