//! What came of a combination, as a file.

use super::Combination;
use crate::checkpoint::write_atomically;
use crate::mixer::Combine;
use crate::plan::StudentPlan;
use crate::recipe::Recipe;
use crate::run::StageReport;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// The file `FOLDER/MIXER-windowN.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub mixer: String,
    pub window: Option<usize>,
    /// Why it has not come to its end.
    pub failure: Option<String>,
    /// Of a student that can be built.
    pub sizes: Option<Sizes>,
    /// Of every stage that is finished.
    pub stages: Vec<StageReport>,
    /// The recipe but for its name and what the combination replaces.
    pub settings: Value,
}

/// What is known of a student before it is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// How the window is combined.
    pub combine: Option<Combine>,
    /// Numbers that the mixers of all layers add.
    pub parameters: u64,
    /// Of one sequence at the teacher's full context, all layers; and of the teacher's keys and values.
    pub state_bytes: usize,
    pub teacher_state_bytes: usize,
}

impl Sizes {
    pub(super) fn of(student: &StudentPlan) -> Sizes {
        Sizes {
            combine: student.window.map(|window| window.combine),
            parameters: student.tensors.iter().map(|t| t.shape.iter().map(|&n| n as u64).product::<u64>()).sum(),
            state_bytes: student.state_bytes,
            teacher_state_bytes: student.teacher_state_bytes,
        }
    }
}

impl Record {
    pub(super) fn new(combination: &Combination, recipe: &Recipe) -> Result<Record> {
        let Combination { mixer, window } = *combination;
        let settings = settings(recipe)?;
        Ok(Record { mixer: mixer.into(), window, failure: None, sizes: None, stages: vec![], settings })
    }

    /// `None`: there is no such file.
    pub(super) fn read(path: &Path) -> Result<Option<Record>> {
        let bytes = match std::fs::read(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(Error::io(path, "read it"))?,
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|e| {
            let hint = "remove it and run the sweep again: what its run has finished is not done twice";
            Error::file(path, format!("this is no record of a sweep: {e}"), hint)
        })
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_vec_pretty(self).map_err(|e| Error::Internal(e.to_string()))?;
        write_atomically(path, &json)
    }
}

/// What the combinations of a sweep have in common.
pub(super) fn settings(recipe: &Recipe) -> Result<Value> {
    let mut all = serde_json::to_value(recipe).map_err(|e| Error::Internal(e.to_string()))?;
    let replaced = [("", "name"), ("", "sets"), ("/student", "mixer"), ("/student", "options"), ("/student", "window")];
    for (table, key) in replaced {
        if let Some(table) = all.pointer_mut(table).and_then(Value::as_object_mut) {
            table.shift_remove(key);
        }
    }
    Ok(all)
}

/// An error on one line, with every error of a recipe.
pub(super) fn reason(error: &Error) -> String {
    // Before an error in the student stands the override that the combination is, and nobody has typed.
    let bare = |what: &str| match what.split_once("`: ") {
        Some((place, rest)) if place.starts_with("`--set student=") => rest.to_string(),
        _ => what.to_string(),
    };
    match error {
        Error::Recipe { diagnostics, .. } => diagnostics.iter().map(|d| bare(&d.what)).collect::<Vec<_>>().join("; "),
        error => error.to_string(),
    }
}
