//! Token ids cut into windows, and the order in which training sees them.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::{Error, Result};

/// Consecutive windows of `T` tokens each; what is left at the end is dropped.
#[derive(Debug, Clone)]
pub struct Windows {
    ids: Vec<u32>,
    sequence: usize,
}

impl Windows {
    /// Cuts `ids` into windows of `sequence` tokens; `location` names the text in messages.
    pub fn new(ids: Vec<u32>, sequence: usize, location: &str) -> Result<Self> {
        if sequence < 2 {
            let what = format!("windows of {sequence} tokens leave nothing to predict");
            return Err(Error::text(location, what, "set the sequence length to 2 or more"));
        }
        if ids.len() < sequence {
            let what = format!("{} tokens do not fill one window of {sequence}", ids.len());
            return Err(Error::text(location, what, "give a longer text, or a shorter sequence length"));
        }
        Ok(Self { ids, sequence })
    }

    /// Number of windows, at least 1.
    pub fn len(&self) -> usize {
        self.ids.len() / self.sequence
    }

    /// Never true: a text that is too short for one window is refused.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of a window, `T`.
    pub fn sequence(&self) -> usize {
        self.sequence
    }

    /// Window `i` in the order of the text, `[T]`. Panics if there are not so many.
    pub fn get(&self, i: usize) -> &[u32] {
        &self.ids[i * self.sequence..][..self.sequence]
    }

    /// About `tokens` tokens of the text: the windows at even distances from its start to its end, in order.
    pub fn spread(&self, tokens: u64) -> Windows {
        let all = self.len();
        let kept = usize::try_from(tokens / self.sequence as u64).unwrap_or(all).clamp(1, all);
        let ids = (0..kept).flat_map(|i| self.get(i * all / kept).iter().copied()).collect();
        Windows { ids, sequence: self.sequence }
    }

    /// The `batch` windows of step `step` (counted from 0), one after the other: `[B, T]`.
    ///
    /// Epochs follow each other without a gap (a batch may lie across two), each is a permutation of all windows, and
    /// both depend on `(seed, step)` alone: a run that goes on from a saved step sees what it would have seen.
    pub fn batch(&self, seed: u64, step: u64, batch: usize) -> Vec<u32> {
        let windows = self.len() as u128;
        let first = u128::from(step) * batch as u128;
        let mut ids = Vec::with_capacity(batch * self.sequence);
        let mut order = (u128::MAX, Vec::new());
        for position in first..first + batch as u128 {
            let epoch = position / windows;
            if order.0 != epoch {
                order = (epoch, permutation(self.len(), seed, epoch));
            }
            ids.extend_from_slice(self.get(order.1[(position % windows) as usize]));
        }
        ids
    }
}

/// Fisher-Yates shuffle of `0..n`, drawn from a generator of this seed and epoch. Written out, and not taken from a library,
/// so that no update of one changes what a seed means.
fn permutation(n: usize, seed: u64, epoch: u128) -> Vec<usize> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..24].copy_from_slice(&epoch.to_le_bytes());
    key[24..].copy_from_slice(b"windows\0");
    let mut random = ChaCha8Rng::from_seed(key);
    let mut order: Vec<usize> = (0..n).collect();
    for last in (1..n).rev() {
        // A multiply-shift instead of a modulus; its bias of (last + 1) / 2^64 is far below anything that could be seen.
        let chosen = ((u128::from(random.next_u64()) * (last as u128 + 1)) >> 64) as usize;
        order.swap(last, chosen);
    }
    order
}
