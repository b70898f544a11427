//! The loop that every training stage shares: batches, accumulation, update, schedule, evaluation, saving.

use super::adamw::{AdamW, Failure, Group};
use super::backward::Gradients;
use super::schedule::{Memory, Scheduler};
use super::settings::{Batch, Optimizer, Schedule};
use crate::model::Student;
use crate::progress::{Progress, Unit, check_interrupt};
use crate::text::Windows;
use crate::{Error, Result};
use candle_core::Tensor;
use serde::Serialize;
use std::collections::BTreeMap;

/// What a stage minimises.
pub trait Objective {
    /// For people: `attention transfer`.
    fn name(&self) -> &str;
    /// Loss and gradients on `ids` ([batch, T]).
    fn gradients(&self, student: &Student, ids: &[u32], batch: usize) -> Result<(f64, Gradients)>;
    /// Loss alone.
    fn loss(&self, student: &Student, ids: &[u32], batch: usize) -> Result<f64>;
    /// Where a loss that is not finite comes from, for the message.
    fn locate_non_finite(&self, student: &Student, ids: &[u32], batch: usize) -> Result<String>;
}

/// Windows to train on, and those that a plateau schedule evaluates on, which are never trained on.
pub struct TrainingData<'a> {
    pub windows: &'a Windows,
    pub held_out: Option<&'a Windows>,
    pub seed: u64,
}

/// One line of metrics.jsonl.
#[derive(Debug, Clone, Serialize)]
pub struct Metric<'a> {
    pub stage: &'a str,
    /// Counted from 1.
    pub step: u64,
    /// Trained on so far in this stage.
    pub tokens: u64,
    pub loss: f64,
    pub lr: f64,
    pub gradient_norm: f64,
    /// Loss on the held-out windows, where it was evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out_loss: Option<f64>,
    /// Of this step.
    pub tokens_per_second: f64,
}

/// Training state: tensors and words.
pub type Saved = (BTreeMap<String, Tensor>, BTreeMap<String, String>);

/// Where training state is kept; a file in the run folder, or nothing.
pub trait Store {
    /// What an earlier run saved last: tensors and words.
    fn load(&mut self) -> Result<Option<Saved>>;
    /// Replaces it, whole.
    fn save(&mut self, tensors: BTreeMap<String, Tensor>, words: BTreeMap<String, String>) -> Result<()>;
    fn metric(&mut self, metric: &Metric) -> Result<()>;
    /// Forgets metrics of steps after `step`: they are about to be made again.
    fn rewind(&mut self, step: u64) -> Result<()>;
}

/// Settings of one training stage.
pub struct Trainer<'a> {
    /// Name of the stage in messages and metrics.
    pub stage: &'a str,
    pub steps: u64,
    pub optimizer: Optimizer,
    pub schedule: Schedule,
    pub batch: Batch,
    /// Steps between saves.
    pub save_every: u64,
    /// Names that train, in groups.
    pub groups: Vec<Group>,
}

/// What changes from step to step.
struct Progression {
    step: u64,
    optimizer: AdamW,
    scheduler: Scheduler,
    /// The tensors of the best evaluation of a plateau schedule.
    best: Option<BTreeMap<String, Tensor>>,
}

impl Trainer<'_> {
    /// Trains the student's tensors in place, from where the store left off.
    pub fn run(
        &self,
        student: &mut Student,
        objective: &dyn Objective,
        data: &TrainingData,
        store: &mut dyn Store,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let mut now = self.restore(student, store)?;
        let step_tokens = self.batch.step_tokens(data.windows.sequence());
        progress.begin(objective.name(), now.step * step_tokens, self.steps * step_tokens, Unit::Tokens);
        while now.step < self.steps {
            let started = std::time::Instant::now();
            let (loss, gradients) = self.gradients(student, objective, data, now.step)?;
            let lr = now.scheduler.lr(now.step);
            let norm =
                now.optimizer.update(&mut student.tensors, &gradients, lr).map_err(|f| self.failed(f, now.step))?;
            let seconds = started.elapsed().as_secs_f64();
            let held_out_loss = match now.scheduler.evaluates(now.step) {
                true => Some(self.evaluate(student, objective, data, &mut now)?),
                false => None,
            };
            now.step += 1;
            let tokens = now.step * step_tokens;
            store.metric(&Metric {
                stage: self.stage,
                step: now.step,
                tokens,
                loss,
                lr,
                gradient_norm: norm,
                held_out_loss,
                tokens_per_second: step_tokens as f64 / seconds,
            })?;
            progress.advance(tokens, &format!("loss {loss:.4}"));
            let stop = check_interrupt();
            if now.step.is_multiple_of(self.save_every) || stop.is_err() {
                self.save(student, &now, store)?;
            }
            stop?;
        }
        if let Some(best) = now.best.take() {
            student.tensors.extend(best);
        }
        progress.end("");
        Ok(())
    }

    /// Mean loss and gradients over the accumulated batches of a step.
    fn gradients(
        &self,
        student: &Student,
        objective: &dyn Objective,
        data: &TrainingData,
        step: u64,
    ) -> Result<(f64, Gradients)> {
        let parts = self.batch.accumulate as u64;
        let (mut total, mut sum) = (0.0, Gradients::new());
        for part in 0..parts {
            let ids = data.windows.batch(data.seed, step * parts + part, self.batch.size);
            let (loss, gradients) = objective.gradients(student, &ids, self.batch.size)?;
            if !loss.is_finite() {
                let place = objective.locate_non_finite(student, &ids, self.batch.size)?;
                return Err(Error::NonFinite { stage: self.stage.into(), step: step as usize + 1, place });
            }
            total += loss;
            for (name, g) in gradients {
                let g = match sum.remove(&name) {
                    Some(old) => (old + g)?,
                    None => g,
                };
                sum.insert(name, g);
            }
        }
        if parts > 1 {
            for g in sum.values_mut() {
                *g = (&*g / parts as f64)?;
            }
        }
        Ok((total / parts as f64, sum))
    }

    /// Mean loss over the held-out windows; keeps the tensors when it is the best so far.
    fn evaluate(
        &self,
        student: &Student,
        objective: &dyn Objective,
        data: &TrainingData,
        now: &mut Progression,
    ) -> Result<f64> {
        let held_out =
            data.held_out.ok_or_else(|| Error::Internal("a plateau schedule without held-out text".into()))?;
        let mut total = 0.0;
        for i in 0..held_out.len() {
            total += objective.loss(student, held_out.get(i), 1)?;
        }
        let loss = total / held_out.len() as f64;
        if now.scheduler.evaluated(loss) {
            let names = now.optimizer.names().cloned();
            now.best = Some(names.map(|n| (n.clone(), student.tensors[&n].clone())).collect());
        }
        Ok(loss)
    }

    fn failed(&self, failure: Failure, step: u64) -> Error {
        let place = match failure {
            Failure::NotFinite(name) => format!("the gradient of `{name}`"),
            Failure::Missing(name) => return Error::Internal(format!("`{name}` has no gradient")),
            Failure::Other(error) => return error,
        };
        Error::NonFinite { stage: self.stage.into(), step: step as usize + 1, place }
    }

    fn restore(&self, student: &mut Student, store: &mut dyn Store) -> Result<Progression> {
        let mut now = Progression {
            step: 0,
            optimizer: AdamW::new(self.optimizer, self.groups.clone()),
            scheduler: Scheduler::new(self.schedule, self.optimizer.lr, self.steps),
            best: None,
        };
        if let Some((mut tensors, words)) = store.load()? {
            let damaged = || {
                let what = format!("{}: the training state that an earlier run saved is damaged", self.stage);
                Error::usage(what, "start again with `--fresh`")
            };
            now.step = words.get("step").and_then(|s| s.parse().ok()).ok_or_else(damaged)?;
            let memory: Memory =
                words.get("schedule").and_then(|s| serde_json::from_str(s).ok()).ok_or_else(damaged)?;
            now.scheduler.memory = memory;
            now.optimizer.restore(&tensors, now.step).map_err(|_| damaged())?;
            let names: Vec<String> = now.optimizer.names().cloned().collect();
            for name in &names {
                let tensor = tensors.remove(&format!("p.{name}")).ok_or_else(damaged)?;
                student.tensors.insert(name.clone(), tensor);
            }
            let best = names.iter().filter_map(|n| Some((n.clone(), tensors.remove(&format!("best.{n}"))?)));
            now.best = Some(best.collect::<BTreeMap<_, _>>()).filter(|b| b.len() == names.len());
        }
        store.rewind(now.step)?;
        Ok(now)
    }

    fn save(&self, student: &Student, now: &Progression, store: &mut dyn Store) -> Result<()> {
        let mut tensors = now.optimizer.state();
        tensors.extend(now.optimizer.names().map(|n| (format!("p.{n}"), student.tensors[n].clone())));
        tensors.extend(now.best.iter().flatten().map(|(n, t)| (format!("best.{n}"), t.clone())));
        let memory = serde_json::to_string(&now.scheduler.memory).map_err(|e| Error::Internal(e.to_string()))?;
        store.save(tensors, BTreeMap::from([("step".into(), now.step.to_string()), ("schedule".into(), memory)]))
    }
}
