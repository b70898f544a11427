//! Causal linear attention, numerator and denominator apart, beside a softmax window or alone.
//!
//! With S_t = S_{t-1} + b_t v_t^T and z_t = z_{t-1} + b_t over the keys of the query's own document:
//!
//! ```text
//! num_i = a_i^T S_e      den_i = a_i . z_e
//! ```
//!
//! Alone, e = i: every key enters with its own query. Beside a window ([`AttentionMask`]) a key enters when it leaves it, and
//! sinks never do, so that each key is seen by one of the two: a sliding window of w keys is a lag, e = i - w.
//! Evaluated in chunks of [`CHUNK`] queries: `num = A S + tril(A B^T) V`, so time and memory are linear in T.

mod cpu;

use crate::ops::Documents;
use crate::ops::attention_mask::{AttentionMask, KvLayout, SequenceChunk, Span};
use crate::ops::chunked::{Chunks, Moves, flat, outer, per_state};
use crate::ops::cpu::Groups;
use crate::ops::layout::gather::{Gather, mask};
use crate::ops::operator::{Operator, apply};
use crate::ops::tape::Var;
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// Queries of one chunk. At F = 128, V = 64 the products inside a chunk cost about as much as those with the state.
pub const CHUNK: usize = 64;

/// One call. Its inputs are a, b, v, and S and z of the state before.
struct CausalLinearAttention {
    groups: Groups,
    queries: usize,
    features: usize,
    value_width: usize,
    beside: Option<AttentionMask>,
    documents: Arc<Documents>,
    past: KvLayout,
}

impl CausalLinearAttention {
    fn chunks(&self, batch: usize) -> impl DoubleEndedIterator<Item = (SequenceChunk, Keys)> + '_ {
        self.past.tiles(&self.documents, batch, CHUNK).map(|tile| {
            let keys = self.keys_of(&tile);
            (tile, keys)
        })
    }

    /// How many positions have entered the state, or never do, once `tokens` tokens have been read.
    fn entered(&self, tokens: usize) -> usize {
        self.beside.map_or(tokens, |mask| mask.left(tokens))
    }

    /// Keys that enter during a chunk of queries.
    fn keys_of(&self, chunk: &SequenceChunk) -> Keys {
        let first = self.entered(chunk.position);
        let positions = first..self.entered(chunk.end());
        let seen: Vec<usize> = (chunk.position..chunk.end()).map(|p| self.entered(p + 1) - first).collect();
        let runs: Vec<_> = chunk.columns(positions.clone()).collect();
        let triangular = runs.len() == 1 && seen.iter().enumerate().all(|(i, &seen)| seen == i + 1);
        Keys { count: positions.len(), runs, seen, triangular }
    }
}

/// Keys that enter the state during a chunk.
struct Keys {
    /// Columns of the key tensor.
    runs: Vec<Range<usize>>,
    count: usize,
    /// How many of them each of the chunk's queries reads.
    seen: Vec<usize>,
    /// One run, of which query i reads the first i + 1: half of the products is nothing.
    triangular: bool,
}

/// What [`linear_attention`] returns.
pub struct LinearAttention {
    /// [B, T, H, V]
    pub num: Var,
    /// [B, T, H]
    pub den: Var,
    /// S after the last key that entered, [B, H, F, V].
    pub state: Var,
    /// z after the last key that entered, [B, H, F].
    pub normaliser: Var,
}

/// `a` [B, T, H, F], `b` [B, past + T, H, F], `v` [B, past + T, G, V], the window `beside` (None: keys enter with their
/// own query), the queries' `documents`, what the keys before them are, and the state before: `state` [B, H, F, V],
/// `normaliser` [B, H, F] (None: zero). The state returned is that of each row's last document.
pub fn linear_attention(
    a: &Var,
    b: &Var,
    v: &Var,
    beside: Option<AttentionMask>,
    documents: &Arc<Documents>,
    past: &KvLayout,
    before: Option<(&Var, &Var)>,
) -> Result<LinearAttention> {
    let (batch, queries, heads, features) = a.value().dims4()?;
    let (_, keys, kv_heads, value_width) = v.value().dims4()?;
    let fits = (documents.batch(), documents.tokens()) == (batch, queries);
    if !fits || b.value().dim(1)? != keys || heads % kv_heads != 0 {
        let dims = [a, b, v].map(|x| x.value().dims());
        return Err(Error::Internal(format!("linear attention: a, b, v {dims:?}, {documents:?}")));
    }
    let groups = Groups { batch, heads, kv_heads };
    let (documents, past) = (documents.clone(), past.clone());
    let call = CausalLinearAttention { groups, queries, features, value_width, beside, documents, past };
    call.past.check(&call.documents, keys, |seen| call.entered(seen))?;
    let (s0, z0) = match before {
        Some((s, z)) => (s.clone(), z.clone()),
        None => {
            let device = v.value().device();
            let zeros = |dims: &[usize]| Ok(Var::constant(Tensor::zeros(dims, DType::F32, device)?)) as Result<_>;
            (zeros(&[batch, heads, features, value_width])?, zeros(&[batch, heads, features])?)
        }
    };
    let vars = apply(call, &[a, b, v, &s0, &z0])?;
    let [num, den, state, normaliser] = vars.try_into().ok().expect("four outputs");
    Ok(LinearAttention { num, den, state, normaliser })
}

impl Operator for CausalLinearAttention {
    type Kept = cpu::Kept;

    const F32_FROM: usize = 1;

    /// The header's chunks, all at once; z is the column of S that values of 1 write.
    fn formula(&self, x: &[Tensor]) -> Result<Vec<Tensor>> {
        let (a, s0, z0) = (&x[0], &x[3], &x[4]);
        let Groups { batch, heads, .. } = self.groups;
        let (features, width) = (self.features, self.value_width);
        let size = self.chunk();
        let chunks = Chunks::of_size(&self.documents, size, a.device())?;
        if chunks.count == 0 {
            let zeros = |shape: &[usize]| Tensor::zeros(shape, a.dtype(), a.device());
            let (num, den) = (zeros(&[batch, self.queries, heads, width])?, zeros(&[batch, self.queries, heads])?);
            return Ok(vec![num, den, s0.clone(), z0.clone()]);
        }
        let entering = self.entering(&chunks, &x[1], &x[2])?;
        let ones = entering.v.narrow(2, 0, 1)?.ones_like()?;
        let v = Tensor::cat(&[&entering.v, &ones], 2)?;
        let moves = Moves { keep: None, write: Some(outer(&entering.b, &v)?), correction: None };
        let way = chunks.advance(&Tensor::cat(&[s0, &z0.unsqueeze(3)?], 3)?, &moves)?;
        let a = flat(&chunks.split(a, heads)?)?;
        let scores = a.matmul(&entering.b.t()?)?.reshape((batch, heads, chunks.count, chunks.size, v.dim(1)?))?;
        let read = entering.read.broadcast_as(scores.shape())?;
        let scores = read.where_cond(&scores, &scores.zeros_like()?)?.flatten(0, 2)?;
        let out = (a.matmul(&way.states)? + scores.matmul(&v)?)?;
        let out = chunks.join(&out.unsqueeze(2)?)?;
        Ok(vec![
            out.narrow(3, 0, width)?.contiguous()?,
            out.narrow(3, width, 1)?.squeeze(3)?.contiguous()?,
            way.last.narrow(3, 0, width)?.contiguous()?,
            way.last.narrow(3, width, 1)?.reshape((batch, heads, features))?,
        ])
    }

    fn forward_cpu(&self, x: &[Tensor], keep: bool) -> Result<(Vec<Tensor>, Self::Kept)> {
        self.forward(x, keep)
    }

    fn backward_cpu(
        &self,
        x: &[Tensor],
        kept: Self::Kept,
        wanted: &[bool],
        up: &[Tensor],
    ) -> Result<Vec<Option<Tensor>>> {
        self.backward(x, kept, wanted, up)
    }
}

/// Keys and values that enter during every chunk, [Z, m, F] and [Z, m, V], and which of them a query reads,
/// [B or 1, 1, chunks or 1, C, m].
struct Entering {
    b: Tensor,
    v: Tensor,
    read: Tensor,
}

impl CausalLinearAttention {
    /// Queries of a chunk of the formula: where a block of keys leaves at once, so many that few chunks hold none.
    fn chunk(&self) -> usize {
        match self.beside.map(|mask| mask.span) {
            Some(Span::Block { size, .. }) => size.clamp(CHUNK, self.queries.max(CHUNK)),
            _ => CHUNK,
        }
    }

    fn entering(&self, chunks: &Chunks, b: &Tensor, v: &Tensor) -> Result<Entering> {
        let Groups { batch, heads, .. } = self.groups;
        let (size, count, device) = (chunks.size, chunks.count, b.device());
        if self.beside.is_none() {
            let own = |x: &Tensor| flat(&chunks.split(&x.narrow(1, self.past.columns(), self.queries)?, heads)?);
            let read = (0..size * size).map(|i| i % size <= i / size).collect();
            return Ok(Entering { b: own(b)?, v: own(v)?, read: mask(read, &[1, 1, 1, size, size], device)? });
        }
        let of_row = |row: usize| self.past.tiles(&self.documents, row, size).map(|tile| self.keys_of(&tile)).collect();
        let rows: Vec<Vec<Keys>> = (0..batch).map(of_row).collect();
        let most = rows.iter().flatten().map(|keys| keys.count).max().unwrap_or(0).max(1);
        let keys = b.dim(1)?;
        let mut columns = vec![None; batch * count * most];
        let mut read = vec![false; batch * count * size * most];
        for (row, all) in rows.iter().enumerate() {
            for (n, of_chunk) in all.iter().enumerate() {
                let chunk = row * count + n;
                let run = of_chunk.runs.iter().cloned().flatten();
                columns[chunk * most..].iter_mut().zip(run).for_each(|(to, column)| *to = Some(row * keys + column));
                let read = read[chunk * size * most..].chunks_exact_mut(most);
                read.zip(&of_chunk.seen).for_each(|(read, &seen)| read[..seen].fill(true));
            }
        }
        let gather = Gather::new(batch * keys, &columns, device)?;
        let laid = |x: &Tensor| -> Result<Tensor> {
            let (_, _, of_x, width) = x.dims4()?;
            flat(&per_state(&gather.of(x)?.reshape((batch, count * most, of_x, width))?, heads, count)?)
        };
        Ok(Entering { b: laid(b)?, v: laid(v)?, read: mask(read, &[batch, 1, count, size, most], device)? })
    }
}
