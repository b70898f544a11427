//! What a recipe says about training.

use serde::Serialize;

/// AdamW (arXiv 1711.05101), torch's form.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Optimizer {
    pub lr: f64,
    pub betas: [f64; 2],
    pub eps: f64,
    pub weight_decay: f64,
    /// Largest global norm of the gradients; `None`: no clipping.
    pub clip: Option<f64>,
}

/// The learning rate over the stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Schedule {
    #[serde(flatten)]
    pub kind: ScheduleKind,
    /// Steps over which the rate rises to `optimizer.lr`.
    pub warmup: u64,
}

/// What happens after the warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Nothing.
    #[default]
    Constant,
    /// Half a cosine down to `min_lr` at the last step.
    Cosine { min_lr: f64 },
    /// Every `every` steps the loss is evaluated; after more than `patience` evaluations without a better one the
    /// rate is multiplied by `factor`, never below `min_lr`.
    Plateau { factor: f64, patience: u64, min_lr: f64, every: u64 },
}

/// How many windows make a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Batch {
    /// Windows computed together.
    pub size: usize,
    /// Batches whose gradients are averaged before an update.
    pub accumulate: usize,
}

impl Schedule {
    /// Whether it evaluates on windows that are not trained on.
    pub fn needs_held_out(&self) -> bool {
        matches!(self.kind, ScheduleKind::Plateau { .. })
    }
}

impl Batch {
    /// Optimiser steps that see at least `tokens` tokens; one at the least.
    pub fn steps(&self, tokens: u64, sequence: usize) -> u64 {
        tokens.div_ceil(self.step_tokens(sequence).max(1)).max(1)
    }

    /// Tokens of one optimiser step.
    pub fn step_tokens(&self, sequence: usize) -> u64 {
        (self.size as u64).saturating_mul(self.accumulate as u64).saturating_mul(sequence as u64)
    }
}
