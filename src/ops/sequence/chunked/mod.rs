//! What the formulas of the recurrences share: documents in chunks of equal size on any device, heads that share states,
//! and the way of a state over the chunks.
//!
//! Every chunk lies in one document. Behind its end, and behind a row's last chunk, there is nothing: keys, values and
//! log gates are zero there, so states pass unchanged. Chunked tensors are [Z, C, ..] with Z = B N chunks.

pub(crate) mod decay;

use crate::Result;
use crate::ops::documents::Documents;
use crate::ops::layout::gather::{Gather, mask};
use candle_core::{D, Device, Tensor};

/// Tokens of a chunk at most.
const CHUNK: usize = 64;

/// The chunks of a batch's documents.
pub(crate) struct Chunks {
    batch: usize,
    tokens: usize,
    /// Chunks of a row, and C, a power of two.
    pub count: usize,
    pub size: usize,
    /// The tokens of all chunks, and the way back; None: rows are whole, chunks follow each other.
    order: Option<[Gather; 2]>,
    /// Of every chunk: the rows in which it begins a document with nothing before it.
    fresh: Vec<Vec<bool>>,
}

impl Chunks {
    pub fn of(documents: &Documents, device: &Device) -> Result<Self> {
        Self::of_size(documents, CHUNK, device)
    }

    /// Chunks of at most `most` tokens, a power of two.
    pub fn of_size(documents: &Documents, most: usize, device: &Device) -> Result<Self> {
        let (batch, tokens) = (documents.batch(), documents.tokens());
        let longest = (0..batch).flat_map(|row| documents.row(row)).map(|d| d.len()).max().unwrap_or(0);
        let size = most.min(longest.next_power_of_two());
        let rows: Vec<Vec<_>> = (0..batch).map(|row| documents.chunks(row, size).collect()).collect();
        let count = rows.iter().map(Vec::len).max().unwrap_or(0);
        let is_fresh = |n: usize| rows.iter().map(|row| row.get(n).is_some_and(|chunk| chunk.fresh)).collect();
        let fresh = (0..count).map(is_fresh).collect();
        let order = if documents.are_whole() {
            None
        } else {
            let (mut into, mut back) = (vec![None; batch * count * size], vec![None; batch * tokens]);
            for (b, row) in rows.iter().enumerate() {
                for (n, chunk) in row.iter().enumerate() {
                    for (i, token) in chunk.tokens.clone().enumerate() {
                        let place = (b * count + n) * size + i;
                        into[place] = Some(b * tokens + token);
                        back[b * tokens + token] = Some(place);
                    }
                }
            }
            Some([Gather::new(batch * tokens, &into, device)?, Gather::new(into.len(), &back, device)?])
        };
        Ok(Chunks { batch, tokens, count, size, order, fresh })
    }

    /// `x` [B, T, heads, W] -> [Z, C, R, W], where R heads of x share a state, or whole heads are repeated for the states
    /// that share them (R = 1).
    pub fn split(&self, x: &Tensor, states: usize) -> Result<Tensor> {
        let length = self.count * self.size;
        let (_, _, heads, width) = x.dims4()?;
        let x = match &self.order {
            None => x.pad_with_zeros(1, 0, length - self.tokens)?,
            Some([into, _]) => into.of(x)?.reshape((self.batch, length, heads, width))?,
        };
        per_state(&x, states, self.count)
    }

    /// From [Z, C, R, W] to [B, T, N R, W]; padding is zero.
    pub fn join(&self, x: &Tensor) -> Result<Tensor> {
        let (z, _, share, width) = x.dims4()?;
        let (states, length) = (z / (self.batch * self.count), self.count * self.size);
        let x = x.reshape((self.batch, states, length, share, width))?.transpose(1, 2)?.contiguous()?;
        let x = x.reshape((self.batch, length, states * share, width))?;
        match &self.order {
            None => Ok(x.narrow(1, 0, self.tokens)?.contiguous()?),
            Some([_, back]) => Ok(back.of(&x)?.reshape((self.batch, self.tokens, states * share, width))?),
        }
    }

    /// The state [B N, ..] with which chunk n begins.
    fn begin(&self, n: usize, state: Tensor) -> Result<Tensor> {
        if !self.fresh[n].contains(&true) {
            return Ok(state);
        }
        let mut shape = vec![1; state.rank()];
        shape[0] = state.dim(0)?;
        let share = shape[0] / self.batch;
        let fresh = self.fresh[n].iter().flat_map(|fresh| vec![*fresh; share]).collect();
        let fresh = mask(fresh, &shape, state.device())?.broadcast_as(state.shape())?;
        Ok(fresh.where_cond(&state.zeros_like()?, &state)?)
    }
}

/// [B, chunks C, heads, W] -> [Z, C, R, W] as [`Chunks::split`] does.
pub(crate) fn per_state(x: &Tensor, states: usize, chunks: usize) -> Result<Tensor> {
    let (batch, length, heads, width) = x.dims4()?;
    let size = length / chunks;
    if heads < states {
        let repeated = x.transpose(1, 2)?.unsqueeze(2)?;
        let repeated = repeated.broadcast_as((batch, heads, states / heads, length, width))?.contiguous()?;
        return Ok(repeated.reshape((batch * states * chunks, size, 1, width))?);
    }
    let share = heads / states;
    let x = x.reshape((batch, length, states, share, width))?.transpose(1, 2)?.contiguous()?;
    Ok(x.reshape((batch * states * chunks, size, share, width))?)
}

/// What a chunk does to the state S [K, V]: S = keep S + write + removal^T y, with y = solved (known + through S).
pub(crate) struct Moves {
    /// [Z, K or 1, V or 1]; None: all of it.
    pub keep: Option<Tensor>,
    /// [Z, K, V]
    pub write: Option<Tensor>,
    pub correction: Option<Correction>,
}

/// What tokens read of a state that they change: y [Z, C, V].
pub(crate) struct Correction {
    /// [Z, C, C]
    pub solved: Tensor,
    /// [Z, C, V]
    pub known: Tensor,
    /// [Z, C, K]
    pub through: Tensor,
    /// [Z, C, K]
    pub removal: Tensor,
}

/// The way of the states over the chunks.
pub(crate) struct Way {
    /// Before every chunk, [Z, K, V].
    pub states: Tensor,
    /// y, [Z, C, V], where there is a correction.
    pub reads: Option<Tensor>,
    /// After the last chunk, [B, N, K, V].
    pub last: Tensor,
}

impl Chunks {
    /// Takes the states `before` [B, N, K, V] over all chunks.
    pub fn advance(&self, before: &Tensor, moves: &Moves) -> Result<Way> {
        let dims = before.dims4()?;
        let parts = |x: &Tensor| -> Result<Vec<Tensor>> {
            let (_, a, b) = x.dims3()?;
            pieces(&x.reshape((dims.0 * dims.1, self.count, a * b))?)?
                .iter()
                .map(|x| Ok(x.contiguous()?.reshape((dims.0 * dims.1, a, b))?))
                .collect()
        };
        let keep = moves.keep.as_ref().map(parts).transpose()?;
        let write = moves.write.as_ref().map(parts).transpose()?;
        let correction = match &moves.correction {
            Some(c) => {
                let removal = c.removal.transpose(1, 2)?.contiguous()?;
                Some([parts(&c.solved)?, parts(&c.known)?, parts(&c.through)?, parts(&removal)?])
            }
            None => None,
        };
        let mut state = before.reshape((dims.0 * dims.1, dims.2, dims.3))?;
        let (mut states, mut reads) = (vec![], vec![]);
        for n in 0..self.count {
            state = self.begin(n, state)?;
            states.push(state.clone());
            let mut after = match &keep {
                Some(keep) => state.broadcast_mul(&keep[n])?,
                None => state.clone(),
            };
            if let Some(write) = &write {
                after = (after + &write[n])?;
            }
            if let Some([solved, known, through, removal]) = &correction {
                let y = solved[n].matmul(&(&known[n] + through[n].matmul(&state)?)?)?;
                after = (after + removal[n].matmul(&y)?)?;
                reads.push(y);
            }
            state = after;
        }
        let joined = |x: &[Tensor]| Ok(Tensor::stack(x, 1)?.flatten(0, 1)?) as Result<_>;
        let reads = if moves.correction.is_some() { Some(joined(&reads)?) } else { None };
        Ok(Way { states: joined(&states)?, reads, last: state.reshape(dims)? })
    }
}

/// The rows of dimension 1 one by one, by halves: candle's gradient of a part has the size of what it was cut from, so
/// that cutting one by one from the whole would cost the square of their number.
fn pieces(x: &Tensor) -> Result<Vec<Tensor>> {
    let n = x.dim(1)?;
    if n == 1 {
        return Ok(vec![x.clone()]);
    }
    let (first, second) = (pieces(&x.narrow(1, 0, n / 2)?)?, pieces(&x.narrow(1, n / 2, n - n / 2)?)?);
    Ok([first, second].concat())
}

/// x^T y over the tokens of a chunk: [Z, C, K], [Z, C, V] -> [Z, K, V].
pub(crate) fn outer(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    Ok(x.transpose(1, 2)?.contiguous()?.matmul(y)?)
}

/// [Z, C, R, W] -> [Z, C R, W].
pub(crate) fn flat(x: &Tensor) -> Result<Tensor> {
    Ok(x.flatten(1, 2)?)
}

/// x_i . y_i of queries [Z, C, R, K] and keys [Z, C, 1, K]: [Z, C, R, 1].
pub(crate) fn own(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    Ok(x.broadcast_mul(y)?.sum_keepdim(D::Minus1)?)
}
