//! Softmax attention over the keys that a query sees ([`AttentionMask`]): all, a window, blocks, pinned first tokens.
//!
//! With scores s_ij = scale q_i.k_j, or c tanh(scale q_i.k_j / c) under a cap c, over the keys j of the query's own document
//! that it sees, and their maximum m_i:
//!
//! ```text
//! num_i = sum_j exp(s_ij - m_i) v_j      den_i = sum_j exp(s_ij - m_i)
//! ```
//!
//! Numerator and denominator come apart so that a linear branch can share the denominator (LoLCATs, arXiv 2410.10254).
//! There m_i changes the function, so its gradient is kept: it flows to the first key that attains the maximum.
//! Padding gives 0 and 0. Time is linear in T unless the span is all keys.

mod cpu;

use crate::ops::Documents;
use crate::ops::attention_mask::{AttentionMask, KvLayout, SequenceChunk, Span};
use crate::ops::cpu::Groups;
use crate::ops::layout::gather::{mask, widened};
use crate::ops::operator::{Operator, apply, on_device};
use crate::ops::tape::Var;
use crate::{Error, Result};
use candle_core::{D, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// Queries whose scores the formula has at a time, and its score of a key that a query does not see: with any real score
/// it is still finite.
pub(crate) const QUERIES: usize = 256;
pub(crate) const UNSEEN: f64 = -1e38;

/// How scores are made of q.k.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    pub scale: f32,
    /// Scores are c tanh(s / c) (Gemma 2).
    pub cap: Option<f32>,
}

impl From<f32> for Scores {
    fn from(scale: f32) -> Self {
        Scores { scale, cap: None }
    }
}

/// Sizes of one call, and what its queries see. Its inputs are q, k, v.
struct Attention {
    groups: Groups,
    /// Query tokens and key tokens.
    queries: usize,
    keys: usize,
    value_width: usize,
    mask: AttentionMask,
    documents: Arc<Documents>,
    past: KvLayout,
    scores: Scores,
}

/// Keys that the queries of a tile see, side by side in the order of their positions: sinks, then spans.
struct Keys {
    mask: AttentionMask,
    /// Columns of the key tensor.
    runs: Vec<Range<usize>>,
    count: usize,
    /// Sinks before the tile's first span.
    sinks: usize,
    /// Position where the first query's span begins, and the first query's own.
    first: usize,
    position: usize,
}

impl Keys {
    fn of(mask: AttentionMask, tile: &SequenceChunk) -> Self {
        let first = mask.first(tile.position);
        let sinks = mask.sinks.min(first);
        let runs = if sinks == first {
            tile.columns(0..tile.end()).collect()
        } else {
            tile.columns(0..sinks).chain(tile.columns(first..tile.end())).collect()
        };
        Keys { mask, runs, count: sinks + tile.end() - first, sinks, first, position: tile.position }
    }

    /// What row `row` of the tile sees: sinks before its span, and its span.
    fn seen(&self, row: usize) -> [Range<usize>; 2] {
        let position = self.position + row;
        let first = self.mask.first(position);
        let sinks = self.sinks + self.mask.sinks.min(first).saturating_sub(self.first);
        [0..sinks, self.sinks + first - self.first..self.sinks + position + 1 - self.first]
    }
}

/// `q` [B, Tq, H, K], `k` [B, past + Tq, G, K], `v` [B, past + Tq, G, V] -> numerator [B, Tq, H, V], denominator
/// [B, Tq, H]. `documents` are those of the queries; `past` says what the keys before them are.
pub fn attention(
    q: &Var,
    k: &Var,
    v: &Var,
    mask: AttentionMask,
    documents: &Arc<Documents>,
    past: &KvLayout,
    scores: impl Into<Scores>,
) -> Result<(Var, Var)> {
    let call = Attention::of([q, k, v].map(Var::value), mask, documents, past, scores.into())?;
    let mut outputs = apply(call, &[q, k, v])?;
    let den = outputs.pop().expect("two outputs");
    Ok((outputs.pop().expect("two outputs"), den))
}

impl Attention {
    /// Of inputs that fit together: every query sees its own key, and the past holds what queries see of it.
    fn of(
        [q, k, v]: [&Tensor; 3],
        mask: AttentionMask,
        documents: &Arc<Documents>,
        past: &KvLayout,
        scores: Scores,
    ) -> Result<Self> {
        let (batch, queries, heads, _) = q.dims4()?;
        let (_, keys, kv_heads, value_width) = v.dims4()?;
        if heads % kv_heads != 0 || k.dim(1)? != keys {
            let what = format!("attention: q {:?}, k {:?}, v {:?}", q.dims(), k.dims(), v.dims());
            return Err(Error::Internal(what));
        }
        if matches!(mask.span, Span::Sliding { size: 0 } | Span::Block { size: 0, .. }) {
            return Err(Error::Internal(format!("attention: {mask:?} sees nothing")));
        }
        if (documents.batch(), documents.tokens()) != (batch, queries) {
            return Err(Error::Internal(format!("attention: {batch} rows of {queries} queries, {documents:?}")));
        }
        let all_sinks = mask.sinks <= past.sink_tokens;
        past.check(documents, keys, |seen| if all_sinks { mask.first(seen) } else { 0 })?;
        let groups = Groups { batch, heads, kv_heads };
        let (documents, past) = (documents.clone(), past.clone());
        Ok(Attention { groups, queries, keys, value_width, mask, documents, past, scores })
    }
}

impl Operator for Attention {
    /// m of every row.
    type Kept = Vec<f32>;

    const F32_FROM: usize = 1;

    /// In blocks of [`QUERIES`] queries, each over the key columns that one of them sees.
    fn formula(&self, x: &[Tensor]) -> Result<Vec<Tensor>> {
        let visible = self.visible();
        let (mut nums, mut dens) = (vec![], vec![]);
        for from in (0..self.queries).step_by(QUERIES) {
            let block = from..(from + QUERIES).min(self.queries);
            let [num, den] = self.block(x, &visible, block)?;
            nums.push(num);
            dens.push(den);
        }
        if nums.is_empty() {
            let Groups { batch, heads, .. } = self.groups;
            let zeros = |shape: &[usize]| Tensor::zeros(shape, x[0].dtype(), x[0].device());
            return Ok(vec![zeros(&[batch, 0, heads, self.value_width])?, zeros(&[batch, 0, heads])?]);
        }
        Ok(vec![Tensor::cat(&nums, 1)?, Tensor::cat(&dens, 1)?])
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

/// The runs of key columns that a query sees, for every query of a row.
type Visible = Vec<Vec<Range<usize>>>;

impl Attention {
    /// Of every row; of one if all are alike.
    fn visible(&self) -> Vec<Visible> {
        let (documents, past) = (&self.documents, &self.past);
        let alike = |row: usize| documents.row(row) == documents.row(0) && past.seen[row] == past.seen[0];
        let rows = if (0..self.groups.batch).all(alike) { self.groups.batch.min(1) } else { self.groups.batch };
        let of_row = |row: usize| {
            let mut runs = vec![vec![]; self.queries];
            for tile in past.tiles(documents, row, 1) {
                runs[tile.tokens.start] = Keys::of(self.mask, &tile).runs;
            }
            runs
        };
        (0..rows).map(of_row).collect()
    }

    /// Numerator [B, n, H, V] and denominator [B, n, H] of the queries of a block.
    fn block(&self, x: &[Tensor], visible: &[Visible], block: Range<usize>) -> Result<[Tensor; 2]> {
        let Groups { batch, heads, kv_heads } = self.groups;
        let (n, group, width) = (block.len(), heads / kv_heads, self.value_width);
        let (dtype, device) = (x[0].dtype(), x[0].device());
        let mut used = vec![false; self.keys];
        let runs = || visible.iter().flat_map(|row| &row[block.clone()]);
        runs().flatten().for_each(|run| used[run.clone()].fill(true));
        let columns: Vec<usize> = (0..self.keys).filter(|&c| used[c]).collect();
        let (Some(&first), Some(&last)) = (columns.first(), columns.last()) else {
            let zeros = |shape: &[usize]| Tensor::zeros(shape, dtype, device);
            return Ok([zeros(&[batch, n, heads, width])?, zeros(&[batch, n, heads])?]);
        };
        let m = columns.len();
        // [B, G, m, _] of keys and values, [B, G, n R, _] of queries.
        let of_keys = |x: &Tensor| -> Result<Tensor> {
            let x = if last + 1 - first == m {
                x.narrow(1, first, m)?
            } else {
                let index: Vec<u32> = columns.iter().map(|&c| c as u32).collect();
                x.index_select(&Tensor::from_vec(index, m, device)?, 1)?
            };
            Ok(x.transpose(1, 2)?.contiguous()?)
        };
        let (k, v) = (of_keys(&x[1])?, of_keys(&x[2])?);
        let q = x[0].narrow(1, block.start, n)?.reshape((batch, n, kv_heads, group, k.dim(3)?))?;
        let q = q.transpose(1, 2)?.contiguous()?.reshape((batch, kv_heads, n * group, k.dim(3)?))?;

        let mut place = vec![0; self.keys];
        columns.iter().enumerate().for_each(|(i, &c)| place[c] = i);
        let mut seen = vec![false; visible.len() * n * m];
        for (row, runs) in seen.chunks_exact_mut(m).zip(runs()) {
            runs.iter().for_each(|run| row[place[run.start]..place[run.end - 1] + 1].fill(true));
        }
        let seen = mask(seen, &[visible.len(), 1, n, 1, m], device)?;
        let weights = self.weights(&q.matmul(&k.t()?)?.reshape((batch, kv_heads, n, group, m))?, &seen)?;

        let back = |x: Tensor, width: usize| -> Result<Tensor> {
            let x = x.reshape((batch, kv_heads, n, group * width))?.transpose(1, 2)?.contiguous()?;
            Ok(x.reshape((batch, n, heads, width))?)
        };
        let num = weights.reshape((batch, kv_heads, n * group, m))?.matmul(&v)?;
        Ok([back(num, width)?, back(weights.sum(D::Minus1)?, 1)?.squeeze(3)?])
    }

    /// exp(s - m) of the products q.k, zero where a query does not see the key.
    fn weights(&self, products: &Tensor, seen: &Tensor) -> Result<Tensor> {
        let Scores { scale, cap } = self.scores;
        let mut scores = (products * f64::from(scale))?;
        if let Some(cap) = cap.map(f64::from) {
            scores = ((scores / cap)?.tanh()? * cap)?;
        }
        let seen = seen.broadcast_as(scores.shape())?;
        let unseen = (scores.zeros_like()? + UNSEEN)?;
        let scores = seen.where_cond(&scores, &unseen)?;
        // Picked by its place, so that one key alone has the maximum's gradient.
        let maximum = scores.gather(&scores.argmax_keepdim(D::Minus1)?, D::Minus1)?;
        let weights = scores.broadcast_sub(&maximum)?.exp()?;
        Ok(seen.where_cond(&weights, &weights.zeros_like()?)?)
    }
}

/// Attention of one token a row without a tile's buffers: `q` [B, 1, H, K] over `k`, `v` [B, past + 1, G, ..].
pub fn attention_step(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: AttentionMask,
    documents: &Arc<Documents>,
    past: &KvLayout,
    scores: impl Into<Scores>,
) -> Result<(Tensor, Tensor)> {
    let (scores, dtype) = (scores.into(), q.dtype());
    let call = Attention::of([q, k, v], mask, documents, past, scores)?;
    let x = [widened(q)?, widened(k)?, widened(v)?];
    let formula = || {
        let mut outputs = call.formula(&x)?;
        let den = outputs.pop().expect("two outputs");
        Ok((outputs.pop().expect("two outputs"), den))
    };
    let (num, den) = on_device(q, || call.step(&x), formula)?;
    Ok((num.to_dtype(dtype)?, den))
}
