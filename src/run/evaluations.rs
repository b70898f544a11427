//! The evaluations that a run has done, read again so that `evaluate` repeats them.

use super::is_run;
use super::ours::PLAN;
use super::store::REPORT;
use crate::evaluate::Report;
use serde_json::Value;
use std::path::Path;

/// Reports of the evaluation stages of the run in `folder`, in order. A folder without a run has none, and a stage whose
/// report is missing or cannot be read is left out.
pub fn evaluations_of_run(folder: &Path) -> Vec<Report> {
    if !is_run(folder) {
        return vec![];
    }
    let plan: Option<Value> = read(&folder.join(PLAN));
    let stages = plan.as_ref().and_then(|plan| plan["stages"].as_array()).into_iter().flatten();
    let evaluations = stages.filter(|stage| stage["kind"] == "evaluate").filter_map(|stage| stage["folder"].as_str());
    evaluations.filter_map(|name| read(&folder.join(name).join(REPORT))).collect()
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}
