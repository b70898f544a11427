//! The token before: y_t = x_{t-1} (RWKV, arXiv 2305.13048), and mixtures of a token with it.

use crate::Result;
use crate::ops::broadcast::{add, mul};
use crate::ops::cpu::{Output, OutputPointer, Slice};
use crate::ops::documents::Documents;
use crate::ops::elementwise::add_scaled;
use crate::ops::layout::gather::Gather;
use crate::ops::operator::{Operator, apply};
use crate::ops::tape::Var;
use candle_core::Tensor;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Where a token is copied from and to.
enum Move {
    /// `before` of the row to a token.
    First(usize),
    /// Tokens to their followers, which start at the second number.
    Along(Range<usize>, usize),
    /// A token to the row's last.
    Last(usize),
    /// A row without tokens: what was carried in is carried out.
    Through,
}

/// All moves of a row.
fn moves(documents: &Documents, row: usize) -> Vec<Move> {
    let all = documents.row(row);
    let (Some(first), Some(last)) = (all.first(), all.last()) else { return vec![Move::Through] };
    let along = all.iter().map(|d| Move::Along(d.start..d.end - 1, d.start + 1));
    along.chain([Move::First(first.start), Move::Last(last.end - 1)]).collect()
}

/// Rows of elements: x [B, T, ..], and before or last [B, 1, ..].
#[derive(Debug, Clone, Copy)]
struct Sizes {
    tokens: usize,
    width: usize,
}

impl Sizes {
    fn tokens(self, row: usize, tokens: Range<usize>) -> Range<usize> {
        (row * self.tokens + tokens.start) * self.width..(row * self.tokens + tokens.end) * self.width
    }

    fn token(self, row: usize, token: usize) -> Range<usize> {
        self.tokens(row, token..token + 1)
    }

    fn carried(self, row: usize) -> Range<usize> {
        row * self.width..(row + 1) * self.width
    }
}

/// # Safety
/// The range lies in the buffer and belongs to the caller's task.
unsafe fn write(out: OutputPointer, to: Range<usize>, from: &[f32], add: bool) {
    let out = unsafe { out.slice(to.start, to.len()) };
    match add {
        false => out.copy_from_slice(from),
        true => out.iter_mut().zip(from).for_each(|(out, from)| *out += from),
    }
}

/// `x` [B, T, ..] and the token before it, `before` [B, 1, ..] (None: zero), continued by the first document of each
/// row; later documents begin with zero, and padding is zero. Returns the shifted tokens and the last one, [B, 1, ..]:
/// of the row's last document, or `before` where a row has none.
pub fn token_shift(x: &Var, before: Option<&Var>, documents: &Arc<Documents>) -> Result<(Var, Var)> {
    let dims = x.value().dims().to_vec();
    let mut short = dims.clone();
    short.iter_mut().skip(1).take(1).for_each(|tokens| *tokens = 1);
    let before = match before {
        Some(before) => before.clone(),
        None => Var::constant(Tensor::zeros(short.as_slice(), x.value().dtype(), x.value().device())?),
    };
    let fits = dims.len() > 1 && (documents.batch(), documents.tokens()) == (dims[0], dims[1]);
    if !fits || before.value().dims() != short {
        let what = format!("token shift of {dims:?} after {:?}, {documents:?}", before.value().dims());
        return Err(candle_core::Error::Msg(what).into());
    }
    let sizes = Sizes { tokens: dims[1], width: dims[2..].iter().product() };
    let mut vars = apply(TokenShift(sizes, documents.clone()), &[x, &before])?;
    let last = vars.pop().expect("two outputs");
    Ok((vars.pop().expect("two outputs"), last))
}

/// One call. Its inputs are x and the token before.
struct TokenShift(Sizes, Arc<Documents>);

impl Operator for TokenShift {
    type Kept = ();

    /// Tokens and the one before them, picked by their place.
    fn formula(&self, x: &[Tensor]) -> Result<Vec<Tensor>> {
        let (batch, tokens) = (self.1.batch(), self.0.tokens);
        let all = Tensor::cat(&[&x[1], &x[0]], 1)?;
        if self.1.are_whole() {
            let last = all.narrow(1, tokens, 1)?.contiguous()?;
            return Ok(vec![all.narrow(1, 0, tokens)?.contiguous()?, last]);
        }
        // Token t is row 1 + t of its batch row, and the token before them row 0.
        let (mut shifted, mut last) = (vec![None; batch * tokens], vec![None; batch]);
        for b in 0..batch {
            let (from, row) = (b * (tokens + 1), &mut shifted[b * tokens..][..tokens]);
            for step in moves(&self.1, b) {
                match step {
                    Move::First(t) => row[t] = Some(from),
                    Move::Along(sources, to) => sources.enumerate().for_each(|(i, t)| row[to + i] = Some(from + 1 + t)),
                    Move::Last(t) => last[b] = Some(from + 1 + t),
                    Move::Through => last[b] = Some(from),
                }
            }
        }
        let pick = |from: &[Option<usize>], like: &Tensor| -> Result<Tensor> {
            Ok(Gather::new(batch * (tokens + 1), from, all.device())?.of(&all)?.reshape(like.shape())?)
        };
        Ok(vec![pick(&shifted, &x[0])?, pick(&last, &x[1])?])
    }

    fn forward_cpu(&self, x: &[Tensor], _keep: bool) -> Result<(Vec<Tensor>, ())> {
        Ok((forward(self.0, &x[0], &x[1], &self.1)?, ()))
    }

    fn backward_cpu(&self, x: &[Tensor], (): (), wanted: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        let (dx, d_before) = backward(self.0, x[0].dims(), x[1].dims(), up, &self.1)?;
        Ok(vec![wanted[0].then_some(dx), wanted[1].then_some(d_before)])
    }
}

fn forward(sizes: Sizes, x: &Tensor, before: &Tensor, documents: &Documents) -> Result<Vec<Tensor>> {
    let (xs, bs) = (Slice::of(x)?, Slice::of(before)?);
    let (mut y, mut last) = (Output::zeros(x.dims()), Output::unwritten(before.dims()));
    let (y_at, last_at) = (y.pointer(), last.pointer());
    (0..documents.batch()).into_par_iter().for_each(|b| {
        for step in moves(documents, b) {
            // SAFETY: row b of both outputs belongs to this task.
            unsafe {
                match step {
                    Move::First(t) => write(y_at, sizes.token(b, t), &bs[sizes.carried(b)], false),
                    Move::Along(from, to) => {
                        let to = sizes.tokens(b, to..to + from.len());
                        write(y_at, to, &xs[sizes.tokens(b, from)], false);
                    }
                    Move::Last(t) => write(last_at, sizes.carried(b), &xs[sizes.token(b, t)], false),
                    Move::Through => write(last_at, sizes.carried(b), &bs[sizes.carried(b)], false),
                }
            }
        }
    });
    Ok(vec![y.tensor()?, last.tensor()?])
}

/// Every move in the other direction.
fn backward(
    sizes: Sizes,
    dims: &[usize],
    short: &[usize],
    up: &[Tensor],
    documents: &Documents,
) -> Result<(Tensor, Tensor)> {
    let (dy, d_last) = (Slice::of(&up[0])?, Slice::of(&up[1])?);
    let (mut dx, mut d_before) = (Output::zeros(dims), Output::zeros(short));
    let (dx_at, before_at) = (dx.pointer(), d_before.pointer());
    (0..documents.batch()).into_par_iter().for_each(|b| {
        for step in moves(documents, b) {
            // SAFETY: row b of both gradients belongs to this task.
            unsafe {
                match step {
                    Move::First(t) => write(before_at, sizes.carried(b), &dy[sizes.token(b, t)], true),
                    Move::Along(from, to) => {
                        let to = sizes.tokens(b, to..to + from.len());
                        write(dx_at, sizes.tokens(b, from), &dy[to], true);
                    }
                    Move::Last(t) => write(dx_at, sizes.token(b, t), &d_last[sizes.carried(b)], true),
                    Move::Through => write(before_at, sizes.carried(b), &d_last[sizes.carried(b)], true),
                }
            }
        }
    });
    Ok((dx.tensor()?, d_before.tensor()?))
}

/// x + (shifted - x) mu, with `mu` spread over x as in [`crate::ops::broadcast`]: a weight `[D]`, or one number per element.
pub fn lerp(x: &Var, shifted: &Var, mu: &Var) -> Result<Var> {
    add(x, &mul(&add_scaled(shifted, -1.0, x)?, mu)?)
}
