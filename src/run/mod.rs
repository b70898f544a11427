//! Executes a recipe in a run folder, and goes on where an earlier run stopped.
//!
//! ```text
//! recipe.toml       the recipe, verbatim
//! plan.json         what was to be done, with memory, disk and time
//! ledger.jsonl      what was finished, with the key of everything that it depended on and checksums of its files
//! metrics.jsonl     one line per optimiser step
//! 1-KIND/           one folder per stage: state.safetensors while it trains, student.safetensors when it is done,
//! 2-KIND/           report.json of an evaluation or a calibration
//! model/            the exported model
//! ```

mod adapter;
mod evaluations;
mod exported;
mod folder;
mod identity;
mod inputs;
mod ledger;
mod ours;
mod report;
mod results;
mod stages;
mod store;
mod teacher;
mod unmerged;

use crate::Result;
use crate::evaluate::Report;
use crate::export::clear_leftovers;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::recipe::Recipe;
pub use evaluations::evaluations_of_run;
use folder::RunFolder;
use inputs::Inputs;
use ledger::{Ledger, Note};
pub use report::{StageReport, TrainingReport};
use stages::Pipeline;
use std::path::{Path, PathBuf};
pub use teacher::{has_teacher, teacher_of_run};
pub use unmerged::{Unmerged, unmerged};

/// Whether a folder is that of a run, finished or not.
pub fn is_run(folder: &Path) -> bool {
    folder.join(ours::LEDGER).is_file()
}

/// What a conversion left behind.
#[derive(Debug)]
pub struct Summary {
    /// The run folder.
    pub folder: PathBuf,
    /// The exported model.
    pub model: PathBuf,
    /// Every evaluation stage's report, in order.
    pub reports: Vec<Report>,
}

/// Runs all stages of the recipe and exports nothing; otherwise as [`convert`]. What the stages reported, in order, up
/// to the one that failed; and how it ended.
pub fn measure(recipe: &Recipe, plan: &Plan, progress: &mut dyn Progress) -> (Vec<StageReport>, Result<()>) {
    let mut reports = vec![];
    let mut work = || {
        let mut folder = RunFolder::open(&plan.folder)?;
        let inputs = Inputs::open(recipe, |index| folder.begun(&plan.stages[index].folder), progress)?;
        begin(&mut folder, recipe, plan, &inputs, false, progress)?;
        let mut conversion = Pipeline::new(recipe, plan, &inputs)?;
        for (index, (stage, planned)) in recipe.stages.iter().zip(&plan.stages).enumerate() {
            let measured = conversion.stage(index, &mut folder, progress)?;
            conversion.require_finite()?;
            reports.push(StageReport::of(&folder, stage, &planned.folder, measured)?);
        }
        Ok(())
    };
    let end = work();
    (reports, end)
}

/// Runs all stages of the recipe as `plan`, made from it, says, and exports the model. A folder that an earlier run of
/// the same recipe left is continued: finished stages whose inputs are unchanged are not done twice. `fresh` starts from
/// nothing.
pub fn convert(recipe: &Recipe, plan: &Plan, fresh: bool, progress: &mut dyn Progress) -> Result<Summary> {
    let mut folder = RunFolder::open(&plan.folder)?;
    let inputs = Inputs::open(recipe, |index| !fresh && folder.begun(&plan.stages[index].folder), progress)?;
    begin(&mut folder, recipe, plan, &inputs, fresh, progress)?;
    let mut conversion = Pipeline::new(recipe, plan, &inputs)?;
    for index in 0..recipe.stages.len() {
        conversion.stage(index, &mut folder, progress)?;
    }
    conversion.merge()?;
    let model = plan.export.folder.clone();
    exported::finish(&conversion, recipe, &inputs, &model, &mut folder, progress)?;
    conversion.require_finite()?;
    Ok(Summary { folder: folder.path().to_path_buf(), model, reports: conversion.reports })
}

/// Begins in a folder, and says why results of an earlier run there are made again.
fn begin(
    folder: &mut RunFolder,
    recipe: &Recipe,
    plan: &Plan,
    inputs: &Inputs,
    fresh: bool,
    progress: &mut dyn Progress,
) -> Result<()> {
    if fresh {
        // A ledger that cannot be read is no reason not to start again.
        if let Ok(Some(ledger)) = Ledger::read(&folder.path().join(ours::LEDGER)) {
            exported::make_replaceable(&plan.export.folder, &ledger, progress)?;
        }
        clear_leftovers(&plan.export.folder)?;
    }
    folder.begin(recipe, plan, fresh)?;
    let ledger = folder.ledger()?;
    if ledger.is_older(plan.stages.iter().map(|stage| stage.folder.as_str())) {
        progress.say("an older version left results without checksums in this folder: they are made again");
    }
    if ledger.note(Note::Teacher, None, &inputs.teacher_digest)?.is_some() {
        progress.say("the teacher is not the one of the earlier run: its results are made again");
    }
    ledger.note(Note::Companions, None, &inputs.companions)?;
    Ok(())
}
