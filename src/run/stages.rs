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
use crate::evaluate::{Report, evaluate};
use crate::export::code;
use crate::model::{Conversion, Model, Student};
use crate::plan::{Plan, StagePlan};
use crate::progress::Progress;
use crate::recipe::{Calibrate, Evaluate, Recipe, StageRecipe, Training};
use crate::stage::{AttentionTransfer, Lora, calibrate};
use crate::train::{Group, Objective, Store, Trainer, TrainingData};
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

/// One training stage, ready to run.
struct TrainingStage<'a> {
    name: &'a str,
    key: String,
    steps: u64,
    training: &'a Training,
    groups: Vec<Group>,
    /// Why it can only go on, where the student is not what it would begin with.
    unless_begun: Option<Error>,
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

    /// Runs a stage, or takes its result from an earlier run.
    pub fn stage(&mut self, index: usize, folder: &mut RunFolder, progress: &mut dyn Progress) -> Result<()> {
        let stage = &self.recipe.stages[index];
        let StagePlan { folder: name, steps, .. } = &self.plan.stages[index];
        match stage {
            StageRecipe::Calibrate(s) => {
                self.key = chain(&self.key, stage)?;
                self.calibrate(name, *s, folder, progress)
            }
            StageRecipe::AttentionTransfer(s) => {
                let key = chain(&self.key, stage)?;
                let model = self.model.clone();
                let objective = AttentionTransfer { model: &model, output: s.loss.output, weights: s.loss.weights };
                let groups = AttentionTransfer::trained(&self.student, s.training.optimizer.weight_decay);
                let training = &s.training;
                let stage = TrainingStage { name, key, steps: *steps, training, groups, unless_begun: None };
                self.train(stage, &objective, folder, progress)
            }
            StageRecipe::Lora(s) => {
                let mut key = chain(&self.key, stage)?;
                // A second adapter starts on weights that hold the first.
                self.merge()?;
                let model = self.model.clone();
                let adapter = s.lora.adapter();
                let decay = s.training.optimizer.weight_decay;
                let groups = Lora::trained(&self.student, &model, &adapter, s.train_mixer, decay);
                self.student.adapt(adapter, &model.spec, self.recipe.seed.wrapping_add(index as u64))?;
                let (mut digest, mut unless_begun) = (None, None);
                if let Some(start) = self.inputs.starts.get(&index) {
                    self.student.tensors.extend(start.tensors.clone());
                    folder.ledger()?.note(Note::Adapter, Some(name), &start.digest)?;
                    digest = Some(start.digest.clone());
                } else if s.lora.from.is_some() {
                    digest = folder.ledger()?.noted(Note::Adapter, Some(name)).map(String::from);
                    unless_begun = Some(adapter::absent(self.recipe, index));
                }
                if let Some(digest) = digest {
                    key = chain(&key, &digest)?;
                }
                let objective = Lora::new(&model, s.loss.labels, s.recompute, &groups);
                let stage = TrainingStage { name, key, steps: *steps, training: &s.training, groups, unless_begun };
                self.train(stage, &objective, folder, progress)
            }
            StageRecipe::Merge => {
                self.key = chain(&self.key, stage)?;
                self.merge()
            }
            StageRecipe::Evaluate(s) => self.evaluate(index, s, folder, progress),
        }
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

    fn calibrate(
        &mut self,
        name: &str,
        stage: Calibrate,
        folder: &mut RunFolder,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let path = folder.stage(name)?;
        let (result, report) = (path.join(RESULT), path.join(REPORT));
        if self.taken(name, &[RESULT, REPORT], folder, progress)? {
            return Ok(());
        }
        let started = Instant::now();
        let windows = &self.inputs.windows;
        let batch = (stage.tokens as usize / windows.sequence()).max(1);
        let ids = windows.batch(self.recipe.seed, 0, batch);
        let layers = calibrate(&self.inputs.teacher, &mut self.student, &ids, batch, stage.rule, progress)?;
        for l in &layers {
            progress.say(&format!(
                "layer {}: error {:.3} -> {:.3}, size {:.2} -> {:.2} of the teacher's",
                l.layer, l.error_before, l.error_after, l.size_before, l.size_after
            ));
        }
        let json = serde_json::to_vec_pretty(&layers).map_err(|e| Error::Internal(e.to_string()))?;
        crate::checkpoint::write_atomically(&report, &json)?;
        save_student(&result, &self.student.tensors, &self.key)?;
        done(name, &self.key, &[RESULT, REPORT], started, folder)
    }

    /// Takes the tensors that an earlier run has left of this stage, if it has.
    fn taken(
        &mut self,
        name: &str,
        files: &[&str],
        folder: &mut RunFolder,
        progress: &mut dyn Progress,
    ) -> Result<bool> {
        if !is_done(name, &self.key, files, folder)? {
            return Ok(false);
        }
        self.student.tensors = load_student(&folder.stage(name)?.join(RESULT))?;
        progress.say(&format!("{name}: finished before"));
        Ok(true)
    }

    fn train(
        &mut self,
        stage: TrainingStage,
        objective: &dyn Objective,
        folder: &mut RunFolder,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let TrainingStage { name, key, steps, training, groups, unless_begun } = stage;
        let path = folder.stage(name)?;
        self.key = key;
        if self.taken(name, &[RESULT], folder, progress)? {
            return Ok(());
        }
        let started = Instant::now();
        let windows = &self.inputs.windows;
        let (state, metrics) = (path.join(STATE), folder.metrics());
        let mut store = StageStore { state, metrics, stage: name.into(), key: self.key.clone() };
        if let Some(error) = unless_begun
            && store.load()?.is_none()
        {
            return Err(error);
        }
        let trainer = Trainer {
            stage: name,
            steps,
            optimizer: training.optimizer,
            schedule: training.schedule,
            batch: training.batch,
            save_every: training.checkpoint.every,
            groups,
        };
        let data = TrainingData { windows, held_out: self.inputs.held_out.as_ref(), seed: self.recipe.seed };
        trainer.run(&mut self.student, objective, &data, &mut store, progress)?;
        save_student(&path.join(RESULT), &self.student.tensors, &self.key)?;
        done(name, &self.key, &[RESULT], started, folder)
    }

    fn evaluate(
        &mut self,
        index: usize,
        stage: &Evaluate,
        folder: &mut RunFolder,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let name = &self.plan.stages[index].folder;
        let evaluated = self.inputs.evaluations.get(&index);
        let evaluated = evaluated.ok_or_else(|| Error::Internal(format!("{name} has no text")))?;
        let key = chain(&self.key, &(&stage.text, text(&evaluated.windows), evaluated.part))?;
        if is_done(name, &key, &[REPORT], folder)? {
            self.reports.push(read_report(folder, name)?);
            progress.say(&format!("{name}: finished before"));
            return Ok(());
        }
        let started = Instant::now();
        let report = evaluate(&self.model, Some(&self.student), Some(&self.inputs.teacher), evaluated, progress)?;
        let json = serde_json::to_vec_pretty(&report).map_err(|e| Error::Internal(e.to_string()))?;
        crate::checkpoint::write_atomically(&folder.stage(name)?.join(REPORT), &json)?;
        done(name, &key, &[REPORT], started, folder)?;
        self.reports.push(report);
        Ok(())
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
