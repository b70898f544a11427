//! Calibration: the free initial values of every mixer from the teacher's own activations, before any training.
//!
//! A mixer's output depends on its scale s linearly, o(s) = o_0 + s d, with o_0 what a window beside it says. One batch
//! of the teacher decides, head by head: of the values that a mixer's calibration parameters name (biases of
//! gates, scales of features) the one whose best s leaves the least error, one parameter after the other; then s itself, by [`Match`]. Nothing here is
//! trained, and no gradient is taken.

mod layer;

use super::api::{Measured, Needs, Registration, RunContext, Stage, StageRecipe, TOKENS, Work, WorkContext};
use super::cost::{Cost, F32, PROGRAM};
use crate::config::{Choice, Table};
use crate::model::{Flow, Model, Student, View};
use crate::progress::{Progress, Unit, check_interrupt};
use crate::{Error, Result};
use layer::{Layer, Tensors};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(super) const REGISTRATION: Registration = Registration {
    kind: CALIBRATE,
    about: "every mixer's free initial values from the teacher's activations, nothing trained",
    read,
};

/// The mixers' free initial values are set from the teacher's activations; nothing is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Calibrate {
    /// Of the training text that the teacher reads for it.
    pub tokens: u64,
    /// The aim of the scale of every head.
    #[serde(rename = "match")]
    pub rule: Match,
}

fn read(t: &mut Table, sequence: Option<usize>) -> StageRecipe {
    let help = "Training tokens that the teacher reads; all of them are in memory at once.";
    let tokens = t.optional("tokens", TOKENS, 4096, help);
    if let Some(sequence) = sequence.filter(|&s| tokens < s as u64) {
        let what = format!("`{}.tokens` is {tokens}, less than one training window of {sequence} tokens", t.path());
        t.wrong_at("tokens", what, format!("at least {sequence}"));
    }
    let rule = t.optional(
        "match",
        Choice(vec![("size", Match::Size), ("error", Match::Error)]),
        Match::Size,
        "What scales are set for. `error`: the least squared error, which leaves a layer smaller than the teacher's by how \
         far off it is. `size`: the same times one number for the layer, so that it is as large as the teacher's.",
    );
    StageRecipe::new(Calibrate { tokens, rule })
}

impl Stage for Calibrate {
    fn kind(&self) -> &'static str {
        REGISTRATION.kind
    }

    fn settings(&self) -> Result<Value> {
        serde_json::to_value(self).map_err(|e| Error::Internal(e.to_string()))
    }

    fn needs(&self) -> Needs<'_> {
        Needs { training_text: true, trains: true, reports: true, ..Needs::default() }
    }

    /// Calibration runs the teacher, and each mixer twice for every value that it tries:
    ///
    /// ```text
    /// operations = L (2 block + softmax) + L' 2 values mixer
    /// memory = teacher + one layer's: n (D + 8 H K + 3 G K + 5 H F), or the MLP's n (4 D + H K + 3 ffn)
    /// ```
    fn work(&self, c: &WorkContext) -> Work {
        let (s, n) = (c.sizes(c.sequence), self.tokens as f64);
        let parameters = c.student.mixer(c.replaced[0]).calibration_params();
        let values: usize = parameters.iter().map(|parameter| parameter.values.len() + 1).sum();
        let tried = 2.0 * (values + 2) as f64;
        let per_token = s.layers * (2.0 * s.block + s.softmax) + s.replaced * tried * s.mixer;
        let attention = s.width + 8.0 * s.queries + 3.0 * s.keys + 5.0 * s.features;
        let mlp = 4.0 * s.width + s.queries + 3.0 * s.ffn;
        let cost = Cost { per_token, memory: PROGRAM + F32 * (s.parameters + n * attention.max(mlp)) };
        Work { tokens: self.tokens, tensors: c.tensors(false), copies: 1, cost, ..Work::default() }
    }

    fn run(&self, c: &mut RunContext) -> Result<Measured> {
        let windows = c.data.windows;
        let batch = (self.tokens as usize / windows.sequence()).max(1);
        let ids = windows.batch(c.data.seed, 0, batch);
        let layers = calibrate(c.teacher, c.student, &ids, batch, self.rule, c.progress)?;
        for l in &layers {
            c.progress.say(&format!(
                "layer {}: error {:.3} -> {:.3}, size {:.2} -> {:.2} of the teacher's",
                l.layer, l.error_before, l.error_after, l.size_before, l.size_after
            ));
        }
        Ok(Measured::Calibration(layers))
    }

    fn read_report(&self, report: Value) -> Result<Measured, serde_json::Error> {
        serde_json::from_value(report).map(Measured::Calibration)
    }
}

/// The effect of calibration on a layer: squared error of head outputs relative to the teacher's, and their size.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LayerCalibration {
    pub layer: usize,
    pub error_before: f64,
    pub error_after: f64,
    /// Root mean square of the output over that of the teacher's.
    pub size_before: f64,
    pub size_after: f64,
}

/// The aim by which the scale of a head is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Match {
    /// The least squared error: never worse than silence, and smaller than the teacher's output by how far off it is.
    Error,
    /// The size of the teacher's output, as published calibrations have it: what has least error, times one number for
    /// the layer, so that heads with little to say stay as quiet beside the others as they are.
    Size,
}

/// The name of this stage in progress and errors.
const CALIBRATE: &str = "calibrate";

/// Calibrates the mixers of `student` on `ids` ([batch, T]).
pub fn calibrate(
    model: &Model,
    student: &mut Student,
    ids: &[u32],
    batch: usize,
    rule: Match,
    progress: &mut dyn Progress,
) -> Result<Vec<LayerCalibration>> {
    let replaced: Vec<usize> = (0..model.spec.layers).filter(|&l| student.replaced(l)).collect();
    let (mut layers, mut found) = (vec![], Tensors::new());
    progress.begin(CALIBRATE, 0, replaced.len() as u64, Unit::Items);
    View::teacher(model).run(ids, batch, &mut |hook| {
        check_interrupt()?;
        if student.replaced(hook.layer) {
            let own: Tensors =
                student.mixer_tensors(hook.layer).map(|(short, _, t)| (short.to_string(), t.clone())).collect();
            let mixer = student.mixer(hook.layer);
            let mut layer = Layer { mixer, heads: hook.heads, target: hook.output.value(), tensors: own };
            let report = layer.calibrate(hook.layer, rule)?;
            layer.require_finite(&report)?;
            found.extend(layer.tensors.into_iter().map(|(name, t)| (student.tensor_name(hook.layer, &name), t)));
            layers.push(report);
            progress.advance(layers.len() as u64, &format!("error {:.3}", report.error_after));
        }
        Ok(if Some(&hook.layer) == replaced.last() { Flow::Stop } else { Flow::Continue })
    })?;
    student.tensors.extend(found);
    progress.end("");
    Ok(layers)
}
