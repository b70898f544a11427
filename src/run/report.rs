//! What a finished stage has left in the run folder, read again.

use super::folder::RunFolder;
use super::store::REPORT;
use crate::evaluate::Report;
use crate::recipe::StageRecipe;
use crate::stage::{LayerCalibration, Measured};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// One stage and what it measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageReport {
    /// Its folder in the run folder.
    pub stage: String,
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub evaluation: Option<Report>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub calibration: Option<Vec<LayerCalibration>>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub training: Option<TrainingReport>,
}

/// Sums of a training stage's lines in metrics.jsonl.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TrainingReport {
    pub tokens: u64,
    /// Of the last step.
    pub loss: f64,
    /// Over the time of all steps, evaluations on held-out text left out.
    pub tokens_per_second: f64,
}

/// What is read of a line of metrics.jsonl.
#[derive(Deserialize)]
struct Line {
    stage: String,
    tokens: u64,
    loss: f64,
    tokens_per_second: f64,
}

impl StageReport {
    /// Of a stage that is finished, with what it has measured; `name`: that of its folder.
    pub(super) fn of(folder: &RunFolder, stage: &StageRecipe, name: &str, measured: Measured) -> Result<StageReport> {
        let (mut evaluation, mut calibration) = (None, None);
        match measured {
            Measured::Nothing => {}
            Measured::Evaluation(report) => evaluation = Some(*report),
            Measured::Calibration(layers) => calibration = Some(layers),
        }
        let needs = stage.needs();
        let training = if needs.trains && !needs.reports { Some(trained(folder, name)?) } else { None };
        Ok(StageReport { stage: name.into(), kind: stage.kind().into(), evaluation, calibration, training })
    }
}

/// Reads the report that a stage has left in the run's folder.
pub(super) fn read(run: &Path, name: &str, stage: &StageRecipe) -> Result<Measured> {
    let path = run.join(name).join(REPORT);
    let bytes = std::fs::read(&path).map_err(Error::io(&path, "read it"))?;
    serde_json::from_slice(&bytes).and_then(|json| stage.read_report(json)).map_err(|e| {
        let hint = "remove the stage's folder, or start again with `--fresh`";
        Error::run(path, format!("what an earlier run reported cannot be read: {e}"), hint)
    })
}

fn trained(folder: &RunFolder, stage: &str) -> Result<TrainingReport> {
    let path = folder.metrics();
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path, "read it"))?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    let (mut tokens, mut seconds, mut loss) = (0, 0.0, f64::NAN);
    for line in lines.filter(|line| line.stage == stage) {
        seconds += line.tokens.saturating_sub(tokens) as f64 / line.tokens_per_second;
        (tokens, loss) = (line.tokens, line.loss);
    }
    if tokens == 0 {
        let what = format!("no line tells of the stage {stage}");
        return Err(Error::run(path, what, "start again with `--fresh`"));
    }
    Ok(TrainingReport { tokens, loss, tokens_per_second: tokens as f64 / seconds })
}
