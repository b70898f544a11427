//! The teacher of a run, opened again later.

use super::ledger::{Ledger, Note};
use super::ours::{LEDGER, PLAN};
use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::progress::Progress;
use std::path::Path;

/// Where the teacher of a run was found.
pub fn teacher_of_run(run: &Path) -> Option<String> {
    let bytes = std::fs::read(run.join(PLAN)).ok()?;
    let plan: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    plan["teacher"]["model"].as_str().map(String::from)
}

/// Tells whether a model is the teacher that the run has used, by its configuration and all its weights. `None`: the run's ledger
/// does not say, since an older version wrote it.
pub fn has_teacher(run: &Path, model: &Checkpoint, progress: &mut dyn Progress) -> Result<Option<bool>> {
    let Some(ledger) = Ledger::read(&run.join(LEDGER))? else { return Ok(None) };
    let Some(wanted) = ledger.noted(Note::Teacher, None) else { return Ok(None) };
    Ok(Some(model.digest(progress)? == wanted))
}
