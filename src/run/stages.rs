//! From stage recipes to stages: each runs, or is found finished.

use super::adapter;
use super::folder::RunFolder;
use super::identity::{chain, text};
use super::inputs::Inputs;
use super::ledger::{Entry, Note};
use super::ours::tidy_stage;
use super::report::read as read_report;
use super::results::{are_whole, checksums};
use super::store::{REPORT, RESULT, STATE, StageStore, load_student, save_student};
use crate::arch::FORMAT;
use crate::checkpoint::write_atomically;
use crate::evaluate::Report;
use crate::export::code;
use crate::model::{Conversion, Model, Student};
use crate::plan::{Plan, StagePlan};
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::stage::{Measured, RunContext};
use crate::train::{Store, TrainingData};
use crate::{Error, Result};
use std::time::Instant;

/// The state that stages hand on.
pub struct Pipeline<'a> {
    recipe: &'a Recipe,
    plan: &'a Plan,
    inputs: &'a Inputs,
    /// The student's frozen weights: the teacher's, until an adapter is merged into them.
    pub model: Model,
    pub student: Student,
    pub reports: Vec<Report>,
    /// Key of what the student is now.
    key: String,
}

impl<'a> Pipeline<'a> {
    pub fn new(recipe: &'a Recipe, plan: &'a Plan, inputs: &'a Inputs) -> Result<Self> {
        let spec = &inputs.teacher.spec;
        let conversion = Conversion {
            format: FORMAT,
            teacher_model_type: inputs.model_type.clone(),
            teacher: inputs.teacher_name.clone(),
            mixer: recipe.student.mixer.clone(),
            options: recipe.student.options.clone(),
            window: recipe.student.window,
            softmax_layers: plan.student.softmax.clone(),
            trained_sequence: recipe.trained_sequence(),
        };
        let student = Student::new(conversion, spec, recipe.seed)?;
        let described = Conversion { teacher: String::new(), ..student.conversion.clone() };
        let key = chain(&inputs.key, &described)?;
        Ok(Pipeline { recipe, plan, inputs, model: inputs.teacher.clone(), student, reports: vec![], key })
    }

    /// Runs a stage, or takes its result from an earlier run. What it has measured.
    pub fn stage(&mut self, index: usize, folder: &mut RunFolder, progress: &mut dyn Progress) -> Result<Measured> {
        let (recipe, inputs) = (self.recipe, self.inputs);
        let (stage, needs) = (&recipe.stages[index], recipe.stages[index].needs());
        let StagePlan { folder: name, steps, .. } = &self.plan.stages[index];
        stage.prepare(&mut self.model, &mut self.student, recipe.seed.wrapping_add(index as u64))?;
        let mut key = chain(&self.key, stage)?;
        let unless_begun = self.start(index, &mut key, folder)?;
        let text = inputs.evaluations.get(&index);
        if let Some(text) = text {
            key = chain(&key, &(self::text(&text.windows), text.part))?;
        }
        if needs.trains || needs.merges {
            self.key = key.clone();
        }
        let files: Vec<&str> = [(needs.trains, RESULT), (needs.reports, REPORT)]
            .into_iter()
            .filter_map(|(leaves, file)| leaves.then_some(file))
            .collect();
        if files.is_empty() {
            return Ok(Measured::Nothing);
        }
        let path = folder.stage(name)?;
        if is_done(name, &key, &files, folder)? {
            if needs.trains {
                self.student.tensors = load_student(&path.join(RESULT))?;
            }
            progress.say(&format!("{name}: finished before"));
            let report = if needs.reports { read_report(folder.path(), name, stage)? } else { Measured::Nothing };
            return Ok(self.noted(report));
        }
        let started = Instant::now();
        let mut store =
            StageStore { state: path.join(STATE), metrics: folder.metrics(), stage: name.clone(), key: key.clone() };
        if let Some(error) = unless_begun
            && store.load()?.is_none()
        {
            return Err(error);
        }
        let measured = stage.run(&mut RunContext {
            name,
            steps: *steps,
            teacher: &inputs.teacher,
            model: &self.model,
            student: &mut self.student,
            data: TrainingData { windows: &inputs.windows, held_out: inputs.held_out.as_ref(), seed: recipe.seed },
            text,
            store: &mut store,
            progress,
        })?;
        if let Some(report) = measured.report()? {
            let json = serde_json::to_vec_pretty(&report).map_err(|e| Error::Internal(e.to_string()))?;
            write_atomically(&path.join(REPORT), &json)?;
        }
        if needs.trains {
            save_student(&path.join(RESULT), &self.student.tensors, &key)?;
        }
        done(name, &key, &files, started, folder)?;
        Ok(self.noted(measured))
    }

    /// The tensors of the adapter that a stage starts from, where its recipe names one; its digest becomes part of the key.
    /// Once the stage has saved something the folder of the adapter may be gone: then the error to give if nothing was
    /// saved.
    fn start(&mut self, index: usize, key: &mut String, folder: &mut RunFolder) -> Result<Option<Error>> {
        let name = &self.plan.stages[index].folder;
        if self.recipe.stages[index].needs().adapter.is_none_or(|shape| shape.from.is_none()) {
            return Ok(None);
        }
        if let Some(start) = self.inputs.starts.get(&index) {
            self.student.tensors.extend(start.tensors.clone());
            folder.ledger()?.note(Note::Adapter, Some(name), &start.digest)?;
            *key = chain(key, &start.digest)?;
            return Ok(None);
        }
        if let Some(digest) = folder.ledger()?.noted(Note::Adapter, Some(name)) {
            *key = chain(key, &digest)?;
        }
        Ok(Some(adapter::absent(self.recipe, index)))
    }

    /// Keeps an evaluation for the export.
    fn noted(&mut self, measured: Measured) -> Measured {
        if let Measured::Evaluation(report) = &measured {
            self.reports.push((**report).clone());
        }
        measured
    }

    /// Folds the adapter, if there is one, into the weights.
    pub fn merge(&mut self) -> Result<()> {
        self.student.merge(&mut self.model)
    }

    /// A model that computes nothing is no result.
    pub fn require_finite(&self) -> Result<()> {
        match self.reports.iter().all(|report| report.model.perplexity.is_finite()) {
            true => Ok(()),
            false => Err(Error::NonFinite { stage: "evaluate".into(), step: 0, place: "the perplexity".into() }),
        }
    }

    /// Key of the exported folder.
    pub fn export_key(&self) -> Result<String> {
        let (recipe, inputs) = (self.recipe, self.inputs);
        let taken = (&inputs.teacher_name, &inputs.companions);
        let ours = (env!("CARGO_PKG_VERSION"), code());
        chain(&self.key, &(&recipe.export, &recipe.text, &self.reports, taken, ours))
    }
}

/// Tells whether an earlier run has finished a stage under this key, and left these files of it.
fn is_done(name: &str, key: &str, files: &[&str], folder: &mut RunFolder) -> Result<bool> {
    let path = folder.stage(name)?;
    let Some(entry) = folder.ledger()?.finished(name, key) else { return Ok(false) };
    if !are_whole(&path, files, entry)? {
        return Ok(false);
    }
    // A process may have been killed before it could do this.
    tidy_stage(&path)?;
    Ok(true)
}

/// Notes that a stage is finished, and with which files.
fn done(name: &str, key: &str, files: &[&str], started: Instant, folder: &mut RunFolder) -> Result<()> {
    let path = folder.stage(name)?;
    let files = checksums(&path, files)?;
    folder.ledger()?.append(Entry::finished(name, key, started.elapsed().as_secs_f64(), files))?;
    tidy_stage(&path)
}
