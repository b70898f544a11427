//! x w, x + w and x w + b with a small operand spread over a large one, and the sums that take gradients back.
//!
//! A small operand has the trailing dims of x, size 1 where it is spread: [H, K], [H, 1], `[K]` and `[1]` fit x
//! [B, T, H, K], and so do [B, T, H, 1] and the whole shape. Its sizes that are not 1 must be neighbours in x, so that x
//! is [outer, middle, inner] and the operand `[middle]`.

use crate::Result;
use crate::ops::cpu::simd::{axpy, dot, simd, sum};
use crate::ops::cpu::{Output, Slice};
use crate::ops::tape::{Var, record1};
use candle_core::Tensor;
use rayon::prelude::*;

/// Elements of one task.
const BLOCK: usize = 1 << 14;
/// Rows whose sum is taken in f32; sums of such blocks are taken in f64.
const ROWS: usize = 64;

/// How a small operand lies in x.
#[derive(Debug, Clone, Copy)]
struct Spread {
    outer: usize,
    middle: usize,
    inner: usize,
}

impl Spread {
    fn of(x: &[usize], small: &[usize]) -> Result<Self> {
        let wrong = || candle_core::Error::Msg(format!("broadcast: {small:?} does not fit {x:?}"));
        let lead = x.len().checked_sub(small.len()).ok_or_else(wrong)?;
        let (mut outer, mut middle, mut inner) = (x[..lead].iter().product::<usize>(), 1, 1);
        for (&n, &m) in x[lead..].iter().zip(small) {
            match (n == m, m) {
                _ if n == 1 && m == 1 => (),
                (true, _) if inner == 1 => middle *= n,
                (false, 1) if middle == 1 => outer *= n,
                (false, 1) => inner *= n,
                _ => return Err(wrong().into()),
            }
        }
        if middle == 1 && inner == 1 {
            // One number for everything: rows of the last dim, so that there is something to vectorise.
            inner = x.last().copied().unwrap_or(1).max(1);
            outer = x.iter().product::<usize>() / inner;
        }
        Ok(Spread { outer, middle, inner })
    }

    /// out[o, m, i] = f(x[o, m, i], small[m]).
    fn apply(self, x: &Tensor, small: &Tensor, f: impl Fn(f32, f32) -> f32 + Sync) -> Result<Tensor> {
        let Spread { middle, inner, .. } = self;
        let (xs, ws) = (Slice::of(x)?, Slice::of(small)?);
        let mut out = Output::unwritten(x.dims());
        out.data().par_chunks_mut(BLOCK).enumerate().for_each(|(task, out)| {
            let (start, end) = (task * BLOCK, task * BLOCK + out.len());
            // Runs along which the operand is read in order, or is one number.
            let run = if inner == 1 { middle } else { inner };
            simd(|| {
                let mut from = start;
                while from < end {
                    let to = ((from / run + 1) * run).min(end);
                    let (out, x) = (&mut out[from - start..to - start], &xs[from..to]);
                    if inner == 1 {
                        let w = &ws[from % run..][..out.len()];
                        (0..out.len()).for_each(|i| out[i] = f(x[i], w[i]));
                    } else {
                        let w = ws[from / run % middle];
                        (0..out.len()).for_each(|i| out[i] = f(x[i], w));
                    }
                    from = to;
                }
            });
        });
        out.tensor()
    }

    /// out[m] = sum over o and i of g[o, m, i] x[o, m, i], of g alone without x; `dims` is the operand's shape.
    fn gather(self, g: &Tensor, x: Option<&Tensor>, dims: &[usize]) -> Result<Tensor> {
        let Spread { outer, middle, inner } = self;
        let (gs, xs) = (Slice::of(g)?, x.map(Slice::of).transpose()?);
        let count = outer.div_ceil(ROWS);
        let mut parts = Output::zeros(&[count, middle]);
        let piece = (BLOCK / ROWS / inner).max(1);
        parts.data().par_chunks_mut(middle.max(1)).enumerate().for_each(|(block, sums)| {
            let rows = block * ROWS..((block + 1) * ROWS).min(outer);
            sums.par_chunks_mut(piece).enumerate().for_each(|(i, sums)| {
                simd(|| {
                    for row in rows.clone() {
                        let at = (row * middle + i * piece) * inner;
                        let g = &gs[at..][..sums.len() * inner];
                        let x = xs.as_ref().map(|x| &x[at..][..sums.len() * inner]);
                        add_products(sums, g, x, inner);
                    }
                });
            });
        });
        if count == 1 {
            return Ok(parts.tensor()?.reshape(dims)?);
        }
        let mut totals = vec![0f64; middle];
        for part in parts.data().chunks_exact(middle.max(1)) {
            totals.iter_mut().zip(part).for_each(|(total, part)| *total += f64::from(*part));
        }
        let mut out = Output::unwritten(dims);
        out.data().iter_mut().zip(totals).for_each(|(out, total)| *out = total as f32);
        out.tensor()
    }
}

/// sums[m] += sum over i of g[m, i] x[m, i].
#[inline(always)]
fn add_products(sums: &mut [f32], g: &[f32], x: Option<&[f32]>, inner: usize) {
    match x {
        None if inner == 1 => axpy(sums, 1.0, g),
        Some(x) if inner == 1 => (0..sums.len()).for_each(|i| sums[i] += g[i] * x[i]),
        None => sums.iter_mut().zip(g.chunks_exact(inner)).for_each(|(s, g)| *s += sum(g)),
        Some(x) => {
            let rows = g.chunks_exact(inner).zip(x.chunks_exact(inner));
            sums.iter_mut().zip(rows).for_each(|(s, (g, x))| *s += dot(g, x));
        }
    }
}

/// x y with `y` spread over `x`: a gate [B, T, H, 1] on [B, T, H, V], a weight [H, K], the same shape.
pub fn mul(x: &Var, y: &Var) -> Result<Var> {
    let spread = Spread::of(x.value().dims(), y.value().dims())?;
    let product = spread.apply(x.value(), y.value(), |x, y| x * y)?;
    let (xt, yt) = (x.value().clone(), y.value().clone());
    let wanted = [x.tracked(), y.tracked()];
    record1(&[x, y], product, move |g| {
        let dx = if wanted[0] { Some(spread.apply(&g, &yt, |g, y| g * y)?) } else { None };
        let dy = if wanted[1] { Some(spread.gather(&g, Some(&xt), yt.dims())?) } else { None };
        Ok(vec![dx, dy])
    })
}

/// x + y with `y` spread over `x`.
pub fn add(x: &Var, y: &Var) -> Result<Var> {
    let spread = Spread::of(x.value().dims(), y.value().dims())?;
    let sum = spread.apply(x.value(), y.value(), |x, y| x + y)?;
    let (dims, want) = (y.value().dims().to_vec(), y.tracked());
    record1(&[x, y], sum, move |g| {
        let dy = if want { Some(spread.gather(&g, None, &dims)?) } else { None };
        Ok(vec![Some(g), dy])
    })
}

/// x weight + bias, each spread over `x` in its own way.
pub fn affine(x: &Var, weight: Option<&Var>, bias: Option<&Var>) -> Result<Var> {
    let y = weight.map_or_else(|| Ok(x.clone()), |weight| mul(x, weight))?;
    bias.map_or_else(|| Ok(y.clone()), |bias| add(&y, bias))
}

/// factor x + shift, both constant.
pub fn scale(x: &Var, factor: f32, shift: f32) -> Result<Var> {
    let constant = Tensor::new(factor, x.value().device())?;
    let spread = Spread::of(x.value().dims(), &[])?;
    let y = spread.apply(x.value(), &constant, |x, factor| factor * x + shift)?;
    record1(&[x], y, move |g| Ok(vec![Some(spread.apply(&g, &constant, |g, factor| factor * g)?)]))
}

/// Sums over the last dim of x y, equal shapes: [.., K] -> [.., 1].
pub fn row_dot(x: &Var, y: &Var) -> Result<Var> {
    let dims = x.value().dims();
    if dims != y.value().dims() || dims.is_empty() {
        let what = format!("row dot of {dims:?} and {:?}", y.value().dims());
        return Err(candle_core::Error::Msg(what).into());
    }
    let mut short = dims.to_vec();
    let inner = short.pop().unwrap_or(1);
    short.push(1);
    let spread = Spread { outer: 1, middle: x.value().elem_count() / inner.max(1), inner };
    let out = spread.gather(x.value(), Some(y.value()), &short)?;
    let (xt, yt) = (x.value().clone(), y.value().clone());
    let wanted = [x.tracked(), y.tracked()];
    record1(&[x, y], out, move |g| {
        let by = |wanted: bool, other: &Tensor| match wanted {
            true => spread.apply(other, &g, |x, g| x * g).map(Some),
            false => Ok(None),
        };
        Ok(vec![by(wanted[0], &yt)?, by(wanted[1], &xt)?])
    })
}
