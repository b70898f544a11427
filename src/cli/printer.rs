//! The one place that decides what goes to stdout, to stderr, and to nobody.

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};

use indicatif::{MultiProgress, ProgressDrawTarget};
use serde::Serialize;

use crate::recipe::render;
use crate::{Error, Result};

/// Where a message about stdout says that it happened.
const STDOUT: &str = "standard output";

/// Data to stdout, words for people to stderr, progress bars only on a terminal.
#[derive(Clone)]
pub(super) struct Printer {
    quiet: bool,
    /// Whether stderr takes colours.
    color: bool,
    /// Whether stderr shows bars.
    live: bool,
    /// What is drawn now; lines are printed above it.
    bars: MultiProgress,
}

impl Printer {
    pub fn new(quiet: bool) -> Self {
        let terminal = io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let live = terminal && !quiet;
        let target = if live { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let color = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Printer { quiet, color, live, bars: MultiProgress::with_draw_target(target) }
    }

    /// Data as it is, to stdout, at once.
    pub fn data(&self, text: impl Display) -> Result<()> {
        let write = || {
            let mut out = io::stdout().lock();
            write!(out, "{text}").and_then(|()| out.flush())
        };
        self.bars.suspend(write).map_err(Error::io(STDOUT, "write to it"))
    }

    /// Data as JSON, to stdout.
    pub fn json(&self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value).map_err(|e| Error::Internal(e.to_string()))?;
        self.data(text + "\n")
    }

    /// A line for people; not with `-q`.
    pub fn note(&self, line: impl Display) {
        if !self.quiet {
            self.people(&format!("{line}\n"));
        }
    }

    /// Something that goes on, and that people should know.
    pub fn warn(&self, line: impl Display) {
        let label = if self.color { "\x1b[1;33mwarning:\x1b[0m" } else { "warning:" };
        self.people(&format!("{label} {line}\n"));
    }

    /// An error with its hint.
    pub fn error(&self, error: &Error) {
        self.people(&render(error, self.color));
    }

    /// Whether progress is drawn as bars rather than said in lines.
    pub fn live(&self) -> bool {
        self.live
    }

    pub fn bars(&self) -> &MultiProgress {
        &self.bars
    }

    /// To stderr, above the bars. When stderr is closed nobody can be told.
    pub fn people(&self, text: &str) {
        self.bars.suspend(|| {
            let _ = io::stderr().lock().write_all(text.as_bytes());
        });
    }
}

/// Whether the reader of our output went away: `subquad mixers | head -1` is a success.
pub(super) fn is_closed_pipe(error: &Error) -> bool {
    matches!(error, Error::Io { path, source, .. }
        if source.kind() == ErrorKind::BrokenPipe && path.as_os_str() == STDOUT)
}
