//! Ends that nobody planned: Ctrl-C and panics.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};

use super::printer::Printer;
use crate::{Error, progress};

/// The first Ctrl-C (or SIGTERM) asks for a stop at the next safe point, the second ends the process at once.
pub(super) fn on_interrupt(printer: &Printer) {
    let printer = printer.clone();
    let asked = AtomicBool::new(false);
    let handler = move || {
        if asked.swap(true, Ordering::SeqCst) {
            process::exit(i32::from(Error::Interrupted.exit_code()));
        }
        progress::interrupt();
        printer.note("\nstopping at the next safe point; press Ctrl-C again to stop at once");
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        tracing::warn!("Ctrl-C ends the process at once: {error}");
    }
}

/// Panics become the report of a bug instead of a trace for programmers; RUST_BACKTRACE brings the trace back.
pub(super) fn report_panics(printer: &Printer) {
    let printer = printer.clone();
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload_as_str().unwrap_or("panic");
        let place = panic.location().map(|at| format!(" ({}:{})", at.file(), at.line()));
        printer.error(&Error::Internal(format!("{message}{}", place.unwrap_or_default())));
        if std::env::var_os("RUST_BACKTRACE").is_some() {
            usual(panic);
        }
    }));
}
