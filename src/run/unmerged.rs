//! The student of a finished run with its last adapter apart, from what the stages have left.

use super::ledger::{Ledger, Note};
use super::ours::{LEDGER, MODEL, PLAN, RECIPE};
use super::report::read as read_report;
use super::results::are_whole;
use super::store::{RESULT, load_student};
use super::teacher::has_teacher;
use crate::arch::Spec;
use crate::checkpoint::{CONFIG, Checkpoint, Location, file_digest};
use crate::evaluate::Report;
use crate::export::companions_digest;
use crate::hub;
use crate::model::{Conversion, Model, Student};
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::stage::Measured;
use crate::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// What an export needs.
pub struct Unmerged {
    pub recipe: Recipe,
    pub teacher: Checkpoint,
    pub model: Model,
    pub student: Student,
    pub reports: Vec<Report>,
}

/// Puts it together. A run without a LoRA stage has no adapter.
///
/// Recipe, teacher and results must be those of the finished run. What an older version left without checksums is taken as
/// it is.
pub fn unmerged(run: &Path, progress: &mut dyn Progress) -> Result<Unmerged> {
    let model = run.join(MODEL);
    let unfinished = |what: &str| Error::run(run, what, "run its `convert` command again to finish it");
    if !model.join(CONFIG).is_file() {
        return Err(unfinished("this run has not finished, so there is no model in it yet"));
    }
    let path = run.join(LEDGER);
    let ledger = Ledger::read(&path)?.ok_or_else(|| Error::file(path, "there is no such file", "give a run"))?;
    if let Some(wanted) = ledger.noted(Note::Recipe, None)
        && !(ledger.ends_with_export() && file_digest(&run.join(RECIPE))?.as_deref() == Some(wanted))
    {
        return Err(unfinished("this run was begun again with another recipe or teacher, and has not finished since"));
    }
    let recipe = recipe(run)?;
    let plan = json(&run.join(PLAN))?;
    let place = plan["teacher"]["model"].as_str().unwrap_or_default();
    let teacher = Checkpoint::open(&hub::model(&Location::resolve(place, None)?, progress)?)?;
    require_same(&teacher, place, run, &ledger, progress)?;
    let spec = Spec::of(&teacher)?;
    let mut block = json(&model.join(CONFIG))?;
    let conversion: Conversion =
        serde_json::from_value(block["subquad"].take()).map_err(|e| damaged(&model.join(CONFIG), &e.to_string()))?;
    let mut student = Student::without_weights(conversion, &spec)?;
    let mut model = Model::load(&teacher, &spec)?;
    let mut reports = vec![];
    for (index, stage) in recipe.stages.iter().enumerate() {
        let name = plan["stages"][index]["folder"].as_str().unwrap_or_default();
        let folder = run.join(name);
        if let Some(entry) = ledger.last(name).filter(|entry| !entry.files.is_empty()) {
            let files: Vec<&str> = entry.files.keys().map(String::as_str).collect();
            if !are_whole(&folder, &files, entry)? {
                return Err(unfinished(&format!("a file of its stage {name} is missing")));
            }
        }
        let needs = stage.needs();
        // The last adapter is what is wanted: the merge after it is left out.
        if !needs.merges || recipe.stages[index..].iter().any(|later| later.needs().trains) {
            stage.prepare(&mut model, &mut student, recipe.seed)?;
        }
        if needs.trains {
            student.tensors = load_student(&folder.join(RESULT))?;
        }
        if needs.reports
            && let Measured::Evaluation(report) = read_report(run, name, stage)?
        {
            reports.push(*report);
        }
    }
    match student.adapter {
        Some(_) => Ok(Unmerged { recipe, teacher, model, student, reports }),
        None => Err(Error::run(run, "no stage of this run trained an adapter", "export it without `--adapter`")),
    }
}

/// Refuses a teacher that is another one than when the run used it, or has other files beside its weights.
fn require_same(
    teacher: &Checkpoint,
    place: &str,
    run: &Path,
    ledger: &Ledger,
    progress: &mut dyn Progress,
) -> Result<()> {
    let weights = has_teacher(run, teacher, progress)?;
    let files = ledger.noted(Note::Companions, None);
    let what = match (weights, files) {
        (Some(false), _) => "weights or configuration",
        (_, Some(wanted)) if wanted != companions_digest(teacher)? => "tokenizer files, generation settings or licence",
        _ => return Ok(()),
    };
    let what = format!("its teacher, `{place}`, has changed since: {what} are others than when the run used them");
    let hint = "bring that teacher back, or run the `convert` command again, which converts the one that is there now";
    Err(Error::run(run, what, hint))
}

/// The run's recipe with the overrides that stand below it as comments.
fn recipe(run: &Path) -> Result<Recipe> {
    let path = run.join(RECIPE);
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path, "read it"))?;
    let mut lines: Vec<&str> = text.split('\n').collect();
    let mut sets = vec![];
    while let Some(set) = lines.last().and_then(|line| line.strip_prefix("# --set ")) {
        sets.insert(0, set.to_string());
        lines.pop();
    }
    Recipe::parse(&path.display().to_string(), &lines.join("\n"), None, &sets)
}

fn json(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).map_err(Error::io(path, "read it"))?;
    serde_json::from_slice(&bytes).map_err(|e| damaged(path, &e.to_string()))
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::run(path, format!("what an earlier run wrote cannot be read: {what}"), "start again with `--fresh`")
}
