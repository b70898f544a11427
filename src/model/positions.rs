//! Where the tokens of a call stand: documents, padding, and the angles and rows of their positions.

use super::frequencies::rotary;
use super::weights::Model;
use crate::arch::Learned;
use crate::ops::Documents;
use crate::ops::rope::Angles;
use crate::{Error, Result};
use std::sync::Arc;

/// Positions count from the first token of each document.
pub struct Positions {
    pub documents: Arc<Documents>,
    /// One for each of the model's rotary positions.
    angles: Vec<Arc<Angles>>,
    /// Rows of learned positions, [B, T].
    rows: Vec<u32>,
}

impl Positions {
    /// Of rows that are one text each from its beginning.
    pub fn whole(model: &Model, batch: usize, tokens: usize) -> Result<Self> {
        Positions::of(model, Documents::whole(batch, tokens), &vec![0; batch], 0)
    }

    /// Of documents whose first goes on after `seen` tokens in each row. `length`: tokens of the longest text once all of
    /// it is read, which is more than the call brings where a text is read in parts.
    pub fn of(model: &Model, documents: Arc<Documents>, seen: &[usize], length: usize) -> Result<Self> {
        let spec = &model.spec;
        let longest = (0..documents.batch()).flat_map(|row| {
            let starts = [seen[row]].into_iter().chain(std::iter::repeat(0));
            documents.row(row).iter().zip(starts).map(|(document, start)| start + document.len())
        });
        let longest = longest.max().unwrap_or(0).max(length);
        let first = seen.first().copied().unwrap_or(0);
        let same = documents.are_whole() && seen.iter().all(|n| *n == first);
        let angles = spec.ropes.iter().map(|rope| match (rotary(rope, longest), same) {
            (rotary, true) => rotary.angles(first, documents.tokens()),
            (rotary, false) => rotary.angles_in(&documents, seen),
        });
        let angles = angles.collect();
        let rows = match spec.positions {
            None => vec![],
            Some(learned) => {
                require(learned, longest)?;
                let of_row = |row| documents.positions(row, seen[row]);
                (0..documents.batch()).flat_map(of_row).map(|p| (p + learned.offset) as u32).collect()
            }
        };
        Ok(Positions { documents, angles, rows })
    }

    /// The angles of a layer; `None` where it has no rotary positions.
    pub(super) fn angles(&self, rope: Option<usize>) -> Option<Arc<Angles>> {
        rope.map(|index| self.angles[index].clone())
    }

    /// Rows of learned positions, one for each token.
    pub(super) fn rows(&self) -> &[u32] {
        &self.rows
    }
}

/// A text has a row for each of its tokens, or none can be made up.
fn require(learned: Learned, tokens: usize) -> Result<()> {
    match tokens <= learned.tokens() {
        true => Ok(()),
        false => Err(Error::usage(
            format!("a text of {tokens} tokens, and this model has learned {} positions", learned.tokens()),
            "shorten the text: there is nothing to take for positions beyond; models with rotary positions go on",
        )),
    }
}
