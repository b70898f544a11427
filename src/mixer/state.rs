//! What a mixer keeps between calls.

use crate::Result;
use crate::ops::attention_mask::KvLayout;
use candle_core::Tensor;
use std::collections::BTreeMap;

/// f32, plain data: it can be saved, forked and restored.
#[derive(Default)]
pub struct State {
    pub tensors: BTreeMap<&'static str, Tensor>,
    /// Tokens seen by each row, and what is kept of their keys; none: nothing yet.
    pub past: Option<KvLayout>,
}

impl State {
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// What came before the next call of `batch` rows.
    pub fn past(&self, batch: usize) -> KvLayout {
        self.past.clone().unwrap_or_else(|| KvLayout::none(batch))
    }

    /// An independent copy: the two may go on differently.
    pub fn fork(&self) -> Result<State> {
        let copies = self.tensors.iter().map(|(k, t)| Ok((*k, t.copy()?)));
        Ok(State { tensors: copies.collect::<Result<_>>()?, past: self.past.clone() })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.tensors.values().map(|t| t.elem_count() * t.dtype().size_in_bytes()).sum()
    }
}
