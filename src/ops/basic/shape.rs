//! Moves of elements, without arithmetic: another shape, joining and cutting the last dim, repeating heads, and micro-steps of tokens.

use crate::Result;
use crate::ops::cpu::simd::{axpy, simd};
use crate::ops::cpu::{Output, Slice};
use crate::ops::operator::{Operator, apply1, misfit};
use crate::ops::tape::Var;
use candle_core::{D, Tensor};
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

fn with_last(dims: &[usize], last: usize) -> Vec<usize> {
    let mut dims = dims.to_vec();
    dims.pop();
    dims.push(last);
    dims
}

impl Var {
    /// The same elements in another shape.
    pub fn reshape(&self, shape: &[usize]) -> Result<Var> {
        let elements = shape.iter().product::<usize>();
        if elements != self.value().elem_count() {
            return misfit(format!("{:?} reshaped to {shape:?}", self.value().dims()));
        }
        apply1(Reshape(shape.to_vec()), &[self])
    }
}

struct Reshape(Vec<usize>);

impl Operator for Reshape {
    /// The dims before.
    type Kept = Vec<usize>;
    const MOVES_ONLY: bool = true;
    const BACKWARD_READS_INPUTS: bool = false;

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![inputs[0].reshape(self.0.as_slice())?])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, Vec<usize>)> {
        Ok((self.formula(inputs)?, inputs[0].dims().to_vec()))
    }

    fn backward_cpu(&self, _: &[Tensor], dims: Vec<usize>, _: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(up[0].reshape(dims)?)])
    }
}

/// Joins tensors that differ at most in their last dim along it.
pub fn concat_last(parts: &[&Var]) -> Result<Var> {
    let widths: Vec<usize> = parts.iter().map(|x| x.value().dims().last().copied().unwrap_or(0)).collect();
    let dims = match parts.first() {
        Some(x) if x.value().rank() > 0 => with_last(x.value().dims(), widths.iter().sum()),
        _ => return misfit("concat of nothing".into()),
    };
    for x in parts {
        if with_last(x.value().dims(), dims[dims.len() - 1]) != dims {
            return misfit(format!("concat of {:?} to {dims:?}", x.value().dims()));
        }
    }
    apply1(Concat { widths, dims }, parts)
}

struct Concat {
    /// Last dims of the parts.
    widths: Vec<usize>,
    dims: Vec<usize>,
}

impl Concat {
    /// Where each part lies in a row.
    fn places(&self) -> impl Iterator<Item = Columns> {
        let stride = self.widths.iter().sum();
        self.widths.iter().scan(0, move |from, &width| {
            let place = Columns { from: *from, width, stride };
            *from += width;
            Some(place)
        })
    }
}

impl Operator for Concat {
    type Kept = ();
    const MOVES_ONLY: bool = true;
    const BACKWARD_READS_INPUTS: bool = false;

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![Tensor::cat(inputs, D::Minus1)?])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, ())> {
        let mut y = Output::unwritten(&self.dims);
        for (x, place) in inputs.iter().zip(self.places()) {
            copy(x, Columns { from: 0, width: place.width, stride: place.width }, &mut y, place)?;
        }
        Ok((vec![y.tensor()?], ()))
    }

    fn backward_cpu(&self, _: &[Tensor], _: (), wanted: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        let back = |(place, wanted): (Columns, &bool)| match wanted {
            true => cut(&up[0], place, &with_last(&self.dims, place.width)).map(Some),
            false => Ok(None),
        };
        self.places().zip(wanted).map(back).collect()
    }
}

/// Columns of rows, alone or with zeros beside them: each undoes the other.
struct Part {
    place: Columns,
    /// Shapes of the whole and of the part.
    whole: Vec<usize>,
    part: Vec<usize>,
}

/// The columns of a whole.
struct Cut(Part);

/// A part among zeros.
struct Pad(Part);

impl Operator for Cut {
    type Kept = ();
    const MOVES_ONLY: bool = true;
    const BACKWARD_READS_INPUTS: bool = false;

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let Part { place, part, .. } = &self.0;
        let rows = inputs[0].reshape((inputs[0].elem_count() / place.stride.max(1), place.stride))?;
        Ok(vec![rows.narrow(1, place.from, place.width)?.reshape(part.as_slice())?])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, ())> {
        Ok((vec![cut(&inputs[0], self.0.place, &self.0.part)?], ()))
    }

    fn backward_cpu(&self, _: &[Tensor], _: (), _: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(pad(&up[0], self.0.place, &self.0.whole)?)])
    }
}

impl Operator for Pad {
    type Kept = ();
    const MOVES_ONLY: bool = true;
    const BACKWARD_READS_INPUTS: bool = false;

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let Part { place, whole, .. } = &self.0;
        let rows = inputs[0].reshape((inputs[0].elem_count() / place.width.max(1), place.width))?;
        let rows = rows.pad_with_zeros(1, place.from, place.stride - place.width - place.from)?;
        Ok(vec![rows.reshape(whole.as_slice())?])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, ())> {
        Ok((vec![pad(&inputs[0], self.0.place, &self.0.whole)?], ()))
    }

    fn backward_cpu(&self, _: &[Tensor], _: (), _: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(cut(&up[0], self.0.place, &self.0.part)?)])
    }
}

/// Elements `start..start + len` of the last dim.
pub fn narrow_last(x: &Var, start: usize, len: usize) -> Result<Var> {
    let whole = x.value().dims().to_vec();
    let stride = whole.last().copied().unwrap_or(0);
    if start + len > stride {
        return misfit(format!("{start}..{} of the last of {whole:?}", start + len));
    }
    let part = with_last(&whole, len);
    apply1(Cut(Part { place: Columns { from: start, width: len, stride }, whole, part }), &[x])
}

/// `x` [B, T, G, K] -> [B, T, H, K]: head h is head h / (H/G) of x. G divides H.
pub fn repeat_heads(x: &Var, heads: usize) -> Result<Var> {
    let (_, _, kv_heads, width) = x.value().dims4()?;
    if kv_heads == 0 || width == 0 || !heads.is_multiple_of(kv_heads) {
        return misfit(format!("{:?} repeated to {heads} heads", x.value().dims()));
    }
    let group = heads / kv_heads;
    if group == 1 {
        return Ok(x.clone());
    }
    apply1(RepeatHeads(group), &[x])
}

/// How often a head is repeated.
struct RepeatHeads(usize);

impl Operator for RepeatHeads {
    type Kept = ();
    const MOVES_ONLY: bool = true;
    const BACKWARD_READS_INPUTS: bool = false;

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let (batch, tokens, heads, width) = inputs[0].dims4()?;
        let copies = inputs[0].unsqueeze(3)?.broadcast_as((batch, tokens, heads, self.0, width))?;
        Ok(vec![copies.reshape((batch, tokens, heads * self.0, width))?])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, ())> {
        let (batch, tokens, heads, width) = inputs[0].dims4()?;
        let group = self.0;
        let xs = Slice::of(&inputs[0])?;
        let mut y = Output::unwritten(&[batch, tokens, heads * group, width]);
        let rows = y.data().par_chunks_mut(ROWS * group * width).zip(xs.par_chunks(ROWS * width));
        rows.for_each(|(y, x)| {
            for (copies, x) in y.chunks_exact_mut(group * width).zip(x.chunks_exact(width)) {
                copies.chunks_exact_mut(width).for_each(|y| y.copy_from_slice(x));
            }
        });
        Ok((vec![y.tensor()?], ()))
    }

    fn backward_cpu(&self, _: &[Tensor], _: (), _: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        let (batch, tokens, heads, width) = up[0].dims4()?;
        let group = self.0;
        let gs = Slice::of(&up[0])?;
        let mut dx = Output::zeros(&[batch, tokens, heads / group, width]);
        let rows = dx.data().par_chunks_mut(ROWS * width).zip(gs.par_chunks(ROWS * group * width));
        rows.for_each(|(dx, g)| {
            simd(|| {
                for (dx, copies) in dx.chunks_exact_mut(width).zip(g.chunks_exact(group * width)) {
                    copies.chunks_exact(width).for_each(|g| axpy(dx, 1.0, g));
                }
            });
        });
        Ok(vec![Some(dx.tensor()?)])
    }
}

/// Micro-step `at` of `n` as columns of a token's elements; the dims with `n` micro-steps and with one.
fn micro_step(dims: &[usize], expanded: bool, n: usize, at: usize) -> Result<(Columns, Vec<usize>)> {
    if dims.len() < 2 || at >= n || (expanded && !dims[1].is_multiple_of(n)) {
        return misfit(format!("micro-step {at} of {n} in {dims:?}"));
    }
    let width: usize = dims[2..].iter().product();
    let mut other = dims.to_vec();
    other[1] = if expanded { dims[1] / n } else { dims[1] * n };
    Ok((Columns { from: at * width, width, stride: n * width }, other))
}

/// `x` [B, T n, ..] -> [B, T, ..]: token t is token t n + at, one of n micro-steps.
pub fn pick_micro_step(x: &Var, n: usize, at: usize) -> Result<Var> {
    let whole = x.value().dims().to_vec();
    let (place, part) = micro_step(&whole, true, n, at)?;
    apply1(Cut(Part { place, whole, part }), &[x])
}

/// `x` [B, T, ..] -> [B, T n, ..]: token t becomes token t n + at, all others are zero. The reverse of
/// [`pick_micro_step`].
pub fn place_micro_step(x: &Var, n: usize, at: usize) -> Result<Var> {
    let part = x.value().dims().to_vec();
    let (place, whole) = micro_step(&part, false, n, at)?;
    apply1(Pad(Part { place, whole, part }), &[x])
}
