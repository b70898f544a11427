//! The student of a finished run with its last adapter apart, from what the stages have left.

use super::store::{REPORT, RESULT};
use crate::arch::Spec;
use crate::checkpoint::{CONFIG, Checkpoint, Location, load_tensors};
use crate::evaluate::Report;
use crate::model::{Conversion, Model, Student};
use crate::recipe::{Recipe, StageRecipe};
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
pub fn unmerged(run: &Path) -> Result<Unmerged> {
    let model = run.join("model");
    if !model.join(CONFIG).is_file() {
        let hint = "run its `convert` command again to finish it";
        return Err(Error::run(run, "this run has not finished, so there is no model in it yet", hint));
    }
    let recipe = recipe(run)?;
    let plan = json(&run.join("plan.json"))?;
    let place = plan["teacher"]["model"].as_str().unwrap_or_default();
    let teacher = Checkpoint::open(&Location::resolve(place, None)?)?;
    let spec = Spec::of(&teacher)?;
    let mut block = json(&model.join(CONFIG))?;
    let conversion: Conversion =
        serde_json::from_value(block["subquad"].take()).map_err(|e| damaged(&model.join(CONFIG), &e.to_string()))?;
    let mut student = Student::without_weights(conversion, &spec)?;
    let mut model = Model::load(&teacher, &spec)?;
    let mut reports = vec![];
    let trains = |stage: &StageRecipe| !matches!(stage, StageRecipe::Merge | StageRecipe::Evaluate(_));
    for (index, stage) in recipe.stages.iter().enumerate() {
        let folder = run.join(plan["stages"][index]["folder"].as_str().unwrap_or_default());
        match stage {
            StageRecipe::Evaluate(_) => {
                let path = folder.join(REPORT);
                reports.push(serde_json::from_value(json(&path)?).map_err(|e| damaged(&path, &e.to_string()))?);
            }
            // The last adapter is what is wanted.
            StageRecipe::Merge if !recipe.stages[index..].iter().any(trains) => {}
            StageRecipe::Merge => student.merge(&mut model)?,
            _ => {
                if let StageRecipe::Lora(s) = stage {
                    student.merge(&mut model)?;
                    student.adapter = Some(s.lora.adapter());
                }
                student.tensors = load_tensors(&folder.join(RESULT))?.0;
            }
        }
    }
    match student.adapter {
        Some(_) => Ok(Unmerged { recipe, teacher, model, student, reports }),
        None => Err(Error::run(run, "no stage of this run trained an adapter", "export it without `--adapter`")),
    }
}

/// The run's recipe with the overrides that stand below it as comments.
fn recipe(run: &Path) -> Result<Recipe> {
    let path = run.join("recipe.toml");
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
