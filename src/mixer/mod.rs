//! Mechanisms that replace softmax attention: one file each, one line in [`MIXERS`].
//!
//! A mixer sees a layer's heads and nothing else: no architecture, no device. Softmax attention is one more mixer, the
//! one that every layer of a teacher uses.

mod hedgehog;
pub mod initial;
pub mod options;
mod softmax;

use crate::ops::Var;
use crate::{Error, Result};
use candle_core::Tensor;
use std::collections::BTreeMap;

pub use initial::{Initial, NewTensor};
pub use options::{OptionKind, OptionSpec, Options};
pub use softmax::Softmax;

/// What is known of a mixer before any model is loaded.
pub struct Registration {
    pub name: &'static str,
    /// One line for lists.
    pub summary: &'static str,
    /// The mathematics in one line.
    pub formula: &'static str,
    /// Paper or code that defines it.
    pub paper: &'static str,
    pub options: &'static [OptionSpec],
    /// Builds the mixer of one layer.
    pub build: Build,
}

/// Makes a mixer from its options, the heads' sizes and the window beside it.
pub type Build = fn(&Options, HeadSizes, Option<Window>) -> Result<Box<dyn Mixer>>;

/// All mixers.
pub static MIXERS: &[Registration] = &[hedgehog::REGISTRATION];

/// The mixer of that name.
pub fn find(name: &str) -> Option<&'static Registration> {
    MIXERS.iter().find(|m| m.name == name)
}

/// Heads of one attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadSizes {
    /// H
    pub heads: usize,
    /// G
    pub kv_heads: usize,
    /// K, and V of the teachers that we know.
    pub width: usize,
}

/// A softmax window beside the linear branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Keys that it sees, the query's own included.
    pub size: usize,
    pub combine: Combine,
}

/// How window and linear branch become one output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Combine {
    /// One normaliser over both, the window weighed by a learned factor per head (LoLCATs).
    Joint,
}

/// Which branches of a mixer take part: evaluation shows what each of them does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Branches {
    Both,
    WindowOnly,
    LinearOnly,
}

/// A layer's q [B, T, H, K], k [B, T, G, K], v [B, T, G, V], after RoPE.
pub struct Heads {
    pub q: Var,
    pub k: Var,
    pub v: Var,
}

/// The tensors of one layer's mixer by their own names, bound to a tape where they train.
#[derive(Default)]
pub struct Bound(pub BTreeMap<String, Var>);

impl Bound {
    pub fn get(&self, name: &str) -> Result<&Var> {
        self.0.get(name).ok_or_else(|| Error::Internal(format!("mixer tensor `{name}` is not bound")))
    }
}

/// What a mixer keeps between calls: f32, plain data.
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

/// A sequence mixer of one layer.
pub trait Mixer: Send + Sync {
    /// Tensors that it adds to the model.
    fn tensors(&self) -> Vec<NewTensor> {
        vec![]
    }

    /// Output [B, T, H, V] of T tokens in chunked form. With a state it continues from it and leaves the state after
    /// the last token; without one it starts from nothing.
    fn mix(&self, heads: &Heads, bound: &Bound, state: Option<&mut State>, branches: Branches) -> Result<Var>;

    /// One token, T = 1, recurrent form.
    fn step(&self, heads: &Heads, bound: &Bound, state: &mut State) -> Result<Tensor>;

    /// Output, and the cross-entropy of its attention weights against softmax attention over the same heads, where
    /// the mixer has weights and `weights` asks for it.
    fn transfer(&self, heads: &Heads, bound: &Bound, weights: bool) -> Result<(Var, Option<Var>)> {
        if weights {
            return Err(Error::usage(
                "this mixer has no attention weights to compare with the teacher's",
                "set `loss.weights = 0` in the attention-transfer stage",
            ));
        }
        Ok((self.mix(heads, bound, None, Branches::Both)?, None))
    }

    /// State bytes of one sequence after `context` tokens.
    fn state_bytes(&self, context: usize) -> usize;
}
