//! `subquad check`

use super::printer::Printer;
use crate::Result;
use crate::plan;
use crate::recipe::Recipe;

/// Report every error of a recipe at once, with line and column
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
}

/// How every command that reads a recipe is told which.
#[derive(clap::Args)]
pub(super) struct RecipeArgs {
    /// A recipe file, or the name of an embedded recipe (`subquad recipes ls`)
    recipe: String,
    /// Override a key of the recipe, for example --set stage.0.tokens=1M
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl RecipeArgs {
    pub fn load(&self) -> Result<Recipe> {
        Recipe::load(&self.recipe, &self.set)
    }
}

impl Args {
    pub fn run(&self, printer: &Printer) -> Result<()> {
        let recipe = self.recipe.load()?;
        for warning in plan::check(&recipe)? {
            printer.warn(format_args!("{}: {warning}", recipe.name));
        }
        printer.note(format_args!("{}: no errors; `subquad plan {0}` shows what it would do", recipe.name));
        Ok(())
    }
}
