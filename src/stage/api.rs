//! The trait of a stage, and the contexts in which it is checked, planned and run.

use super::cost::{Cost, Sizes};
use super::{LayerCalibration, LoraShape, STAGES};
use crate::arch::Spec;
use crate::config::{Amount, Form, Table};
use crate::evaluate::{EvaluationText, Report, Selection};
use crate::model::{Model, Student};
use crate::progress::Progress;
use crate::train::{Store, TrainingData};
use crate::{Error, Result};
use serde::{Serialize, Serializer};
use serde_json::Value;
use std::any::Any;
use std::fmt::Debug;
use std::ops::Deref;
use std::sync::Arc;

/// Tokens, at most ten million million.
pub(crate) const TOKENS: Amount = Amount {
    noun: "tokens",
    units: &[("K", 1_000), ("M", 1_000_000), ("B", 1_000_000_000), ("T", 1_000_000_000_000)],
    example: "6M",
    max: (10_000_000_000_000, "10T"),
};

/// The longest window that is planned for.
pub(crate) const MAX_SEQUENCE: usize = 1 << 24;

/// One step of a conversion, as a recipe describes it: one file of this module and one line in [`STAGES`].
pub trait Stage: Any + Debug + Send + Sync {
    /// The name of its kind, as the recipe writes it.
    fn kind(&self) -> &'static str;

    /// All its settings as JSON: results depend on them.
    fn settings(&self) -> Result<Value>;

    /// The inputs and results of the stage.
    fn needs(&self) -> Needs<'_>;

    /// What the teacher or the mixer does not allow, found before anything runs.
    fn check(&self, _: &CheckContext) -> Vec<Refusal> {
        vec![]
    }

    /// Tokens, tensors, operations and memory.
    fn work(&self, context: &WorkContext) -> Work;

    /// Changes student and weights before the stage runs, or before its earlier result is taken up: adapters are merged
    /// and begun here.
    fn prepare(&self, _model: &mut Model, _student: &mut Student, _seed: u64) -> Result<()> {
        Ok(())
    }

    /// Does the work.
    fn run(&self, context: &mut RunContext) -> Result<Measured>;

    /// Reads what [`Stage::run`] measured from the report that it has left; `None` if it leaves none.
    fn read_report(&self, _report: Value) -> Result<Measured, serde_json::Error> {
        Ok(Measured::Nothing)
    }
}

/// A kind of stage.
pub struct Registration {
    pub kind: &'static str,
    /// One line for the schema.
    pub about: &'static str,
    /// Reads its keys. The second argument: tokens of a training window, where they are known.
    pub read: fn(&mut Table, Option<usize>) -> StageRecipe,
}

impl Form for Registration {
    fn name(&self) -> &'static str {
        self.kind
    }

    fn about(&self) -> &'static str {
        self.about
    }
}

/// A stage of a recipe; clones share it.
#[derive(Debug, Clone)]
pub struct StageRecipe(Arc<dyn Stage>);

impl StageRecipe {
    pub fn new(stage: impl Stage) -> Self {
        StageRecipe(Arc::new(stage))
    }

    /// Reads one `[[stage]]` table; `None` after an error in its kind. `sequence`: tokens of a training window, where they
    /// are known.
    pub(crate) fn read(t: &mut Table, sequence: Option<usize>) -> Option<StageRecipe> {
        let registration = t.variant("kind", STAGES, None, "What the stage does.")?;
        Some((registration.read)(t, sequence))
    }

    /// The stage, if it is of this type.
    pub fn downcast_ref<S: Stage>(&self) -> Option<&S> {
        (&*self.0 as &dyn Any).downcast_ref()
    }
}

impl Deref for StageRecipe {
    type Target = dyn Stage;

    fn deref(&self) -> &dyn Stage {
        &*self.0
    }
}

impl PartialEq for StageRecipe {
    fn eq(&self, other: &Self) -> bool {
        self.kind() == other.kind() && self.settings().ok() == other.settings().ok()
    }
}

/// `kind`, then the settings.
impl Serialize for StageRecipe {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut all = serde_json::Map::from_iter([("kind".to_string(), self.kind().into())]);
        if let Value::Object(settings) = self.settings().map_err(serde::ser::Error::custom)? {
            all.extend(settings);
        }
        all.serialize(serializer)
    }
}

/// The inputs and results of a stage.
#[derive(Debug, Clone, Default)]
pub struct Needs<'a> {
    /// It reads the training text.
    pub training_text: bool,
    /// It evaluates on windows of the training text that no stage trains on.
    pub held_out: bool,
    /// A text of its own, by its name and the part of it.
    pub text: Option<TextNeed<'a>>,
    /// The shape of the adapter that it trains.
    pub adapter: Option<&'a LoraShape>,
    /// It merges the adapter of an earlier stage.
    pub merges: bool,
    /// It leaves another student: tensors on disk, on which later stages depend.
    pub trains: bool,
    /// It leaves a report.
    pub reports: bool,
}

/// A text that a stage reads beside the training text.
#[derive(Debug, Clone, Copy)]
pub struct TextNeed<'a> {
    pub name: &'a str,
    pub tokens: Option<u64>,
    /// `None`: as in training.
    pub sequence: Option<usize>,
    pub spread: bool,
}

impl TextNeed<'_> {
    /// With windows of `sequence` tokens unless the stage says otherwise.
    pub fn selection(&self, sequence: usize) -> Selection {
        Selection { tokens: self.tokens, sequence: self.sequence.unwrap_or(sequence), spread: self.spread }
    }
}

/// A key of the stage (`lora.on`), what is wrong there, and a hint.
pub type Refusal = (String, String, String);

/// What a stage is checked against: headers alone.
pub struct CheckContext<'a> {
    pub spec: &'a Spec,
    /// A student without weights.
    pub student: &'a Student,
    /// Layers whose attention is replaced.
    pub replaced: &'a [usize],
}

/// What a stage is planned with.
pub struct WorkContext<'a> {
    pub spec: &'a Spec,
    /// A student without weights.
    pub student: &'a Student,
    /// Layers whose attention is replaced; at least one.
    pub replaced: &'a [usize],
    /// Tokens of a training window.
    pub sequence: usize,
    pub threads: usize,
    /// About how many tokens the stage's own text has.
    pub text_tokens: u64,
}

impl WorkContext<'_> {
    /// The sizes that cost formulas share, for windows of `sequence` tokens.
    pub(crate) fn sizes(&self, sequence: usize) -> Sizes {
        Sizes::new(self.spec, self.student.mixer(self.replaced[0]), self.replaced.len(), sequence, self.threads)
    }

    /// Elements of every new tensor of the student; of those that training may change if `learned`.
    pub(super) fn tensors(&self, learned: bool) -> Vec<u64> {
        let wanted = self.student.new_tensors().into_iter().filter(|(_, _, initial)| !learned || initial.learned());
        wanted.map(|(_, shape, _)| elements(&shape)).collect()
    }
}

pub(super) fn elements(shape: &[usize]) -> u64 {
    shape.iter().map(|&n| n as u64).product()
}

/// The work of a stage.
#[derive(Debug, Clone, Default)]
pub struct Work {
    /// Trained on, or predicted.
    pub tokens: u64,
    /// Updates of the optimiser.
    pub steps: u64,
    /// Elements of each tensor that it writes.
    pub tensors: Vec<u64>,
    /// How many times it has them on disk at its fullest: moments, and the best tensors of a plateau schedule.
    pub copies: u64,
    pub cost: Cost,
}

/// Everything that a running stage reads and changes.
pub struct RunContext<'a> {
    /// Of its folder, in messages and metrics.
    pub name: &'a str,
    pub steps: u64,
    pub teacher: &'a Model,
    /// The student's frozen weights.
    pub model: &'a Model,
    pub student: &'a mut Student,
    pub data: TrainingData<'a>,
    /// The stage's own text.
    pub text: Option<&'a EvaluationText>,
    pub store: &'a mut dyn Store,
    pub progress: &'a mut dyn Progress,
}

/// What a stage has measured.
#[derive(Debug, Clone, PartialEq)]
pub enum Measured {
    Nothing,
    Evaluation(Box<Report>),
    Calibration(Vec<LayerCalibration>),
}

impl Measured {
    /// The contents of the stage's report, where it leaves one.
    pub fn report(&self) -> Result<Option<Value>> {
        let json = match self {
            Measured::Nothing => return Ok(None),
            Measured::Evaluation(report) => serde_json::to_value(report),
            Measured::Calibration(layers) => serde_json::to_value(layers),
        };
        json.map(Some).map_err(|e| Error::Internal(e.to_string()))
    }
}
