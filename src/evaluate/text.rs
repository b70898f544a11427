//! The text of an evaluation: read, tokenised, and cut into the windows that are scored.

use crate::Result;
use crate::checkpoint::Location;
use crate::hub;
use crate::progress::{Progress, Unit};
use crate::text::{Tokenizer, Windows, documents, tokenize};
use serde::{Deserialize, Serialize};

/// The windows of a text that are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Selection {
    /// Tokens to evaluate; `None`: the whole text.
    pub tokens: Option<u64>,
    /// Tokens of a window, `T`.
    pub sequence: usize,
    /// Take `tokens` as windows from all over the text, not from its start.
    pub spread: bool,
}

/// The place of the scored windows in their text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Every window of the text.
    Whole,
    /// Consecutive windows from the start of the text.
    Start,
    /// Windows at even distances over the whole text.
    Spread,
}

impl Part {
    /// Completes "windows of 1024, ...".
    pub fn description(self) -> &'static str {
        match self {
            Part::Whole => "the whole text",
            Part::Start => "from the start of the text",
            Part::Spread => "spread over the text",
        }
    }
}

/// A warning if windows of `sequence` tokens are longer than those of the training, `trained`.
pub fn beyond_training(sequence: usize, trained: usize) -> Option<String> {
    (sequence > trained).then(|| {
        format!(
            "windows of {sequence} tokens are longer than the {trained} that the student is trained at, and a linear \
             branch may do much worse there"
        )
    })
}

/// A tokenised text, cut into windows.
pub struct EvaluationText {
    /// The text as the user named it.
    pub name: String,
    /// A name of the text that any working directory understands: an absolute path, `builtin:NAME`, or a Hub id.
    pub location: String,
    pub part: Part,
    pub windows: Windows,
}

impl EvaluationText {
    /// All of `windows`.
    pub fn new(name: &str, windows: Windows) -> Self {
        EvaluationText { name: name.into(), location: name.into(), part: Part::Whole, windows }
    }

    /// Reads the text at `location`, downloading it where it is on the Hub. A text that is too short for one window is an
    /// error.
    pub fn read(
        name: &str,
        location: &Location,
        selection: Selection,
        tokenizer: &Tokenizer,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        let Selection { tokens, sequence, spread } = selection;
        let documents = documents(&hub::text(location, progress)?)?;
        let first = tokens.filter(|_| !spread).map(|t| usize::try_from(t).unwrap_or(usize::MAX));
        let windows = Windows::new(tokenized(&documents, tokenizer, first, name, progress)?, sequence, name)?;
        let (part, windows) = match tokens {
            None => (Part::Whole, windows),
            Some(tokens) if spread => (Part::Spread, windows.spread(tokens)),
            Some(_) => (Part::Start, windows),
        };
        let location = match location {
            Location::Path(path) => std::fs::canonicalize(path).unwrap_or_else(|_| path.clone()).display().to_string(),
            other => other.to_string(),
        };
        Ok(EvaluationText { name: name.into(), location, part, windows })
    }
}

/// Token ids of documents, at most `limit`, with progress by bytes.
pub(crate) fn tokenized(
    documents: &[String],
    tokenizer: &Tokenizer,
    limit: Option<usize>,
    name: &str,
    progress: &mut dyn Progress,
) -> Result<Vec<u32>> {
    let bytes = documents.iter().map(|d| d.len() as u64).sum();
    progress.begin(&format!("tokenize {name}"), 0, bytes, Unit::Bytes);
    let ids = tokenize(documents, tokenizer, limit, &mut |done| progress.advance(done, ""))?;
    progress.end(&format!("{} tokens", ids.len()));
    Ok(ids)
}
