//! Evaluation: perplexity of the student beside its teacher and its controls.

use super::api::{
    MAX_SEQUENCE, Measured, Needs, Registration, RunContext, Stage, StageRecipe, TOKENS, TextNeed, Work, WorkContext,
};
use super::cost::{Cost, F32, PROGRAM, Sizes};
use crate::config::{Flag, Integer, Table, Text};
use crate::evaluate::evaluate;
use crate::{Error, Result};
use serde::Serialize;
use serde_json::Value;

pub(super) const REGISTRATION: Registration =
    Registration { kind: "evaluate", about: "perplexity of student and teacher on a text", read };

/// Tokens that an evaluation runs at once.
const BATCH: usize = 4096;

/// Perplexity of the student beside the teacher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Evaluate {
    /// A file, a folder, `builtin:NAME` or a Hub id, that no stage trains on.
    pub text: String,
    /// Tokens to evaluate; `None`: the whole text.
    pub tokens: Option<u64>,
    /// Tokens of one window; `None`: as in training.
    pub sequence: Option<usize>,
    /// Take `tokens` as windows from all over the text rather than from its beginning.
    pub spread: bool,
}

fn read(t: &mut Table, training_sequence: Option<usize>) -> StageRecipe {
    let before = t.errors();
    let text = t.required(
        "text",
        Text { example: "builtin:books-valid" },
        "\"builtin:books-valid\"",
        "A text that no stage trains on: a .txt or .jsonl file or a folder of them, or `builtin:NAME`.",
    );
    let tokens = t.maybe(
        "tokens",
        TOKENS,
        "How much of the text, from its start or, with `spread`, from all over it. Absent: all of it.",
    );
    let sequence = t.maybe(
        "sequence",
        Integer { min: 2, max: MAX_SEQUENCE },
        "Tokens of one window; each predicts all but its first token. Absent: as in training.",
    );
    let spread = t.optional(
        "spread",
        Flag,
        false,
        "Whether `tokens` are windows at even distances through the whole text: a short evaluation of a long text.",
    );
    if t.errors() == before
        && let (Some(tokens), Some(window)) = (tokens, sequence.or(training_sequence))
        && tokens < window as u64
    {
        let what = format!("`{}.tokens` is {tokens}, less than one window of {window} tokens", t.path());
        t.wrong_at("tokens", what, format!("at least {window}"));
    }
    StageRecipe::new(Evaluate { text, tokens, sequence, spread })
}

impl Stage for Evaluate {
    fn kind(&self) -> &'static str {
        REGISTRATION.kind
    }

    fn settings(&self) -> Result<Value> {
        serde_json::to_value(self).map_err(|e| Error::Internal(e.to_string()))
    }

    fn needs(&self) -> Needs<'_> {
        let Evaluate { text, tokens, sequence, spread } = self;
        let text = TextNeed { name: text, tokens: *tokens, sequence: *sequence, spread: *spread };
        Needs { text: Some(text), reports: true, ..Needs::default() }
    }

    fn work(&self, context: &WorkContext) -> Work {
        let sequence = self.sequence.unwrap_or(context.sequence);
        let windowed = context.student.conversion.window.is_some();
        let cost = cost(&context.sizes(sequence), windowed, BATCH.max(sequence));
        Work { tokens: self.tokens.unwrap_or(u64::MAX).min(context.text_tokens), cost, ..Work::default() }
    }

    fn run(&self, c: &mut RunContext) -> Result<Measured> {
        let text = c.text.ok_or_else(|| Error::Internal(format!("{} has no text", c.name)))?;
        let report = evaluate(c.model, Some(c.student), Some(c.teacher), text, c.progress)?;
        Ok(Measured::Evaluation(Box::new(report)))
    }

    fn read_report(&self, report: Value) -> Result<Measured, serde_json::Error> {
        serde_json::from_value(report).map(|report| Measured::Evaluation(Box::new(report)))
    }
}

/// An evaluation runs the teacher, the student, the student with its attention ablated, and beside a window its two
/// branches alone and the teacher under an untrained window. None of them costs more than the student:
///
/// ```text
/// operations = passes (L 2 block + 2 V D) + L softmax + (passes - 1) (L' mixer + (L - L') softmax)
/// memory = teacher + mixers + n (passes D + the layer at hand: 4 D + 3 ffn) + logits in slices, two at a time
/// ```
fn cost(s: &Sizes, windowed: bool, batch_tokens: usize) -> Cost {
    let passes = if windowed { 6.0 } else { 3.0 };
    let mixed = s.replaced * s.mixer + (s.layers - s.replaced) * s.softmax;
    let frozen = 2.0 * s.layers * s.block + 2.0 * s.head;
    let layer = 4.0 * s.width + (3.0 * s.ffn).max(4.0 * s.queries + 2.0 * s.features);
    let mixers = s.replaced * s.mixer_parameters;
    let held = s.parameters + mixers + batch_tokens as f64 * (passes * s.width + layer) + s.slices(2.0);
    Cost { per_token: passes * frozen + s.layers * s.softmax + (passes - 1.0) * mixed, memory: PROGRAM + F32 * held }
}
