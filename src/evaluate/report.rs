//! What an evaluation says.

use serde::{Deserialize, Serialize};

/// One model on one text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// exp of the mean negative log-likelihood.
    pub perplexity: f64,
    /// Mean KL(teacher || model) per token, nats; absent without a teacher.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kl: Option<f64>,
    /// Share of tokens whose most likely successor is the teacher's; absent without a teacher.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub top1: Option<f64>,
}

/// The evaluated model, its teacher and its controls on the same tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The text's location as given.
    pub text: String,
    /// Tokens predicted.
    pub tokens: u64,
    /// Tokens of a window; each predicts its last `sequence - 1`.
    pub sequence: usize,
    /// The evaluated model.
    #[serde(flatten)]
    pub model: Score,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub teacher_perplexity: Option<f64>,
    /// Controls of a converted model: `window only` and `linear only` switch a branch of it off; `bare window` is the
    /// teacher with nothing but the window, nothing trained.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub controls: Vec<Control>,
}

/// A control and its score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Control {
    pub name: String,
    #[serde(flatten)]
    pub score: Score,
}

impl Report {
    /// Perplexity over the teacher's.
    pub fn ratio(&self) -> Option<f64> {
        self.teacher_perplexity.map(|t| self.model.perplexity / t)
    }
}
