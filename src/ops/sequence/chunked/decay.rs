//! Decay inside chunks on any device: products of rows with rows, weighed by what the gates let through.
//!
//! As in [`crate::ops::cpu::decay`] with G_i the inclusive cumulative sum of the log gates g <= 0,
//!
//! ```text
//! A_ij = sum_d x_id y_jd e^(G_id - G_jd)      x_i e^(G_i)      y_j e^(G_C - G_j)
//! ```
//!
//! A is made of blocks: of each run of 2s tokens (s = 1, 2, 4, .., C / 2) the later half reads the earlier one in one
//! product around their border, where both exponents are sums of gates, <= 0 whatever the gates are, and none is a
//! difference of larger ones. The tokens' own products are the diagonal.

use crate::Result;
use crate::ops::cpu::decay::Read;
use candle_core::{D, DType, Tensor};

/// Factors of one size of blocks, [Z, C / 2s, s, 1, w].
struct Level {
    /// e^(sum of gates from the border to a later token, its own included).
    rows: Tensor,
    /// e^(sum of gates behind an earlier token, to the border).
    columns: Tensor,
}

/// Factors of the gates of all chunks.
pub(crate) struct Decay {
    levels: Vec<Level>,
    /// e^(G_i) and e^(G_C - G_i), [Z, C, 1, w].
    start: Tensor,
    end: Tensor,
    /// e^(G_C), [Z, w].
    pub keep: Tensor,
}

/// The halves of all runs of 2s tokens: [Z, C, ..] -> two of [Z, C / 2s, s, ..].
fn halves(x: &Tensor, s: usize) -> Result<(Tensor, Tensor)> {
    let mut dims = x.dims().to_vec();
    let runs = dims[1] / (2 * s);
    dims.splice(1..2, [runs, 2, s]);
    let x = x.reshape(dims)?;
    let half = |i: usize| Ok(x.narrow(2, i, 1)?.squeeze(2)?) as Result<_>;
    Ok((half(0)?, half(1)?))
}

impl Decay {
    /// Of log gates [Z, C, 1, w].
    pub fn of(gates: &Tensor) -> Result<Self> {
        let (_, size, _, width) = gates.dims4()?;
        let dtype = gates.dtype();
        // Sums of a gate per token are f64, as the kernels have them, where the device has it (not Metal). Those of gates
        // per channel would double what a formula keeps.
        let wide = width == 1 && !gates.device().is_metal();
        let gates = if wide { gates.to_dtype(DType::F64)? } else { gates.clone() };
        let exp = |x: &Tensor| Ok(x.exp()?.to_dtype(dtype)?) as Result<_>;
        // Of every run of s tokens: sums up to each token, sums behind each, [Z, C, ..], and of all, [Z, C / s, ..].
        let (mut prefix, mut suffix, mut total) = (gates.clone(), gates.zeros_like()?, gates.clone());
        let (mut levels, mut s) = (vec![], 1);
        while s < size {
            let ((earlier, later), (behind_earlier, behind_later)) = (halves(&prefix, s)?, halves(&suffix, s)?);
            let (first, second) = halves(&total, 1)?;
            levels.push(Level { rows: exp(&later)?, columns: exp(&behind_earlier)? });
            let join = |a: Tensor, b: Tensor| Ok(Tensor::cat(&[a, b], 2)?.reshape(gates.shape())?) as Result<_>;
            prefix = join(earlier, later.broadcast_add(&first)?)?;
            suffix = join(behind_earlier.broadcast_add(&second)?, behind_later)?;
            total = (first + second)?.squeeze(2)?;
            s *= 2;
        }
        let keep = exp(&total)?.squeeze(1)?.squeeze(1)?;
        Ok(Decay { levels, start: exp(&prefix)?, end: exp(&suffix)?, keep })
    }
}

/// Factors of a token before its own decay: those of the token before it, 1 for the first. Tokens are dimension `dim`.
fn earlier(factors: &Tensor, dim: usize) -> Result<Tensor> {
    let n = factors.dim(dim)?;
    let one = factors.narrow(dim, 0, 1)?.ones_like()?.detach();
    Ok(Tensor::cat(&[one, factors.narrow(dim, 0, n - 1)?], dim)?)
}

/// x_i e^(G_i) of tokens that read the state before the chunk.
pub(crate) fn from_start(decay: Option<&Decay>, read: Read, x: &Tensor) -> Result<Tensor> {
    Ok(match (decay, read) {
        (None, _) => x.clone(),
        (Some(decay), Read::Before) => x.broadcast_mul(&earlier(&decay.start, 1)?)?,
        (Some(decay), _) => x.broadcast_mul(&decay.start)?,
    })
}

/// y_j e^(G_C - G_j), of what is written into the state after the chunk.
pub(crate) fn to_end(decay: Option<&Decay>, y: &Tensor) -> Result<Tensor> {
    Ok(match decay {
        None => y.clone(),
        Some(decay) => y.broadcast_mul(&decay.end)?,
    })
}

/// The blocks of A below its diagonal, of `x` [Z, C, R, K] and `y` [Z, C, 1, K]: [Z, C / 2s, s R, s] for every s.
pub(crate) fn products(decay: Option<&Decay>, read: Read, x: &Tensor, y: &Tensor) -> Result<Vec<Tensor>> {
    let (size, mut blocks, mut s) = (x.dim(1)?, vec![], 1);
    while s < size {
        let ((_, mut rows), (mut columns, _)) = (halves(x, s)?, halves(y, s)?);
        if let Some(decay) = decay {
            let level = &decay.levels[blocks.len()];
            let factors = if read == Read::Before { earlier(&level.rows, 2)? } else { level.rows.clone() };
            (rows, columns) = (rows.broadcast_mul(&factors)?, columns.broadcast_mul(&level.columns)?);
        }
        let (rows, columns) = (rows.contiguous()?.flatten(2, 3)?, columns.contiguous()?.squeeze(3)?);
        blocks.push(rows.matmul(&columns.t()?)?);
        s *= 2;
    }
    Ok(blocks)
}

/// A [Z, C R, C] from its blocks and its diagonal [Z, C, R, 1].
pub(crate) fn assemble(blocks: &[Tensor], diagonal: &Tensor) -> Result<Tensor> {
    woven(blocks, diagonal, |block, _, _| Ok(block.clone()))
}

/// (1 + L)^-1 [Z, C, C] of the matrix L whose blocks these are, with nothing on its diagonal.
pub(crate) fn inverse(blocks: &[Tensor], like: &Tensor) -> Result<Tensor> {
    let ones = like.narrow(3, 0, 1)?.ones_like()?.detach();
    woven(blocks, &ones, |block, earlier, later| Ok(later.matmul(block)?.matmul(earlier)?.neg()?))
}

/// Joins squares along the diagonal to squares of twice the size, with `corner` between them.
fn woven(
    blocks: &[Tensor],
    diagonal: &Tensor,
    corner: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let mut squares = diagonal.clone();
    for block in blocks {
        let (earlier, later) = halves(&squares, 1)?;
        let (earlier, later) = (earlier.squeeze(2)?.contiguous()?, later.squeeze(2)?.contiguous()?);
        let corner = corner(block, &earlier, &later)?;
        let top = Tensor::cat(&[&earlier, &earlier.zeros_like()?], D::Minus1)?;
        let bottom = Tensor::cat(&[&corner, &later], D::Minus1)?;
        squares = Tensor::cat(&[&top, &bottom], 2)?;
    }
    Ok(squares.squeeze(1)?)
}

/// out_i = sum_{j <= i} a_ij e^(G_i - G_j) * v_j with gates of values: `q` [Z, C, R, K], `k` [Z, C, 1, K],
/// `v` [Z, C, 1, V] -> [Z, C, R, V], where a_ij = q_i . k_j.
pub(crate) fn mixed_values(decay: &Decay, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let (z, size, share, _) = q.dims4()?;
    let width = v.dim(3)?;
    let mut out = super::own(q, k)?.broadcast_mul(v)?;
    for (level, (i, block)) in decay.levels.iter().zip(products(None, Read::After, q, k)?.iter().enumerate()) {
        let s = 1 << i;
        let written = halves(v, s)?.0.broadcast_mul(&level.columns)?.squeeze(3)?;
        let read = block.matmul(&written)?.reshape((z, size / (2 * s), s, share, width))?;
        let read = read.broadcast_mul(&level.rows)?.unsqueeze(2)?;
        let read = Tensor::cat(&[&read.zeros_like()?, &read], 2)?.reshape((z, size, share, width))?;
        out = (out + read)?;
    }
    Ok(out)
}
