//! `subquad convert`

use std::path::PathBuf;

use super::check::RecipeArgs;
use super::evaluate;
use super::format;
use super::printer::Printer;
use crate::plan::{Machine, Plan, run_folder};
use crate::{Result, run};

/// Do what a recipe says: convert a model, evaluate it, write it
///
/// The same command continues a run that was stopped; what is finished and unchanged is not done twice.
/// Prints the folder of the converted model.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// The run folder [default: runs/NAME of the recipe]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Start again from the beginning
    #[arg(long)]
    fresh: bool,
}

impl Args {
    pub fn run(&self, printer: &Printer) -> Result<()> {
        let recipe = self.recipe.load()?;
        let folder = self.out.clone().unwrap_or_else(|| run_folder(&recipe));
        // What cannot work is refused here, before anything is written.
        let plan = Plan::new(&recipe, &folder, Machine::measure()?)?;
        plan.notes.iter().for_each(|note| printer.warn(note));
        printer.note(format_args!(
            "{}: {} tokens in {} steps, about {} and {} of memory on this machine",
            recipe.name,
            format::short(plan.totals.tokens as f64),
            format::count(plan.totals.steps),
            format::seconds(plan.totals.seconds),
            format::bytes(plan.totals.memory),
        ));
        let summary = run::convert(&recipe, &plan, self.fresh, &mut printer.works())?;
        for report in &summary.reports {
            printer.note(format_args!("\n{}", evaluate::rendered(report, true).trim_end()));
        }
        printer.note("");
        printer.data(format_args!("{}\n", summary.model.display()))
    }
}
