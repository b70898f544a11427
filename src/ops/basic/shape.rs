//! Moves of elements, without arithmetic: joining and cutting the last dim, repeating heads, and micro-steps of tokens.

use crate::ops::cpu::simd::{axpy, simd};
use crate::ops::cpu::{Output, Slice};
use crate::ops::tape::{Var, record1};
use crate::{Error, Result};
use candle_core::Tensor;
use rayon::prelude::*;

/// Rows of one task.
const ROWS: usize = 64;

/// A part of the last dim, or of any rows: `width` elements from `from` of every `stride`.
#[derive(Debug, Clone, Copy)]
struct Columns {
    from: usize,
    width: usize,
    stride: usize,
}

/// Copies columns of `x` to columns, equally wide, of as many rows of `out`.
fn copy(x: &Tensor, source: Columns, out: &mut Output, target: Columns) -> Result<()> {
    let xs = Slice::of(x)?;
    if source.width == 0 {
        return Ok(());
    }
    let rows = out.data().par_chunks_mut(ROWS * target.stride).zip(xs.par_chunks(ROWS * source.stride));
    rows.for_each(|(out, x)| {
        for (out, x) in out.chunks_exact_mut(target.stride).zip(x.chunks_exact(source.stride)) {
            out[target.from..][..target.width].copy_from_slice(&x[source.from..][..source.width]);
        }
    });
    Ok(())
}

/// Columns of `x`, alone in their rows.
fn cut(x: &Tensor, source: Columns, dims: &[usize]) -> Result<Tensor> {
    let mut out = Output::unwritten(dims);
    copy(x, source, &mut out, Columns { from: 0, width: source.width, stride: source.width })?;
    out.tensor()
}

/// `x` in its columns, zeros beside it.
fn pad(x: &Tensor, target: Columns, dims: &[usize]) -> Result<Tensor> {
    let mut out = Output::zeros(dims);
    copy(x, Columns { from: 0, width: target.width, stride: target.width }, &mut out, target)?;
    out.tensor()
}

fn wrong<T>(what: String) -> Result<T> {
    Err(Error::Tensor(candle_core::Error::Msg(what)))
}

fn with_last(dims: &[usize], last: usize) -> Vec<usize> {
    let mut dims = dims.to_vec();
    dims.pop();
    dims.push(last);
    dims
}

/// Joins tensors that differ at most in their last dim along it.
pub fn concat_last(parts: &[&Var]) -> Result<Var> {
    let widths: Vec<usize> = parts.iter().map(|x| x.value().dims().last().copied().unwrap_or(0)).collect();
    let stride: usize = widths.iter().sum();
    let dims = match parts.first() {
        Some(x) if x.value().rank() > 0 => with_last(x.value().dims(), stride),
        _ => return wrong("concat of nothing".into()),
    };
    let mut y = Output::unwritten(&dims);
    let mut from = 0;
    let mut places = vec![];
    for (x, &width) in parts.iter().zip(&widths) {
        if with_last(x.value().dims(), stride) != dims {
            return wrong(format!("concat of {:?} to {dims:?}", x.value().dims()));
        }
        let place = Columns { from, width, stride };
        copy(x.value(), Columns { from: 0, width, stride: width }, &mut y, place)?;
        places.push((place, x.tracked()));
        from += width;
    }
    record1(parts, y.tensor()?, move |g| {
        let back = |&(place, wanted): &(Columns, bool)| match wanted {
            true => cut(&g, place, &with_last(&dims, place.width)).map(Some),
            false => Ok(None),
        };
        places.iter().map(back).collect()
    })
}

/// Elements `start..start + len` of the last dim.
pub fn narrow_last(x: &Var, start: usize, len: usize) -> Result<Var> {
    let dims = x.value().dims().to_vec();
    let stride = dims.last().copied().unwrap_or(0);
    if start + len > stride {
        return wrong(format!("{start}..{} of the last of {dims:?}", start + len));
    }
    let place = Columns { from: start, width: len, stride };
    let y = cut(x.value(), place, &with_last(&dims, len))?;
    record1(&[x], y, move |g| Ok(vec![Some(pad(&g, place, &dims)?)]))
}

/// `x` [B, T, G, K] -> [B, T, H, K]: head h is head h / (H/G) of x. G divides H.
pub fn repeat_heads(x: &Var, heads: usize) -> Result<Var> {
    let (batch, tokens, kv_heads, width) = x.value().dims4()?;
    if kv_heads == 0 || width == 0 || !heads.is_multiple_of(kv_heads) {
        return wrong(format!("{:?} repeated to {heads} heads", x.value().dims()));
    }
    let group = heads / kv_heads;
    if group == 1 {
        return Ok(x.clone());
    }
    let y = {
        let xs = Slice::of(x.value())?;
        let mut y = Output::unwritten(&[batch, tokens, heads, width]);
        let rows = y.data().par_chunks_mut(ROWS * group * width).zip(xs.par_chunks(ROWS * width));
        rows.for_each(|(y, x)| {
            for (copies, x) in y.chunks_exact_mut(group * width).zip(x.chunks_exact(width)) {
                copies.chunks_exact_mut(width).for_each(|y| y.copy_from_slice(x));
            }
        });
        y.tensor()?
    };
    record1(&[x], y, move |g| {
        let gs = Slice::of(&g)?;
        let mut dx = Output::zeros(&[batch, tokens, kv_heads, width]);
        let rows = dx.data().par_chunks_mut(ROWS * width).zip(gs.par_chunks(ROWS * group * width));
        rows.for_each(|(dx, g)| {
            simd(|| {
                for (dx, copies) in dx.chunks_exact_mut(width).zip(g.chunks_exact(group * width)) {
                    copies.chunks_exact(width).for_each(|g| axpy(dx, 1.0, g));
                }
            });
        });
        Ok(vec![Some(dx.tensor()?)])
    })
}

/// Micro-step `at` of `n` as columns of a token's elements; the dims with `n` micro-steps and with one.
fn micro_step(dims: &[usize], expanded: bool, n: usize, at: usize) -> Result<(Columns, Vec<usize>)> {
    if dims.len() < 2 || at >= n || (expanded && !dims[1].is_multiple_of(n)) {
        return wrong(format!("micro-step {at} of {n} in {dims:?}"));
    }
    let width: usize = dims[2..].iter().product();
    let mut other = dims.to_vec();
    other[1] = if expanded { dims[1] / n } else { dims[1] * n };
    Ok((Columns { from: at * width, width, stride: n * width }, other))
}

/// `x` [B, T n, ..] -> [B, T, ..]: token t is token t n + at, one of n micro-steps.
pub fn pick_micro_step(x: &Var, n: usize, at: usize) -> Result<Var> {
    let dims = x.value().dims().to_vec();
    let (place, short) = micro_step(&dims, true, n, at)?;
    let y = cut(x.value(), place, &short)?;
    record1(&[x], y, move |g| Ok(vec![Some(pad(&g, place, &dims)?)]))
}

/// `x` [B, T, ..] -> [B, T n, ..]: token t becomes token t n + at, all others are zero. The reverse of
/// [`pick_micro_step`].
pub fn place_micro_step(x: &Var, n: usize, at: usize) -> Result<Var> {
    let dims = x.value().dims().to_vec();
    let (place, long) = micro_step(&dims, false, n, at)?;
    let y = pad(x.value(), place, &long)?;
    record1(&[x], y, move |g| Ok(vec![Some(cut(&g, place, &dims)?)]))
}
