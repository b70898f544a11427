//! Where documents lie in the rows of a batch: no operator carries anything from one document into the next.
//!
//! The first document of a row continues from the state that a call is given, each later one begins with nothing.
//! Tokens outside all documents are padding: they write nothing, decay nothing, read zero, and get no gradient.

use std::ops::Range;
use std::sync::Arc;

use crate::{Error, Result};

/// Documents of every row as ranges of its tokens, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Documents {
    tokens: usize,
    rows: Vec<Vec<Range<usize>>>,
}

/// Consecutive tokens of one document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub tokens: Range<usize>,
    /// Starts a document other than the row's first: the state before it is zero.
    pub fresh: bool,
}

impl Documents {
    /// One document in each of `batch` rows of `tokens` tokens.
    pub fn whole(batch: usize, tokens: usize) -> Arc<Self> {
        #[allow(clippy::single_range_in_vec_init, reason = "one document, not its tokens")]
        Arc::new(Documents { tokens, rows: vec![if tokens > 0 { vec![0..tokens] } else { vec![] }; batch] })
    }

    /// Rows of `tokens` tokens; the ranges of a row ascend, do not overlap and are not empty.
    pub fn new(tokens: usize, rows: Vec<Vec<Range<usize>>>) -> Result<Arc<Self>> {
        for (row, ranges) in rows.iter().enumerate() {
            let mut end = 0;
            for range in ranges {
                if range.start < end || range.end <= range.start || range.end > tokens {
                    let what =
                        format!("document {range:?} of row {row} does not fit its neighbours or {tokens} tokens");
                    return Err(Error::Internal(what));
                }
                end = range.end;
            }
        }
        Ok(Arc::new(Documents { tokens, rows }))
    }

    /// The same with `n` steps in the place of every token.
    pub fn times(self: &Arc<Self>, n: usize) -> Arc<Self> {
        if n == 1 {
            return self.clone();
        }
        let row = |row: &Vec<Range<usize>>| row.iter().map(|d| d.start * n..d.end * n).collect();
        Arc::new(Documents { tokens: self.tokens * n, rows: self.rows.iter().map(row).collect() })
    }

    pub fn batch(&self) -> usize {
        self.rows.len()
    }

    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The documents of a row.
    pub fn row(&self, row: usize) -> &[Range<usize>] {
        &self.rows[row]
    }

    /// Whether each row is one document from end to end.
    pub fn are_whole(&self) -> bool {
        self.rows.iter().all(|row| matches!(&row[..], [one] if one.len() == self.tokens))
    }

    /// Where each token of a row stands in its document, the first of which goes on after `seen` tokens; 0 in padding.
    pub fn positions(&self, row: usize, seen: usize) -> Vec<usize> {
        let mut positions = vec![0; self.tokens];
        for (i, document) in self.rows[row].iter().enumerate() {
            let first = if i == 0 { seen } else { 0 };
            positions[document.clone()].iter_mut().enumerate().for_each(|(at, position)| *position = first + at);
        }
        positions
    }

    /// Chunks of at most `size` tokens of a row, none of which spans two documents.
    pub fn chunks(&self, row: usize, size: usize) -> impl DoubleEndedIterator<Item = Chunk> + '_ {
        self.rows[row].iter().enumerate().flat_map(move |(i, document)| {
            let Range { start, end } = document.clone();
            (0..(end - start).div_ceil(size)).map(move |c| {
                let from = start + c * size;
                Chunk { tokens: from..(from + size).min(end), fresh: i > 0 && c == 0 }
            })
        })
    }

    /// Tokens of a row outside all documents.
    pub fn padding(&self, row: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        let starts = self.rows[row].iter().map(|d| d.start).chain([self.tokens]);
        let ends = [0].into_iter().chain(self.rows[row].iter().map(|d| d.end));
        ends.zip(starts).map(|(from, to)| from..to).filter(|gap| !gap.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::single_range_in_vec_init, reason = "one document, not its tokens")]
    #[test]
    fn chunks_and_padding() {
        let documents = Documents::new(12, vec![vec![2..7, 7..8, 10..12], vec![], vec![0..12]]).unwrap();
        let chunks: Vec<_> = documents.chunks(0, 3).map(|c| (c.tokens, c.fresh)).collect();
        assert_eq!(chunks, [(2..5, false), (5..7, false), (7..8, true), (10..12, true)]);
        assert_eq!(documents.positions(0, 9), [0, 0, 9, 10, 11, 12, 13, 0, 0, 0, 0, 1]);
        assert!(!documents.are_whole() && Documents::whole(2, 3).are_whole());
        assert_eq!(documents.padding(0).collect::<Vec<_>>(), [0..2, 8..10]);
        assert_eq!(documents.padding(1).collect::<Vec<_>>(), [0..12]);
        assert_eq!((documents.chunks(1, 3).count(), documents.padding(2).count()), (0, 0));
        for wrong in [vec![0..3, 2..4], vec![3..3], vec![4..13]] {
            assert!(Documents::new(12, vec![wrong]).is_err());
        }
    }
}
