//! What a recipe names, downloaded where it is on the Hub, and opened: teacher, tokenizer, adapters, texts. All that can
//! be wrong with them shows here, before anything is trained or written.

use super::adapter::{self, Start};
use super::identity;
use crate::arch::{self, Spec};
use crate::checkpoint::{CONFIG, Checkpoint, Location};
use crate::evaluate::{EvaluationText, tokenized};
use crate::export::{self, require_range};
use crate::hub;
use crate::model::Model;
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::text::{Tokenizer, Windows, documents};
use crate::{Error, Result};
use std::collections::BTreeMap;

/// Windows that a plateau schedule evaluates on, taken from the end of the training text.
const HELD_OUT: usize = 16;

/// Everything that the stages read.
pub struct Inputs {
    pub checkpoint: Checkpoint,
    pub teacher: Model,
    /// The teacher's `model_type`.
    pub model_type: String,
    /// As an exported config.json names the teacher.
    pub teacher_name: String,
    pub windows: Windows,
    pub held_out: Option<Windows>,
    /// What LoRA stages start from, by the stage's index; not where the folder is gone and the stage has begun.
    pub starts: BTreeMap<usize, Start>,
    /// The text of each stage that has one of its own, by the stage's index.
    pub evaluations: BTreeMap<usize, EvaluationText>,
    /// Of the teacher's configuration and weights, and of what an export copies from its folder.
    pub teacher_digest: String,
    pub companions: String,
    /// Key of teacher, training text and seed.
    pub key: String,
}

impl Inputs {
    /// `begun`: whether an earlier run has left something of a stage.
    pub fn open(recipe: &Recipe, begun: impl Fn(usize) -> bool, progress: &mut dyn Progress) -> Result<Inputs> {
        let base = recipe.base.as_deref();
        let location = Location::resolve(&recipe.teacher.model, base)?;
        let checkpoint = Checkpoint::open(&hub::model(&location, progress)?)?;
        let spec = Spec::of(&checkpoint)?;
        let config = checkpoint.files().location().join(CONFIG);
        if arch::conversion(checkpoint.config(), &config)?.is_some() {
            let hint = "name its teacher in `teacher.model`";
            return Err(Error::config(config, "this model is converted already", hint));
        }
        let teacher_name = match &location {
            Location::Path(path) => std::fs::canonicalize(path).unwrap_or_else(|_| path.clone()).display().to_string(),
            Location::Builtin(_) | Location::Hub(_) => recipe.teacher.model.clone(),
        };
        let tokenizer = Tokenizer::open(checkpoint.files(), spec.vocab, spec.eos.first().copied())?;
        let mut starts = BTreeMap::new();
        for (index, stage) in recipe.stages.iter().enumerate() {
            if let Some(shape) = stage.needs().adapter
                && let Some(start) = adapter::start(recipe, index, shape, &spec, begun(index))?
            {
                starts.insert(index, start);
            }
        }
        let text = hub::text(&Location::resolve(&recipe.data.source, base)?, progress)?;
        let documents = documents(&text)?;
        let ids = tokenized(&documents, &tokenizer, None, &recipe.data.source, progress)?;
        let (windows, held_out) = split(ids, recipe)?;
        let mut evaluations = BTreeMap::new();
        for (index, stage) in recipe.stages.iter().enumerate() {
            if let Some(need) = stage.needs().text {
                let location = Location::resolve(need.name, base)?;
                let selection = need.selection(recipe.data.sequence);
                let text = EvaluationText::read(need.name, &location, selection, &tokenizer, progress)?;
                evaluations.insert(index, text);
            }
        }
        let companions = export::companions_digest(&checkpoint)?;
        let teacher_digest = checkpoint.digest(progress)?;
        let teacher = Model::load(&checkpoint, &spec)?;
        if let Some(dtype) = recipe.export.dtype {
            require_range(&teacher, dtype.into())?;
        }
        let (training, held) = (identity::text(&windows), held_out.as_ref().map(identity::text));
        let key = identity::chain(&teacher_digest, &(training, held, recipe.seed))?;
        let model_type = checkpoint.config().get("model_type").and_then(|v| v.as_str()).unwrap_or_default().to_string();
        Ok(Inputs {
            checkpoint,
            teacher,
            model_type,
            teacher_name,
            windows,
            held_out,
            starts,
            evaluations,
            teacher_digest,
            companions,
            key,
        })
    }
}

/// Training windows, and the held-out ones where a schedule wants them.
fn split(ids: Vec<u32>, recipe: &Recipe) -> Result<(Windows, Option<Windows>)> {
    let (sequence, name) = (recipe.data.sequence, recipe.data.source.as_str());
    if !recipe.stages.iter().any(|stage| stage.needs().held_out) {
        return Ok((Windows::new(ids, sequence, name)?, None));
    }
    let all = ids.len() / sequence;
    if all < 2 {
        let what = format!("{} tokens are one window of {sequence}; a plateau schedule holds one out", ids.len());
        let hint = "give a longer text, a shorter `data.sequence`, or `schedule = { kind = \"cosine\" }`";
        return Err(Error::text(name, what, hint));
    }
    let held = HELD_OUT.min((all / 8).max(1));
    let (train, rest) = ids.split_at((all - held) * sequence);
    let held_out = Windows::new(rest.to_vec(), sequence, name)?;
    Ok((Windows::new(train.to_vec(), sequence, name)?, Some(held_out)))
}
