//! Which keys a query sees, and where the keys before a call lie: what windowed operators share.
//!
//! Positions count the tokens of one document. With p the query's position, r a key's:
//!
//! ```text
//! all      r <= p
//! sliding  p - size < r <= p
//! block    the block of p, floor(p / size) size <= r <= p, and the whole block before it if `previous` (LoLCATs)
//! sinks    r < sinks, besides (pinned first tokens: StreamingLLM, arXiv 2309.17453)
//! ```
//!
//! The keys of a call are `[B, past + T, ..]`: past columns, then the call's own tokens. Only the first document of a
//! row goes on from the past; [`KvLayout`] says which of its tokens the past columns hold.

use crate::ops::Documents;
use crate::ops::cpu::{HeadsView, Output};
use crate::ops::layout::gather::Gather;
use crate::ops::operator::on_device;
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use std::ops::Range;

/// The recent keys that a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    All,
    /// The last `size` keys, the query's own included.
    Sliding {
        size: usize,
    },
    /// Blocks of `size` tokens from the start of the document: the query's own block up to the query, and the whole
    /// block before it if `previous`.
    Block {
        size: usize,
        previous: bool,
    },
}

/// The keys that a query sees: a span, and the first `sinks` keys of the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionMask {
    pub span: Span,
    pub sinks: usize,
}

impl AttentionMask {
    /// Every key so far.
    pub const ALL: AttentionMask = AttentionMask { span: Span::All, sinks: 0 };

    /// The last `size` keys.
    pub fn sliding(size: usize) -> Self {
        AttentionMask { span: Span::Sliding { size }, sinks: 0 }
    }

    /// Where the span of the query at `position` begins.
    pub fn first(&self, position: usize) -> usize {
        match self.span {
            Span::All => 0,
            Span::Sliding { size } => (position + 1).saturating_sub(size),
            Span::Block { size, previous } => (position / size * size).saturating_sub(if previous { size } else { 0 }),
        }
    }

    /// Positions before this one are sinks or out of sight once `tokens` tokens of the document have been read.
    pub fn left(&self, tokens: usize) -> usize {
        self.sinks.max(if tokens == 0 { 0 } else { self.first(tokens - 1) })
    }

    /// Most recent keys that a state has to keep; none: all of them.
    pub fn keeps(&self) -> Option<usize> {
        match self.span {
            Span::All => None,
            Span::Sliding { size } => Some(size),
            Span::Block { size, previous } => Some(if previous { 2 * size } else { size }),
        }
    }
}

/// What the key columns before a call hold.
///
/// With `seen[b]` tokens of row b's continuing document before the call: column c < `sink_tokens` holds position c; the
/// `window_tokens` columns after them hold the last positions, the newest in the last column. A column whose position does not
/// exist, or is already pinned, is never read. So rows of different lengths need one number each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvLayout {
    pub sink_tokens: usize,
    pub window_tokens: usize,
    pub seen: Vec<usize>,
}

impl KvLayout {
    /// Nothing before the call.
    pub fn none(batch: usize) -> Self {
        Self::whole(batch, 0)
    }

    /// `columns` tokens before the call in every row, all kept. As good for a window without sinks whose last
    /// `columns` keys were kept, since distances are all that counts there.
    pub fn whole(batch: usize, columns: usize) -> Self {
        KvLayout { sink_tokens: 0, window_tokens: columns, seen: vec![columns; batch] }
    }

    /// Key columns before the call's own.
    pub fn columns(&self) -> usize {
        self.sink_tokens + self.window_tokens
    }

    /// The past of the next call when `mask` says which keys are kept: those that it sees and, for a linear branch
    /// beside it, those that leave it next.
    pub fn after(&self, documents: &Documents, mask: AttentionMask) -> KvLayout {
        let seen: Vec<usize> = (0..documents.batch())
            .map(|row| {
                let documents = documents.row(row);
                let before = if documents.len() < 2 { self.seen[row] } else { 0 };
                before + documents.last().map_or(0, |d| d.len())
            })
            .collect();
        let longest = seen.iter().copied().max().unwrap_or(0);
        let sink_tokens = mask.sinks.min(longest);
        let window_tokens = mask.keeps().unwrap_or(usize::MAX).min(longest - sink_tokens);
        KvLayout { sink_tokens, window_tokens, seen }
    }

    /// The columns that `after` (of [`KvLayout::after`]) describes, from the `keys` [B, past + T, G, K] of this call;
    /// columns that hold nothing are zero.
    pub fn carry(&self, keys: &Tensor, documents: &Documents, after: &KvLayout) -> Result<Tensor> {
        let formula = || self.carry_formula(keys, documents, after);
        if keys.dtype() != DType::F32 {
            return formula();
        }
        on_device(keys, || self.carry_cpu(keys, documents, after), formula)
    }

    /// Of a row: every column of `after` that holds something, and the column that it comes from.
    fn carried(
        &self,
        documents: &Documents,
        after: &KvLayout,
        row: usize,
    ) -> impl Iterator<Item = (usize, usize)> + use<> {
        let last = documents.row(row).len().saturating_sub(1);
        let (old, new) = (self.columns_of(documents, row, last), after.past_columns(row));
        let seen = after.seen[row];
        let window_tokens = seen.saturating_sub(after.window_tokens).max(after.sink_tokens)..seen;
        (0..after.sink_tokens.min(seen)).chain(window_tokens).map(move |position| {
            let column = |columns: KeyColumns| columns.of(position..position + 1).next().map_or(0, |c| c.start);
            (column(new), column(old))
        })
    }

    fn carry_formula(&self, keys: &Tensor, documents: &Documents, after: &KvLayout) -> Result<Tensor> {
        let (batch, columns, heads, width) = keys.dims4()?;
        let mut from = vec![None; batch * after.columns()];
        for row in 0..batch {
            for (target, source) in self.carried(documents, after, row) {
                from[row * after.columns() + target] = Some(row * columns + source);
            }
        }
        let kept = Gather::new(batch * columns, &from, keys.device())?.of(keys)?;
        Ok(kept.reshape((batch, after.columns(), heads, width))?)
    }

    fn carry_cpu(&self, keys: &Tensor, documents: &Documents, after: &KvLayout) -> Result<Tensor> {
        let from = HeadsView::of(keys)?;
        let mut to = Output::zeros(&[from.batch, after.columns(), from.heads, from.width]);
        let width = from.heads * from.width;
        let rows = to.data().chunks_exact_mut((after.columns() * width).max(1));
        for (row, to) in rows.enumerate() {
            for (target, source) in self.carried(documents, after, row) {
                let to = &mut to[target * width..][..width];
                for (h, to) in to.chunks_exact_mut(from.width).enumerate() {
                    to.copy_from_slice(from.head(row, h, source..source + 1).row(0));
                }
            }
        }
        to.tensor()
    }

    /// For a call of one token a row: the past columns whose keys leave `beside` with it in some row, and for each row
    /// which of them do.
    pub fn leaving(&self, documents: &Documents, beside: AttentionMask) -> (Range<usize>, Vec<Range<usize>>) {
        let of_row = |row: usize| {
            let seen = self.seen[row];
            let positions = beside.left(seen)..beside.left(seen + 1);
            let columns = self.past_columns(row).of(positions).next();
            columns.filter(|_| !documents.row(row).is_empty()).unwrap_or(0..0)
        };
        let rows: Vec<_> = (0..documents.batch()).map(of_row).collect();
        let used = || rows.iter().filter(|r| !r.is_empty());
        let first = used().map(|r| r.start).min().unwrap_or(0);
        let end = used().map(|r| r.end).max().unwrap_or(0);
        let relative = |r: &Range<usize>| if r.is_empty() { 0..0 } else { r.start - first..r.end - first };
        (first..end, rows.iter().map(relative).collect())
    }

    fn past_columns(&self, row: usize) -> KeyColumns {
        KeyColumns { sink_tokens: self.sink_tokens, past: self.columns(), seen: self.seen[row], own: self.columns() }
    }

    /// Where the keys of a row's document lie.
    fn columns_of(&self, documents: &Documents, row: usize, document: usize) -> KeyColumns {
        let own = self.columns() + documents.row(row).get(document).map_or(0, |d| d.start);
        if document > 0 {
            return KeyColumns { sink_tokens: 0, past: own, seen: 0, own };
        }
        KeyColumns { own, ..self.past_columns(row) }
    }

    /// Tiles of at most `size` tokens of a row, none of which spans two documents.
    pub(crate) fn tiles<'a>(
        &'a self,
        documents: &'a Documents,
        row: usize,
        size: usize,
    ) -> impl DoubleEndedIterator<Item = SequenceChunk> + 'a {
        documents.row(row).iter().enumerate().flat_map(move |(i, document)| {
            let columns = self.columns_of(documents, row, i);
            let Range { start, end } = document.clone();
            (0..(end - start).div_ceil(size)).map(move |c| {
                let from = start + c * size;
                let position = columns.seen + c * size;
                SequenceChunk { tokens: from..(from + size).min(end), position, fresh: i > 0 && c == 0, columns }
            })
        })
    }

    /// Errors, all of them bugs of ours, unless documents, past and `keys` key columns fit together and the past holds
    /// every position from `needed(seen)` on that is not pinned.
    pub(crate) fn check(&self, documents: &Documents, keys: usize, needed: impl Fn(usize) -> usize) -> Result<()> {
        let fits = self.seen.len() == documents.batch() && keys == self.columns() + documents.tokens();
        let held = |&seen: &usize| seen.saturating_sub(needed(seen).max(self.sink_tokens)) <= self.window_tokens;
        if fits && self.seen.iter().all(held) {
            return Ok(());
        }
        let (batch, tokens) = (documents.batch(), documents.tokens());
        let what = format!("{keys} keys for {batch} rows of {tokens} tokens, and {self:?} before them");
        Err(Error::Internal(what))
    }
}

/// Consecutive tokens of one document.
pub(crate) struct SequenceChunk {
    pub tokens: Range<usize>,
    /// Position of the first of them.
    pub position: usize,
    /// Starts a document other than the row's first: the state before it is zero.
    pub fresh: bool,
    columns: KeyColumns,
}

impl SequenceChunk {
    pub fn end(&self) -> usize {
        self.position + self.tokens.len()
    }

    /// The key columns of these positions, in their order.
    pub fn columns(&self, positions: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        self.columns.of(positions)
    }
}

/// From positions of a document to key columns.
#[derive(Clone, Copy)]
struct KeyColumns {
    sink_tokens: usize,
    /// Past columns.
    past: usize,
    /// Positions before this one lie in the past.
    seen: usize,
    /// Column of position `seen`.
    own: usize,
}

impl KeyColumns {
    /// Runs of columns; what follows the past without a gap is one run with it.
    fn of(self, positions: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let KeyColumns { sink_tokens, past, seen, own } = self;
        let sink_tokens = sink_tokens.min(seen);
        let window_tokens = if own == past { sink_tokens } else { seen };
        let runs =
            [(0..sink_tokens, 0, 0), (sink_tokens..window_tokens, past, seen), (window_tokens..usize::MAX, own, seen)];
        runs.into_iter().filter_map(move |(run, column, at)| {
            let (start, end) = (positions.start.max(run.start), positions.end.min(run.end));
            (start < end).then(|| column + start - at..column + end - at)
        })
    }
}

/// Runs of columns with the place of each in a buffer that holds them side by side.
pub(crate) fn placed(runs: &[Range<usize>]) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + '_ {
    runs.iter().scan(0, |end, run| {
        let start = *end;
        *end += run.len();
        Some((start..*end, run.clone()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::single_range_in_vec_init, reason = "one run of columns, not the columns")]
    #[test]
    fn columns_of_positions() {
        // Row 0: 9 tokens before, 2 pinned and the last 3 kept; the document goes on after one token of padding.
        let past = KvLayout { sink_tokens: 2, window_tokens: 3, seen: vec![9, 1] };
        let documents = Documents::new(6, vec![vec![1..3, 3..6], vec![0..6]]).unwrap();
        let tiles: Vec<SequenceChunk> = past.tiles(&documents, 0, 8).collect();
        assert_eq!(tiles[0].columns(0..2).chain(tiles[0].columns(6..11)).collect::<Vec<_>>(), [0..2, 2..5, 6..8]);
        assert_eq!((tiles[0].position, tiles[0].fresh, tiles[1].position, tiles[1].fresh), (9, false, 0, true));
        assert!(tiles[1].columns(0..3).eq([(8..11)]));
        // Row 1: one token before, pinned; the other past columns hold nothing.
        let tile = past.tiles(&documents, 1, 8).next().unwrap();
        assert_eq!(tile.columns(0..7).collect::<Vec<_>>(), [0..1, 5..11]);
        let after = past.after(&documents, AttentionMask { span: Span::Sliding { size: 2 }, sinks: 4 });
        assert_eq!(after, KvLayout { sink_tokens: 4, window_tokens: 2, seen: vec![3, 7] });
        assert!(past.check(&documents, 11, |seen| seen.saturating_sub(3)).is_ok());
        assert!(past.check(&documents, 11, |seen| seen.saturating_sub(4)).is_err());
        assert!(past.check(&documents, 10, |_| 9).is_err());
    }

    #[test]
    fn keys_leave() {
        let past = KvLayout { sink_tokens: 1, window_tokens: 2, seen: vec![5, 2, 3, 9] };
        let documents = Documents::new(1, vec![vec![0..1], vec![0..1], vec![0..1], vec![]]).unwrap();
        let beside = AttentionMask { span: Span::Sliding { size: 2 }, sinks: 1 };
        // Row 1: position 0 leaves the span, but is pinned. Row 3: padding.
        assert_eq!(past.leaving(&documents, beside), (1..2, vec![0..1, 0..0, 0..1, 0..0]));
    }
}
