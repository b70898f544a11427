//! A row of a table: the figures of a combination that people compare.

use super::{Record, Sizes};
use crate::evaluate::Report;
use crate::run::StageReport;
use serde::Serialize;

/// What a combination has reached. Figures are absent where its stages do not give them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub mixer: String,
    pub window: Option<usize>,
    pub failure: Option<String>,
    #[serde(flatten)]
    pub sizes: Option<Sizes>,
    /// The last evaluation of a combination that has come to its end.
    pub evaluation: Option<Report>,
    /// Of this evaluation: perplexity over the teacher's, and the mean over the layers.
    pub ratio: Option<f64>,
    pub layer_error: Option<f64>,
    /// Of the training stages.
    pub transfer_tokens_per_second: Option<f64>,
    pub lora_tokens_per_second: Option<f64>,
    pub zero_tokens: Option<ZeroTokens>,
}

/// The student before anything is trained: evaluated before and after the calibration.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ZeroTokens {
    pub layer_error_before: Option<f64>,
    pub layer_error_after: Option<f64>,
    pub perplexity_before: f64,
    pub perplexity_after: f64,
    /// The controls, to which calibration makes no difference.
    pub silent_mixer: Option<f64>,
    pub bare_window: Option<f64>,
}

impl Row {
    pub(super) fn of(record: &Record) -> Row {
        let stages = &record.stages;
        let last = stages.iter().rev().find_map(|stage| stage.evaluation.as_ref());
        let evaluation = last.filter(|_| record.failure.is_none());
        let speed = |kind: &str| {
            let of_kind = stages.iter().rev().find(|stage| stage.kind == kind);
            of_kind.and_then(|stage| stage.training).map(|training| training.tokens_per_second)
        };
        Row {
            mixer: record.mixer.clone(),
            window: record.window,
            failure: record.failure.clone(),
            sizes: record.sizes,
            ratio: evaluation.and_then(Report::ratio),
            layer_error: evaluation.and_then(Report::layer_error),
            evaluation: evaluation.cloned(),
            transfer_tokens_per_second: speed("attention-transfer"),
            lora_tokens_per_second: speed("lora"),
            zero_tokens: ZeroTokens::of(stages),
        }
    }
}

impl ZeroTokens {
    /// `None` unless the first calibration stands between two evaluations, and no training before the second.
    fn of(stages: &[StageReport]) -> Option<ZeroTokens> {
        let untrained = stages.iter().position(|stage| stage.training.is_some()).unwrap_or(stages.len());
        let stages = &stages[..untrained];
        let calibrated = stages.iter().position(|stage| stage.calibration.is_some())?;
        let before = stages[..calibrated].iter().rev().find_map(|stage| stage.evaluation.as_ref())?;
        let after = stages[calibrated..].iter().find_map(|stage| stage.evaluation.as_ref())?;
        let control = |name| after.control(name).map(|score| score.perplexity);
        Some(ZeroTokens {
            layer_error_before: before.layer_error(),
            layer_error_after: after.layer_error(),
            perplexity_before: before.model.perplexity,
            perplexity_after: after.model.perplexity,
            silent_mixer: control("silent mixer"),
            bare_window: control("bare window"),
        })
    }

    /// Whether the calibrated student is better than none at all.
    pub fn beats_silence(&self) -> Option<bool> {
        self.silent_mixer.map(|silent| self.perplexity_after < silent)
    }
}
