//! `subquad schema`

use super::printer::Printer;
use crate::{Result, recipe};

/// Print the JSON Schema of recipes, for editors
#[derive(clap::Args)]
pub(super) struct Args {}

impl Args {
    pub fn run(&self, printer: &Printer) -> Result<()> {
        printer.data(recipe::schema())
    }
}
