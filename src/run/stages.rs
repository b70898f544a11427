//! From stage recipes to stages: each runs, or is found finished.

use super::adapter;
use super::folder::RunFolder;
use super::identity::chain;
use super::inputs::Inputs;
use super::ledger::Entry;
use super::store::{REPORT, RESULT, STATE, StageStore, load_student, save_student};
use crate::arch::FORMAT;
use crate::evaluate::{Report, evaluate};
use crate::model::{Conversion, Model, Student};
use crate::plan::{Plan, StagePlan};
use crate::progress::Progress;
use crate::recipe::{Calibrate, Evaluate, Recipe, StageRecipe, Training};
use crate::stage::{AttentionTransfer, Lora, calibrate};
use crate::train::{Group, Objective, Store, Trainer, TrainingData};
use crate::{Error, Result};

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
                    folder.ledger()?.start(name, &start.digest)?;
                    digest = Some(start.digest.clone());
                } else if s.lora.from.is_some() {
                    digest = folder.ledger()?.started(name).map(String::from);
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
        chain(&self.key, &(&self.recipe.export, &self.recipe.text, &self.reports, &self.inputs.teacher_name))
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
        if self.finished(name, &result, folder, progress)? {
            return Ok(());
        }
        let started = std::time::Instant::now();
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
        folder.ledger()?.append(Entry::finished(name, &self.key, started.elapsed().as_secs_f64()))
    }

    /// Takes the tensors that an earlier run has left of this stage, if it has.
    fn finished(
        &mut self,
        name: &str,
        result: &std::path::Path,
        folder: &mut RunFolder,
        progress: &mut dyn Progress,
    ) -> Result<bool> {
        if folder.ledger()?.finished(name, &self.key).is_none() {
            return Ok(false);
        }
        let Some(tensors) = load_student(result, &self.key)? else { return Ok(false) };
        self.student.tensors = tensors;
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
        let result = path.join(RESULT);
        self.key = key;
        if self.finished(name, &result, folder, progress)? {
            return Ok(());
        }
        let started = std::time::Instant::now();
        let windows = &self.inputs.windows;
        let state = path.join(STATE);
        let mut store =
            StageStore { state: state.clone(), metrics: folder.metrics(), stage: name.into(), key: self.key.clone() };
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
        save_student(&result, &self.student.tensors, &self.key)?;
        folder.ledger()?.append(Entry::finished(name, &self.key, started.elapsed().as_secs_f64()))?;
        if state.exists() {
            std::fs::remove_file(&state).map_err(Error::io(&state, "remove it"))?;
        }
        Ok(())
    }

    fn evaluate(
        &mut self,
        index: usize,
        stage: &Evaluate,
        folder: &mut RunFolder,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let name = &self.plan.stages[index].folder;
        let text = self.inputs.evaluations.get(&index);
        let text = text.ok_or_else(|| Error::Internal(format!("{name} has no text")))?;
        let windows = &text.windows;
        let digest = super::identity::chain("", &(0..windows.len()).map(|i| windows.get(i)).collect::<Vec<_>>())?;
        let key = chain(&self.key, &(&stage.text, digest, windows.sequence(), text.part))?;
        let path = folder.stage(name)?.join(REPORT);
        if folder.ledger()?.finished(name, &key).is_some()
            && let Some(report) = std::fs::read(&path).ok().and_then(|b| serde_json::from_slice(&b).ok())
        {
            progress.say(&format!("{name}: finished before"));
            self.reports.push(report);
            return Ok(());
        }
        let started = std::time::Instant::now();
        let report = evaluate(&self.model, Some(&self.student), Some(&self.inputs.teacher), text, progress)?;
        let json = serde_json::to_vec_pretty(&report).map_err(|e| Error::Internal(e.to_string()))?;
        crate::checkpoint::write_atomically(&path, &json)?;
        folder.ledger()?.append(Entry::finished(name, &key, started.elapsed().as_secs_f64()))?;
        self.reports.push(report);
        Ok(())
    }
}
