//! The typed recipe: plain data, every default filled in, every value possible.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Map, Value as Json};

pub use crate::mixer::{Combine, Window};
use crate::model::Adapter;
pub use crate::model::Target;
pub use crate::stage::Match;
pub use crate::train::{Batch, Optimizer, Schedule, ScheduleKind};

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

/// One step of the conversion.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum StageRecipe {
    Calibrate(Calibrate),
    AttentionTransfer(AttentionTransfer),
    Lora(Lora),
    Merge,
    Evaluate(Evaluate),
}

/// The mixers' free initial values are set from the teacher's activations; nothing is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Calibrate {
    /// Of the training text that the teacher reads for it.
    pub tokens: u64,
    /// What the scale of every head is set for.
    #[serde(rename = "match")]
    pub rule: Match,
}

/// Every mixer learns the output of the attention that it replaces, on the teacher's own inputs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AttentionTransfer {
    pub tokens: u64,
    pub loss: TransferLoss,
    #[serde(flatten)]
    pub training: Training,
}

/// Weights of the losses of attention transfer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TransferLoss {
    /// Of the mean squared error of head outputs before the output projection.
    pub output: f64,
    /// Of the cross-entropy between attention weights; 0: not computed.
    pub weights: f64,
}

/// Low-rank finetuning of the whole student on next-token labels.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lora {
    pub tokens: u64,
    pub lora: LoraShape,
    pub loss: LoraLoss,
    /// Train the mixers' tensors as well.
    pub train_mixer: bool,
    /// Compute each layer's forward again in the backward pass rather than keep it.
    pub recompute: bool,
    #[serde(flatten)]
    pub training: Training,
}

/// What the low-rank updates look like: `W + alpha / rank * B A`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoraShape {
    pub rank: usize,
    pub alpha: f64,
    #[serde(serialize_with = "words")]
    pub on: Vec<Target>,
    /// Folder of an adapter in PEFT's format to start from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

impl LoraShape {
    /// What a stage of this shape trains.
    pub fn adapter(&self) -> Adapter {
        Adapter { rank: self.rank, alpha: self.alpha, targets: self.on.clone() }
    }
}

fn words<S: serde::Serializer>(on: &[Target], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(on.iter().map(|target| target.word()))
}

/// Weights of the losses of a LoRA stage.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LoraLoss {
    /// Of the cross-entropy of the next token.
    pub labels: f64,
}

/// Perplexity of the student beside the teacher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Evaluate {
    /// File, folder, or `builtin:NAME`, that no stage trains on.
    pub text: String,
    /// Tokens to evaluate; `None`: the whole text.
    pub tokens: Option<u64>,
    /// Tokens of one window; `None`: as in training.
    pub sequence: Option<usize>,
    /// Whether `tokens` are windows from all over the text rather than its beginning.
    pub spread: bool,
}

/// What every stage that trains has.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Training {
    pub optimizer: Optimizer,
    pub schedule: Schedule,
    pub batch: Batch,
    pub checkpoint: Checkpoint,
}

/// How often training state is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Checkpoint {
    /// Steps.
    pub every: u64,
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

impl StageRecipe {
    /// As the recipe writes it.
    pub fn kind(&self) -> &'static str {
        match self {
            StageRecipe::Calibrate(_) => "calibrate",
            StageRecipe::AttentionTransfer(_) => "attention-transfer",
            StageRecipe::Lora(_) => "lora",
            StageRecipe::Merge => "merge",
            StageRecipe::Evaluate(_) => "evaluate",
        }
    }

    /// Budget and training settings of a stage that trains.
    pub fn training(&self) -> Option<(u64, &Training)> {
        match self {
            StageRecipe::AttentionTransfer(stage) => Some((stage.tokens, &stage.training)),
            StageRecipe::Lora(stage) => Some((stage.tokens, &stage.training)),
            StageRecipe::Calibrate(_) | StageRecipe::Merge | StageRecipe::Evaluate(_) => None,
        }
    }
}
