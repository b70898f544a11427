//! `subquad convert`

use super::evaluate;
use super::format;
use super::plan::RunArgs;
use super::printer::Printer;
use super::progress::Works;
use crate::{Result, run};

/// Run a recipe: convert, evaluate and export a model
///
/// The same command continues a run that was stopped, and skips what is finished and unchanged.
/// Prints the folder of the converted model.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    run: RunArgs,
    /// Start again from the beginning
    #[arg(long)]
    fresh: bool,
}

impl Args {
    pub fn run(&self, printer: &Printer) -> Result<()> {
        let (recipe, plan) = self.run.plan(printer)?;
        printer.note(format_args!(
            "{}: {} tokens in {} steps, about {} and {} of memory on this machine",
            recipe.name,
            format::short(plan.totals.tokens as f64),
            format::count(plan.totals.steps),
            format::seconds(plan.totals.seconds),
            format::bytes(plan.totals.memory),
        ));
        let summary = run::convert(&recipe, &plan, self.fresh, &mut Works::new(printer))?;
        for report in &summary.reports {
            printer.note(format_args!("\n{}", evaluate::rendered(report, true).trim_end()));
        }
        printer.note("");
        printer.data(format_args!("{}\n", summary.model.display()))
    }
}
