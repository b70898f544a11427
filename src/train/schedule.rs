//! Learning rates step by step.

use super::settings::{Schedule, ScheduleKind};
use serde::{Deserialize, Serialize};

/// An evaluation counts as better when it is lower by this share (torch's `ReduceLROnPlateau`).
const THRESHOLD: f64 = 1e-4;

/// A schedule and what it remembers.
#[derive(Debug, Clone)]
pub struct Scheduler {
    schedule: Schedule,
    peak: f64,
    steps: u64,
    pub memory: Memory,
}

/// The part that a checkpoint saves.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Rate of a plateau schedule now.
    lr: f64,
    /// Best loss seen; infinite before the first (absent in JSON).
    best: Option<f64>,
    waited: u64,
}

impl Scheduler {
    /// `peak` is the optimiser's rate, `steps` the stage's length.
    pub fn new(schedule: Schedule, peak: f64, steps: u64) -> Self {
        Scheduler { schedule, peak, steps, memory: Memory { lr: peak, best: None, waited: 0 } }
    }

    /// Rate of a step, counted from 0. Warm-up: peak (step + 1) / warmup.
    pub fn lr(&self, step: u64) -> f64 {
        let warmup = self.schedule.warmup;
        if step < warmup {
            return self.peak * (step + 1) as f64 / warmup as f64;
        }
        match self.schedule.kind {
            ScheduleKind::Constant => self.peak,
            ScheduleKind::Cosine { min_lr } => {
                let x = match step < self.steps {
                    true => (step - warmup) as f64 / (self.steps - warmup) as f64,
                    false => 1.0,
                };
                min_lr + (self.peak - min_lr) * (1.0 + (std::f64::consts::PI * x).cos()) / 2.0
            }
            ScheduleKind::Plateau { .. } => self.memory.lr,
        }
    }

    /// Whether the loss must be evaluated after this step (counted from 0).
    pub fn evaluates(&self, step: u64) -> bool {
        match self.schedule.kind {
            ScheduleKind::Plateau { every, .. } => (step + 1).is_multiple_of(every) || step + 1 == self.steps,
            _ => false,
        }
    }

    /// Takes an evaluated loss; true when it is the best so far.
    pub fn evaluated(&mut self, loss: f64) -> bool {
        let ScheduleKind::Plateau { factor, patience, min_lr, .. } = self.schedule.kind else { return false };
        let memory = &mut self.memory;
        let lowest = memory.best.is_none_or(|best| loss < best);
        if memory.best.is_none_or(|best| loss < best * (1.0 - THRESHOLD)) {
            memory.best = Some(loss);
            memory.waited = 0;
        } else {
            memory.waited += 1;
        }
        if memory.waited > patience {
            memory.lr = (memory.lr * factor).max(min_lr);
            memory.waited = 0;
        }
        lowest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture() -> serde_json::Value {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/optimizer.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn list(value: &serde_json::Value) -> Vec<f64> {
        value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    }

    #[test]
    fn plateau_is_torchs() {
        for case in fixture()["plateau"].as_array().unwrap() {
            let number = |key: &str| case[key].as_f64().unwrap();
            let kind = ScheduleKind::Plateau {
                factor: number("factor"),
                patience: number("patience") as u64,
                min_lr: number("min_lr"),
                every: 1,
            };
            let mut scheduler = Scheduler::new(Schedule { kind, warmup: 0 }, number("lr"), 100);
            for (loss, lr) in list(&case["losses"]).into_iter().zip(list(&case["lrs"])) {
                scheduler.evaluated(loss);
                assert!((scheduler.lr(50) / lr - 1.0).abs() < 1e-9, "{case}");
            }
        }
    }

    #[test]
    fn warm_up_and_cosine() {
        for case in fixture()["cosine"].as_array().unwrap() {
            let number = |key: &str| case[key].as_f64().unwrap();
            let kind = ScheduleKind::Cosine { min_lr: number("min_lr") };
            let schedule = Schedule { kind, warmup: number("warmup") as u64 };
            let scheduler = Scheduler::new(schedule, number("lr"), number("steps") as u64);
            for (step, lr) in list(&case["lrs"]).into_iter().enumerate() {
                assert!((scheduler.lr(step as u64) - lr).abs() < 1e-12 + 1e-9 * lr, "step {step} of {case}");
            }
        }
    }
}
