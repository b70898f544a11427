//! The one error type. Every variant says what went wrong and where; [`Error::hint`] says what to do.

use std::ops::Range;
use std::path::{Path, PathBuf};

/// Result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One error in a text that a user wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Bytes of the text; `None` when the error has no place there (a missing table, a `--set`).
    pub span: Option<Range<usize>>,
    /// What is wrong, in one sentence.
    pub what: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Everything that can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder that the user named cannot be used.
    #[error("{}: {what}", .path.display())]
    File { path: PathBuf, what: String, hint: String },
    /// A checkpoint's weights, headers or index are missing, damaged or dishonest.
    #[error("checkpoint {}: {what}", .path.display())]
    Checkpoint { path: PathBuf, what: String, hint: String },
    /// A `config.json` describes something that cannot be built.
    #[error("{}: {what}", .path.display())]
    Config { path: PathBuf, what: String, hint: String },
    /// A tokenizer is missing, unreadable, or of another model.
    #[error("tokenizer {}: {what}", .path.display())]
    Tokenizer { path: PathBuf, what: String, hint: String },
    /// A text to train or evaluate on cannot be used.
    #[error("text {location}: {what}")]
    Text { location: String, what: String, hint: String },
    /// A recipe has errors; all of them.
    #[error("{name}: {} {}", .diagnostics.len(), if .diagnostics.len() == 1 { "error" } else { "errors" })]
    Recipe { name: String, text: String, diagnostics: Vec<Diagnostic> },
    /// A command-line argument has an impossible value.
    #[error("{what}")]
    Usage { what: String, hint: String },
    /// Not enough space to write what must be written.
    #[error("{}: {needed} bytes are needed, {available} are free", .path.display())]
    Disk { path: PathBuf, needed: u64, available: u64 },
    /// A loss, gradient or weight is no longer finite. Nothing was updated with it. Step 0 is that of a stage without any.
    #[error("{}: {place} is not finite", step_of(.stage, *.step))]
    NonFinite { stage: String, step: usize, place: String },
    /// What was written does not equal what was in memory.
    #[error("{what}")]
    Parity { what: String, hint: String },
    /// A run folder cannot be continued.
    #[error("run {}: {what}", .path.display())]
    Run { path: PathBuf, what: String, hint: String },
    /// The Hub has not given or taken something.
    #[error("{repository}: {what}")]
    Hub { repository: String, what: String, hint: String },
    /// The operating system refused.
    #[error("{}: could not {action}: {source}", .path.display())]
    Io { path: PathBuf, action: &'static str, source: std::io::Error },
    /// The user pressed Ctrl-C; the state on disk is whole.
    #[error("interrupted")]
    Interrupted,
    /// A tensor operation failed: a bug of ours.
    #[error("internal error: {0}")]
    Tensor(#[from] candle_core::Error),
    /// Any other state that should be impossible.
    #[error("internal error: {0}")]
    Internal(String),
}

/// The stage, with the step where it has steps.
fn step_of(stage: &str, step: usize) -> String {
    match step {
        0 => stage.into(),
        n => format!("{stage}, step {n}"),
    }
}

impl Error {
    pub fn file(path: impl AsRef<Path>, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Error::File { path: path.as_ref().into(), what: what.into(), hint: hint.into() }
    }

    pub fn checkpoint(path: impl AsRef<Path>, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Error::Checkpoint { path: path.as_ref().into(), what: what.into(), hint: hint.into() }
    }

    pub fn config(path: impl AsRef<Path>, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Error::Config { path: path.as_ref().into(), what: what.into(), hint: hint.into() }
    }

    pub fn tokenizer(path: impl AsRef<Path>, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Error::Tokenizer { path: path.as_ref().into(), what: what.into(), hint: hint.into() }
    }

    pub fn text(location: impl Into<String>, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Error::Text { location: location.into(), what: what.into(), hint: hint.into() }
    }

    pub fn usage(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Error::Usage { what: what.into(), hint: hint.into() }
    }

    pub fn run(path: impl AsRef<Path>, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Error::Run { path: path.as_ref().into(), what: what.into(), hint: hint.into() }
    }

    pub fn hub(repository: impl ToString, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Error::Hub { repository: repository.to_string(), what: what.into(), hint: hint.into() }
    }

    /// For `map_err` on an `std::io::Error`: `fs::read(p).map_err(Error::io(p, "read it"))`.
    pub fn io(path: impl AsRef<Path>, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { path, action, source }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::File { hint, .. }
            | Error::Checkpoint { hint, .. }
            | Error::Config { hint, .. }
            | Error::Tokenizer { hint, .. }
            | Error::Text { hint, .. }
            | Error::Usage { hint, .. }
            | Error::Parity { hint, .. }
            | Error::Hub { hint, .. }
            | Error::Run { hint, .. } => (!hint.is_empty()).then(|| hint.clone()),
            Error::Recipe { .. } => {
                Some("`subquad recipes show quickstart` prints a recipe with every common key".into())
            }
            Error::Disk { .. } => Some("free some space, or choose another place with `--out`".into()),
            Error::NonFinite { step: 0, .. } => Some(
                "choose another mixer or a window, keep softmax in such layers with `student.keep_softmax`, or lower \
                 `optimizer.lr` of a stage that trained before; where the teacher itself is at fault, take another"
                    .into(),
            ),
            Error::NonFinite { .. } => Some(
                "nothing was updated; lower `optimizer.lr` or set `optimizer.clip`, then run the same command again"
                    .into(),
            ),
            Error::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Some("free some space, then run the same command again".into()),
                std::io::ErrorKind::FileTooLarge => Some(
                    "this disk or this shell (`ulimit -f`) takes no file so large: raise the limit, then run the same command again".into(),
                ),
                std::io::ErrorKind::ReadOnlyFilesystem => Some("choose a place that can be written to".into()),
                std::io::ErrorKind::PermissionDenied => Some("check the permissions of this path".into()),
                _ => None,
            },
            Error::Interrupted => Some("run the same command again to continue".into()),
            Error::Tensor(_) | Error::Internal(_) => {
                Some("this is a bug of subquad: please report it with the command and the recipe".into())
            }
        }
    }

    /// Process exit status: 1 the input was wrong, 2 we failed, 130 interrupted.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Interrupted => 130,
            Error::NonFinite { .. } | Error::Parity { .. } | Error::Tensor(_) | Error::Internal(_) => 2,
            _ => 1,
        }
    }
}
