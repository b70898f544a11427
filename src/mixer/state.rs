//! What a mixer keeps between calls.

use crate::Result;
use candle_core::Tensor;
use std::collections::BTreeMap;

/// f32, plain data: it can be saved, forked and restored.
#[derive(Default)]
pub struct State {
    pub tensors: BTreeMap<&'static str, Tensor>,
    /// Tokens seen.
    pub seen: usize,
}

impl State {
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// An independent copy: the two may go on differently.
    pub fn fork(&self) -> Result<State> {
        let copies = self.tensors.iter().map(|(k, t)| Ok((*k, t.copy()?)));
        Ok(State { tensors: copies.collect::<Result<_>>()?, seen: self.seen })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.tensors.values().map(|t| t.elem_count() * t.dtype().size_in_bytes()).sum()
    }
}
