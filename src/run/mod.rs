//! Executes a recipe in a run folder, and goes on where an earlier run stopped.
//!
//! ```text
//! recipe.toml       the recipe, verbatim
//! plan.json         what was to be done, with memory, disk and time
//! ledger.jsonl      what was finished, with the key of everything that it depended on
//! metrics.jsonl     one line per optimiser step
//! 1-KIND/           one folder per stage: state.safetensors while it trains, student.safetensors when it is done,
//! 2-KIND/           report.json of an evaluation or a calibration
//! model/            the exported model
//! ```

mod adapter;
mod evaluations;
mod folder;
mod identity;
mod inputs;
mod ledger;
mod report;
mod stages;
mod store;
mod unmerged;

use crate::Result;
use crate::evaluate::Report;
use crate::export::{ExportOptions, export};
use crate::plan::Plan;
use crate::progress::Progress;
use crate::recipe::Recipe;
pub use evaluations::evaluations_of_run;
use folder::RunFolder;
use inputs::Inputs;
use ledger::Entry;
pub use report::{StageReport, TrainingReport};
use stages::Pipeline;
use std::path::{Path, PathBuf};
pub use unmerged::{Unmerged, unmerged};

/// Whether a folder is that of a run, finished or not.
pub fn is_run(folder: &Path) -> bool {
    folder.join(folder::LEDGER).is_file()
}

/// Where the teacher of a run was found.
pub fn teacher_of_run(folder: &Path) -> Option<String> {
    let bytes = std::fs::read(folder.join(folder::PLAN)).ok()?;
    let plan: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    plan["teacher"]["model"].as_str().map(String::from)
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
        folder.begin(recipe, plan, false)?;
        let mut conversion = Pipeline::new(recipe, plan, &inputs)?;
        for (index, (stage, planned)) in recipe.stages.iter().zip(&plan.stages).enumerate() {
            conversion.stage(index, &mut folder, progress)?;
            conversion.require_finite()?;
            reports.push(StageReport::read(&folder, stage, &planned.folder)?);
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
    folder.begin(recipe, plan, fresh)?;
    let mut conversion = Pipeline::new(recipe, plan, &inputs)?;
    for index in 0..recipe.stages.len() {
        conversion.stage(index, &mut folder, progress)?;
    }
    conversion.merge()?;
    let model = plan.export.folder.clone();
    let key = conversion.export_key()?;
    if folder.ledger()?.finished("export", &key).is_some() && model.join("config.json").exists() {
        progress.say(&format!("{}: unchanged", model.display()));
    } else {
        let started = std::time::Instant::now();
        let dtype = recipe.export.dtype.map(Into::into);
        let options = ExportOptions { shard_bytes: recipe.export.shard, dtype, base: None };
        let exported = export(
            &conversion.model,
            &conversion.student,
            &inputs.checkpoint,
            &recipe.text,
            &options,
            &conversion.reports,
            &model,
            progress,
        )?;
        let megabytes = exported.bytes as f64 / 1e6;
        progress.say(&format!("{}: {} files, {megabytes:.2} MB", model.display(), exported.files.len()));
        folder.ledger()?.append(Entry::finished("export", &key, started.elapsed().as_secs_f64()))?;
    }
    conversion.require_finite()?;
    Ok(Summary { folder: folder.path().to_path_buf(), model, reports: conversion.reports })
}
