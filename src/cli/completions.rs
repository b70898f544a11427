//! `subquad completions`

use clap_complete::Shell;

use super::printer::Printer;
use crate::Result;

/// Print the completion script of a shell
#[derive(clap::Args)]
pub(super) struct Args {
    /// The shell
    shell: Shell,
}

impl Args {
    pub fn run(&self, printer: &Printer, command: &mut clap::Command) -> Result<()> {
        // Written here first: the generator would panic over a closed pipe.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, command, "subquad", &mut script);
        printer.data(String::from_utf8_lossy(&script))
    }
}
