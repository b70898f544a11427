//! Progress reporting and cooperative cancellation.

use std::sync::atomic::{AtomicBool, Ordering};

/// The unit of a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Tokens,
    Bytes,
    Items,
}

/// A listener. Calls come from one thread, in order: begin, any number of advance, end.
pub trait Progress {
    /// Work called `what` starts; `start` of `total` were done by an earlier run.
    fn begin(&mut self, what: &str, start: u64, total: u64, unit: Unit);
    /// `done` of the total are done; `note` is short, like `loss 1.234`.
    fn advance(&mut self, done: u64, note: &str);
    /// The work is done; `summary` is one line for the user, or empty.
    fn end(&mut self, summary: &str);
    /// One line for the user, outside any work.
    fn say(&mut self, line: &str);
}

/// Nobody listens.
pub struct Silent;

impl Progress for Silent {
    fn begin(&mut self, _: &str, _: u64, _: u64, _: Unit) {}
    fn advance(&mut self, _: u64, _: &str) {}
    fn end(&mut self, _: &str) {}
    fn say(&mut self, _: &str) {}
}

static STOP: AtomicBool = AtomicBool::new(false);

/// Asks all long work to stop at its next safe point.
pub fn interrupt() {
    STOP.store(true, Ordering::SeqCst);
}

/// `Err(Interrupted)` once [`interrupt`] was called. Work calls it where the state on disk is whole.
pub fn check_interrupt() -> crate::Result<()> {
    if STOP.load(Ordering::SeqCst) { Err(crate::Error::Interrupted) } else { Ok(()) }
}
