//! What a recipe would do, before it is done: tensors, memory, disk, operations, time. Nothing is read but headers, and
//! nothing is written. What cannot work is refused here.

mod adapters;
mod machine;
mod refused;
mod student;
mod texts;

use std::path::{Path, PathBuf};

use candle_core::DType;
use serde::Serialize;

use crate::arch::{self, Spec};
use crate::checkpoint::{CONFIG, Checkpoint, Location};
use crate::evaluate::beyond_training;
use crate::export::check_companions;
use crate::hub;
use crate::recipe::Recipe;
use crate::stage::{StageRecipe, Work, WorkContext, twice};
use crate::text::Tokenizer;
use crate::{Error, Result};
pub use machine::Machine;
pub use student::{NewTensor, StudentPlan};

/// Share of [`Machine::speed`] that training and evaluation reach: what lies between the products costs time and does not
/// count as operations. Measured on 2 cores with books-llama-7m.
const EFFICIENCY: f64 = 0.6;
/// Bytes per second to and from a disk, hashing and conversion included; a slow one.
const DISK_SPEED: f64 = 200e6;

/// Everything that `convert` would do with a recipe on this machine.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    pub recipe: String,
    /// The run folder.
    pub folder: PathBuf,
    pub teacher: TeacherPlan,
    pub student: StudentPlan,
    pub stages: Vec<StagePlan>,
    pub export: ExportPlan,
    pub totals: Totals,
    /// Bytes that `convert` would first download from the Hub.
    pub download: u64,
    pub machine: Machine,
    /// Warnings to show to the user.
    pub notes: Vec<String>,
}

/// The model that is converted.
#[derive(Debug, Clone, Serialize)]
pub struct TeacherPlan {
    pub model: PathBuf,
    pub family: &'static str,
    pub parameters: usize,
    /// In its files.
    pub bytes: u64,
    pub layers: usize,
    pub context: usize,
}

/// One stage.
#[derive(Debug, Clone, Serialize)]
pub struct StagePlan {
    pub kind: &'static str,
    /// Its folder in the run folder, `1-attention-transfer`.
    pub folder: String,
    /// Trained on, or predicted; of a whole text that is not tokenised yet, by its size.
    pub tokens: u64,
    /// Updates of the optimiser.
    pub steps: u64,
    /// Tensors that it trains and writes.
    pub tensors: usize,
    pub parameters: u64,
    /// Bytes of these tensors.
    pub bytes: u64,
    /// Bytes that its folder takes: tensors, moments, and the best tensors of a plateau schedule.
    pub disk: u64,
    /// Bytes of memory at its peak.
    pub memory: u64,
    /// Floating-point operations.
    pub operations: f64,
    pub seconds: f64,
}

/// The converted model.
#[derive(Debug, Clone, Serialize)]
pub struct ExportPlan {
    pub folder: PathBuf,
    pub tensors: usize,
    /// Bytes of its weights.
    pub bytes: u64,
    pub memory: u64,
    pub seconds: f64,
}

/// All stages and the export.
#[derive(Debug, Clone, Serialize)]
pub struct Totals {
    /// Trained on.
    pub tokens: u64,
    pub steps: u64,
    /// Of the largest.
    pub memory: u64,
    /// At its fullest: a saved state is replaced only once the next one is whole.
    pub disk: u64,
    pub operations: f64,
    pub seconds: f64,
}

/// Where a recipe runs unless told otherwise: `runs/NAME` in the working directory.
pub fn run_folder(recipe: &Recipe) -> PathBuf {
    // Names have dots in them: `llama-3.2-1b` is no file of the kind `.2-1b`.
    let name = Path::new(&recipe.name).file_name().and_then(|name| name.to_str()).unwrap_or("recipe");
    Path::new("runs").join(name.strip_suffix(".toml").unwrap_or(name))
}

impl Plan {
    /// The plan for this machine and the default folder.
    pub fn of(recipe: &Recipe) -> Result<Plan> {
        Plan::new(recipe, &run_folder(recipe), Machine::measure()?)
    }

    /// The plan for a machine and a run folder, whose disk must have room for it.
    pub fn new(recipe: &Recipe, folder: &Path, machine: Machine) -> Result<Plan> {
        let (location, checkpoint) = open(recipe)?;
        let spec = teacher(recipe, &checkpoint)?;
        Tokenizer::open(checkpoint.files(), spec.vocab, spec.eos.first().copied())?;
        let (student, outline) = student::student(recipe, &spec)?;
        let texts = texts::texts(recipe)?;
        let download = texts.download + absent(&location)?;

        let context = |text_tokens| WorkContext {
            spec: &spec,
            student: &outline,
            replaced: &student.replaced,
            sequence: recipe.data.sequence,
            threads: machine.threads,
            text_tokens,
        };
        let stage = |(index, stage): (usize, &StageRecipe)| {
            let work = stage.work(&context(texts.stages[index]));
            StagePlan::new(index, stage.kind(), work, texts.memory(index), machine)
        };
        let stages: Vec<StagePlan> = recipe.stages.iter().enumerate().map(stage).collect();
        let export = export(recipe, folder, &checkpoint, &spec, &student, &context(0));
        let totals = totals(&stages, &export);
        machine::require_disk(folder, totals.disk)?;
        let mut notes = notes(recipe, &spec, &student, &totals, machine);
        notes.extend(refused::beyond(recipe, &spec, &outline, &student.replaced));
        notes.extend(adapters::notes(recipe, &location, &checkpoint)?);
        notes.extend(check_companions(&checkpoint)?);
        Ok(Plan {
            recipe: recipe.name.clone(),
            folder: folder.into(),
            teacher: TeacherPlan {
                model: location.label(),
                family: spec.family,
                parameters: spec.parameters(),
                bytes: checkpoint.total_bytes(),
                layers: spec.layers,
                context: spec.context,
            },
            notes,
            student,
            stages,
            export,
            totals,
            download,
            machine,
        })
    }
}

/// Whether the recipe's teacher, its mixer and the adapters that it starts from go together, by headers and settings alone.
///
/// `Ok` holds warnings: of adapters, and why it could not be seen where the teacher is not here or is damaged.
pub fn check(recipe: &Recipe) -> Result<Vec<String>> {
    let opened = open(recipe).and_then(|(location, checkpoint)| {
        let spec = teacher(recipe, &checkpoint)?;
        Ok((location, checkpoint, spec))
    });
    match opened {
        Ok((location, checkpoint, spec)) => {
            student::student(recipe, &spec)?;
            adapters::notes(recipe, &location, &checkpoint)
        }
        Err(mistake @ Error::Recipe { .. }) => Err(mistake),
        Err(error) => Ok(vec![format!("not held to its teacher: {error}")]),
    }
}

fn open(recipe: &Recipe) -> Result<(Location, Checkpoint)> {
    let location = Location::resolve(&recipe.teacher.model, recipe.base.as_deref())?;
    let checkpoint = hub::open(&location)?;
    Ok((location, checkpoint))
}

/// Bytes of the teacher that are still on the Hub.
fn absent(teacher: &Location) -> Result<u64> {
    match teacher {
        Location::Hub(id) => Ok(hub::weigh_model(id)?.absent),
        Location::Path(_) | Location::Builtin(_) => Ok(0),
    }
}

impl StagePlan {
    /// `text_memory`: bytes of the texts that are in memory meanwhile.
    fn new(index: usize, kind: &'static str, work: Work, text_memory: u64, machine: Machine) -> StagePlan {
        let parameters: u64 = work.tensors.iter().sum();
        let operations = work.cost.per_token * work.tokens as f64;
        StagePlan {
            kind,
            folder: format!("{}-{kind}", index + 1),
            tokens: work.tokens,
            steps: work.steps,
            tensors: work.tensors.len(),
            parameters,
            bytes: 4 * parameters,
            disk: work.copies * 4 * parameters,
            memory: work.cost.memory as u64 + text_memory,
            operations,
            seconds: operations / (EFFICIENCY * machine.speed),
        }
    }
}

/// The teacher's architecture; a model that is converted already is none.
fn teacher(recipe: &Recipe, checkpoint: &Checkpoint) -> Result<Spec> {
    match arch::conversion(checkpoint.config(), &checkpoint.files().place(CONFIG))? {
        None => Spec::of(checkpoint),
        Some(_) => Err(recipe.error_at(
            "teacher.model",
            format!("{} is converted already: it has no softmax attention to learn from", checkpoint.path().display()),
            "name the model that it was made from",
        )),
    }
}

fn export(
    recipe: &Recipe,
    folder: &Path,
    checkpoint: &Checkpoint,
    spec: &Spec,
    student: &StudentPlan,
    context: &WorkContext,
) -> ExportPlan {
    let stored = |name: &str| checkpoint.info(name).map_or(4, |info| info.dtype.bitsize() as u64 / 8);
    let wanted = recipe.export.dtype.map(|dtype| DType::from(dtype).size_in_bytes() as u64);
    let of_teacher = spec.tensors();
    let teacher: u64 =
        of_teacher.iter().map(|(name, shape)| elements(shape) * wanted.unwrap_or_else(|| stored(name))).sum();
    let bytes = teacher + 4 * student.sizes().iter().sum::<u64>();
    ExportPlan {
        folder: folder.join("model"),
        tensors: of_teacher.len() + student.tensors.len(),
        bytes,
        memory: twice(&context.sizes(context.sequence)) as u64,
        // Written, flushed, and read back.
        seconds: 2.0 * bytes as f64 / DISK_SPEED,
    }
}

fn totals(stages: &[StagePlan], export: &ExportPlan) -> Totals {
    let trained = || stages.iter().filter(|stage| stage.steps > 0);
    let largest = stages.iter().map(|stage| stage.disk).max().unwrap_or(0);
    Totals {
        tokens: trained().map(|stage| stage.tokens).sum(),
        steps: trained().map(|stage| stage.steps).sum(),
        memory: stages.iter().map(|stage| stage.memory).chain([export.memory]).max().unwrap_or(0),
        disk: stages.iter().map(|stage| stage.disk).sum::<u64>() + largest + export.bytes,
        operations: stages.iter().map(|stage| stage.operations).sum(),
        seconds: stages.iter().map(|stage| stage.seconds).sum::<f64>() + export.seconds,
    }
}

fn notes(recipe: &Recipe, spec: &Spec, student: &StudentPlan, totals: &Totals, machine: Machine) -> Vec<String> {
    let mut notes = Vec::new();
    // Layers that keep softmax hold as much in both.
    let of_layers = student::softmax_bytes(spec, student.replaced.iter().copied());
    let state = student.state_bytes - (student.teacher_state_bytes - of_layers);
    if state > of_layers {
        let (state_mb, of_layers_mb) = (state as f64 / 1e6, of_layers as f64 / 1e6);
        let (takes, context) = (format!("the state of a sequence takes {state_mb:.1} MB"), spec.context);
        notes.push(match student.replaced.iter().all(|&layer| spec.blocks[layer].window.is_some()) {
            true => format!(
                "{takes}, and the keys and values that it replaces at most {of_layers_mb:.1} MB, as these layers have \
                 windows: no memory is saved"
            ),
            false => format!(
                "{takes}, and the keys and values that it replaces take {of_layers_mb:.1} MB at the teacher's full \
                 context of {context} tokens: memory is saved beyond {} tokens only",
                state * context / of_layers.max(1)
            ),
        });
    }
    if recipe.data.sequence > spec.context {
        notes.push(format!(
            "`data.sequence` is {}, and the teacher was trained to see {} tokens: what it teaches beyond them is worth \
             little",
            recipe.data.sequence, spec.context
        ));
    }
    for (index, stage) in recipe.stages.iter().enumerate() {
        let sequence = stage.needs().text.and_then(|text| text.sequence);
        if let (Some(sequence), Some(trained)) = (sequence, recipe.trained_sequence()) {
            notes.extend(beyond_training(sequence, trained).map(|what| format!("`stage.{index}.sequence`: {what}")));
        }
    }
    if let Some(free) = machine.free_memory.filter(|&free| free < totals.memory) {
        notes.push(format!(
            "about {:.1} GB of memory are needed and {:.1} GB are free: make `batch.size` or `data.sequence` smaller, \
             or set `recompute = true` in LoRA stages",
            totals.memory as f64 / 1e9,
            free as f64 / 1e9
        ));
    }
    notes
}

fn elements(shape: &[usize]) -> u64 {
    shape.iter().map(|&n| n as u64).product()
}
