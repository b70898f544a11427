//! Logs for the curious: to stderr, and only with `-v`.

use std::io::{self, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::printer::Printer;

/// Starts logging at the level that the number of `-v` asks for.
pub(super) fn start(verbose: u8, printer: &Printer) {
    let level = match verbose {
        0 => return,
        1 => "subquad=debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(Above(printer.clone())).with_ansi(false).init();
}

/// Lines above the progress bars.
struct Above(Printer);

impl<'a> MakeWriter<'a> for Above {
    type Writer = &'a Above;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Write for &Above {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.people(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
