//! What an evaluation says.

use super::text::{Part, Selection};
use serde::{Deserialize, Deserializer, Serialize};

/// One model on one text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// exp of the mean negative log-likelihood.
    #[serde(deserialize_with = "number")]
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
    /// The text as the user named it.
    pub text: String,
    /// A name of the text that any working directory understands: an absolute path, `builtin:NAME`, or a Hub id.
    pub location: String,
    /// Tokens predicted.
    pub tokens: u64,
    /// Tokens of a window; each predicts its last `sequence - 1`.
    pub sequence: usize,
    /// Number of windows.
    pub windows: usize,
    /// The place of the windows in the text.
    pub part: Part,
    /// The evaluated model.
    #[serde(flatten)]
    pub model: Score,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub teacher_perplexity: Option<f64>,
    /// Of every replaced layer, on the first 4096 tokens; none without a teacher.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub layer_errors: Vec<LayerError>,
    /// Controls of a converted model: `window only` and `linear only` switch a branch of it off, with all else as it was
    /// trained; `bare window` is the teacher with nothing but the window, nothing trained; `silent mixer` has zero in
    /// place of every replaced layer's attention.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub controls: Vec<Control>,
}

/// Squared error of what a layer's attention adds to its input, relative to what the teacher's adds to the same input,
/// the teacher's own: 1 is what silence has.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LayerError {
    pub layer: usize,
    #[serde(deserialize_with = "number")]
    pub error: f64,
}

/// JSON has no word for what is not finite and writes `null`.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// A control and its score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Control {
    pub name: String,
    #[serde(flatten)]
    pub score: Score,
}

impl Report {
    /// The selection that evaluates the same windows again.
    pub fn selection(&self) -> Selection {
        let tokens = (self.windows * self.sequence) as u64;
        Selection {
            tokens: (self.part != Part::Whole).then_some(tokens),
            sequence: self.sequence,
            spread: self.part == Part::Spread,
        }
    }

    /// The windows in words: "62 windows of 1024, spread over the text".
    pub fn windows_in_words(&self) -> String {
        let plural = if self.windows == 1 { "" } else { "s" };
        format!("{} window{plural} of {}, {}", self.windows, self.sequence, self.part.description())
    }

    /// Perplexity over the teacher's.
    pub fn ratio(&self) -> Option<f64> {
        self.teacher_perplexity.map(|t| self.model.perplexity / t)
    }

    /// The mean over the layers.
    pub fn layer_error(&self) -> Option<f64> {
        let errors = &self.layer_errors;
        (!errors.is_empty()).then(|| errors.iter().map(|e| e.error).sum::<f64>() / errors.len() as f64)
    }

    /// The score of a control.
    pub fn control(&self, name: &str) -> Option<&Score> {
        self.controls.iter().find(|c| c.name == name).map(|c| &c.score)
    }
}
