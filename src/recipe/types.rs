//! The typed recipe: plain data, every default filled in, every value possible.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Map, Value as Json};

pub use crate::mixer::{Combine, Window};
pub use crate::stage::StageRecipe;

/// All that one conversion needs to know.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recipe {
    /// The path as it was given, or the name of an embedded recipe.
    pub name: String,
    /// The file, verbatim.
    #[serde(skip)]
    pub text: String,
    /// The folder that relative paths in the recipe start from; `None`: the working directory.
    #[serde(skip)]
    pub base: Option<PathBuf>,
    /// The `--set` arguments that were applied, in order.
    pub sets: Vec<String>,
    /// Seeds initial values and the order of the data.
    pub seed: u64,
    pub teacher: Teacher,
    pub student: Student,
    pub data: Data,
    #[serde(rename = "stage")]
    pub stages: Vec<StageRecipe>,
    pub export: Export,
}

/// The model to convert.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Teacher {
    /// Folder, or `builtin:NAME`.
    pub model: String,
}

/// What attention becomes.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Student {
    /// A name in [`crate::mixer::MIXERS`].
    pub mixer: String,
    /// The mixer's own options that the recipe sets, each valid by its [`crate::mixer::OptionSpec`].
    pub options: Map<String, Json>,
    /// Softmax over the last keys beside the mixer.
    pub window: Option<Window>,
    pub keep_softmax: KeepSoftmax,
}

/// Layers that keep softmax attention.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum KeepSoftmax {
    /// These, counted from 0; in the order of the recipe.
    Layers(Vec<usize>),
    /// The last of every `every` layers: 3, 7, 11, ... for 4.
    Every { every: usize },
}

impl Default for KeepSoftmax {
    fn default() -> Self {
        KeepSoftmax::Layers(Vec::new())
    }
}

impl KeepSoftmax {
    /// Whether the layer (from 0) keeps softmax.
    pub fn keeps(&self, layer: usize) -> bool {
        match self {
            KeepSoftmax::Layers(layers) => layers.contains(&layer),
            KeepSoftmax::Every { every } => (layer + 1).is_multiple_of(*every),
        }
    }

    /// The kept layers of a model with `layers` layers, in order. Listed layers that it does not have are left out:
    /// compare with [`KeepSoftmax::largest`] first.
    pub fn of(&self, layers: usize) -> Vec<usize> {
        (0..layers).filter(|&layer| self.keeps(layer)).collect()
    }

    /// The largest layer that the recipe lists.
    pub fn largest(&self) -> Option<usize> {
        match self {
            KeepSoftmax::Layers(layers) => layers.iter().copied().max(),
            KeepSoftmax::Every { .. } => None,
        }
    }
}

/// What the stages train on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Data {
    /// File, folder, or `builtin:NAME`.
    pub source: String,
    /// Tokens of one training window.
    pub sequence: usize,
}

/// How the converted model is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Export {
    /// Largest size of one safetensors file, in bytes.
    pub shard: u64,
    /// `None`: each tensor as in the teacher.
    pub dtype: Option<Dtype>,
}

/// Number format of exported weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    F32,
    Bf16,
    F16,
}

impl From<Dtype> for candle_core::DType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => candle_core::DType::F32,
            Dtype::Bf16 => candle_core::DType::BF16,
            Dtype::F16 => candle_core::DType::F16,
        }
    }
}
