//! x w, x + w and x w + b with a small operand spread over a large one, and the sums that take gradients back.
//!
//! A small operand has the trailing dims of x, size 1 where it is spread: [H, K], [H, 1], `[K]` and `[1]` fit x
//! [B, T, H, K], and so do [B, T, H, 1] and the whole shape. Its sizes that are not 1 must be neighbours in x, so that x
//! is [outer, middle, inner] and the operand `[middle]`.

use crate::Result;
use crate::ops::cpu::simd::{axpy, dot, simd, sum};
use crate::ops::cpu::{Output, Slice};
use crate::ops::operator::{Operator, apply1, misfit};
use crate::ops::tape::Var;
use candle_core::{D, Tensor};
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
    apply1(Product(Spread::of(x.value().dims(), y.value().dims())?), &[x, y])
}

struct Product(Spread);

impl Operator for Product {
    type Kept = ();

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![inputs[0].broadcast_mul(&inputs[1])?])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, ())> {
        Ok((vec![self.0.apply(&inputs[0], &inputs[1], |x, y| x * y)?], ()))
    }

    fn backward_cpu(&self, inputs: &[Tensor], _: (), wanted: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        let (x, y, g) = (&inputs[0], &inputs[1], &up[0]);
        let dx = if wanted[0] { Some(self.0.apply(g, y, |g, y| g * y)?) } else { None };
        let dy = if wanted[1] { Some(self.0.gather(g, Some(x), y.dims())?) } else { None };
        Ok(vec![dx, dy])
    }
}

/// x + y with `y` spread over `x`.
pub fn add(x: &Var, y: &Var) -> Result<Var> {
    let dims = y.value().dims().to_vec();
    apply1(Sum { spread: Spread::of(x.value().dims(), &dims)?, dims }, &[x, y])
}

struct Sum {
    spread: Spread,
    /// Of the operand that is spread.
    dims: Vec<usize>,
}

impl Operator for Sum {
    type Kept = ();
    const BACKWARD_READS_INPUTS: bool = false;

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![inputs[0].broadcast_add(&inputs[1])?])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, ())> {
        Ok((vec![self.spread.apply(&inputs[0], &inputs[1], |x, y| x + y)?], ()))
    }

    fn backward_cpu(&self, _: &[Tensor], _: (), wanted: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        let dy = if wanted[1] { Some(self.spread.gather(&up[0], None, &self.dims)?) } else { None };
        Ok(vec![Some(up[0].clone()), dy])
    }
}

/// x weight + bias, each spread over `x` in its own way.
pub fn affine(x: &Var, weight: Option<&Var>, bias: Option<&Var>) -> Result<Var> {
    let y = weight.map_or_else(|| Ok(x.clone()), |weight| mul(x, weight))?;
    bias.map_or_else(|| Ok(y.clone()), |bias| add(&y, bias))
}

/// factor x + shift, both constant.
pub fn scale(x: &Var, factor: f32, shift: f32) -> Result<Var> {
    apply1(Scale { factor, shift }, &[x])
}

struct Scale {
    factor: f32,
    shift: f32,
}

impl Scale {
    /// f(x, factor) of every element.
    fn by_factor(&self, x: &Tensor, f: impl Fn(f32, f32) -> f32 + Sync) -> Result<Tensor> {
        Spread::of(x.dims(), &[])?.apply(x, &Tensor::new(self.factor, x.device())?, f)
    }
}

impl Operator for Scale {
    type Kept = ();
    const BACKWARD_READS_INPUTS: bool = false;

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![inputs[0].affine(f64::from(self.factor), f64::from(self.shift))?])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, ())> {
        let shift = self.shift;
        Ok((vec![self.by_factor(&inputs[0], |x, factor| factor * x + shift)?], ()))
    }

    fn backward_cpu(&self, _: &[Tensor], _: (), _: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(self.by_factor(&up[0], |g, factor| factor * g)?)])
    }
}

/// Sums over the last dim of x y, equal shapes: [.., K] -> [.., 1].
pub fn row_dot(x: &Var, y: &Var) -> Result<Var> {
    let dims = x.value().dims();
    if dims != y.value().dims() || dims.is_empty() {
        return misfit(format!("row dot of {dims:?} and {:?}", y.value().dims()));
    }
    apply1(RowDot, &[x, y])
}

struct RowDot;

/// Rows as the middle that sums are taken for.
fn rows(x: &Tensor) -> Spread {
    let inner = x.dims().last().copied().unwrap_or(1);
    Spread { outer: 1, middle: x.elem_count() / inner.max(1), inner }
}

impl Operator for RowDot {
    type Kept = ();

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![(&inputs[0] * &inputs[1])?.sum_keepdim(D::Minus1)?])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, ())> {
        let mut short = inputs[0].dims().to_vec();
        short.pop();
        short.push(1);
        Ok((vec![rows(&inputs[0]).gather(&inputs[0], Some(&inputs[1]), &short)?], ()))
    }

    fn backward_cpu(&self, inputs: &[Tensor], _: (), wanted: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        let spread = rows(&inputs[0]);
        let by = |wanted: bool, other: &Tensor| match wanted {
            true => spread.apply(other, &up[0], |x, g| x * g).map(Some),
            false => Ok(None),
        };
        Ok(vec![by(wanted[0], &inputs[1])?, by(wanted[1], &inputs[0])?])
    }
}
