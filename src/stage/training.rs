//! The settings that every stage which trains has, and the loop that it runs.

use super::api::{Needs, RunContext, TOKENS, Work, WorkContext};
use super::cost::Cost;
use crate::Result;
use crate::config::{Integer, List, Number, Table};
use crate::train::{Batch, Group, Objective, Optimizer, Schedule, ScheduleKind, Trainer};
use serde::Serialize;

/// More steps than any stage has.
const MAX_STEPS: u64 = 1_000_000_000;

/// Settings of a stage that trains.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Training {
    pub optimizer: Optimizer,
    pub schedule: Schedule,
    pub batch: Batch,
    pub checkpoint: Checkpoint,
}

/// How often training state is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Checkpoint {
    /// Steps.
    pub every: u64,
}

impl Training {
    /// Reads the tables that training stages share. `lr`: the default learning rate.
    pub(super) fn read(t: &mut Table, lr: f64) -> Training {
        let before = t.errors();
        let optimizer = t.table("optimizer", "AdamW.", |t: &mut Table| optimizer(t, lr));
        let schedule =
            t.table("schedule", "The learning rate over the stage.", |t: &mut Table| schedule(t, optimizer.lr));
        if let ScheduleKind::Cosine { min_lr } | ScheduleKind::Plateau { min_lr, .. } = schedule.kind
            && t.errors() == before
            && min_lr > optimizer.lr
        {
            let what = format!("`{}.schedule.min_lr` is {min_lr}, above `optimizer.lr`, {}", t.path(), optimizer.lr);
            t.wrong_at("schedule.min_lr", what, "the rate only falls: make `min_lr` smaller or `lr` larger");
        }
        let batch = t.table("batch", "How many windows make a step.", batch);
        let checkpoint = t.table("checkpoint", "How often training state is saved, for going on later.", checkpoint);
        Training { optimizer, schedule, batch, checkpoint }
    }

    pub(super) fn needs(&self) -> Needs<'_> {
        Needs { training_text: true, held_out: self.schedule.needs_held_out(), trains: true, ..Needs::default() }
    }

    /// The work of whole steps on at least `tokens` tokens.
    pub(super) fn work(&self, tokens: u64, tensors: Vec<u64>, cost: Cost, context: &WorkContext) -> Work {
        let steps = self.batch.steps(tokens, context.sequence);
        let copies = if self.schedule.needs_held_out() { 4 } else { 3 };
        Work { tokens: steps * self.batch.step_tokens(context.sequence), steps, tensors, copies, cost }
    }

    /// Trains the student by `objective`, from where the store left off.
    pub(super) fn run(&self, c: &mut RunContext, objective: &dyn Objective, groups: Vec<Group>) -> Result<()> {
        let trainer = Trainer {
            stage: c.name,
            steps: c.steps,
            optimizer: self.optimizer,
            schedule: self.schedule,
            batch: self.batch,
            save_every: self.checkpoint.every,
            groups,
        };
        trainer.run(c.student, objective, &c.data, c.store, c.progress)
    }
}

/// The budget of a stage that trains.
pub(super) fn budget(t: &mut Table) -> u64 {
    t.required(
        "tokens",
        TOKENS,
        "\"6M\"",
        "Tokens to train on, as \"250K\", \"6M\", \"1.5B\" or a whole number; whole steps only. LoLCATs uses about \
         20M for each of its two stages.",
    )
}

/// A budget of less than one step is an error.
pub(super) fn refuse_less_than_a_step(t: &mut Table, tokens: u64, batch: &Batch, sequence: Option<usize>) {
    let Some(sequence) = sequence else { return };
    let step = batch.step_tokens(sequence);
    if tokens < step {
        let what = format!(
            "`{}.tokens` is {tokens}, less than one step of {step} tokens (batch {} x accumulate {} x sequence \
             {sequence})",
            t.path(),
            batch.size,
            batch.accumulate
        );
        t.wrong_at("tokens", what, "give more tokens, or make `batch` or `data.sequence` smaller");
    }
}

fn optimizer(t: &mut Table, lr: f64) -> Optimizer {
    let beta = List { item: Number::from(0.0).below(1.0), min: 2, max: 2, distinct: false, example: "[0.9, 0.999]" };
    Optimizer {
        lr: t.optional(
            "lr",
            Number::above(0.0).to(1.0),
            lr,
            "Learning rate. LoLCATs: 1e-2 for attention transfer, 1e-4 for LoRA.",
        ),
        betas: t
            .optional("betas", beta, vec![0.9, 0.999], "Decay of the first and second moment (PyTorch's AdamW).")
            .try_into()
            .unwrap_or_default(),
        eps: t.optional("eps", Number::above(0.0).to(1.0), 1e-8, "Added to the denominator (PyTorch's AdamW)."),
        weight_decay: t.optional(
            "weight_decay",
            Number::from(0.0).to(1.0),
            0.0,
            "Decoupled weight decay, times the learning rate. LoLCATs: 0.",
        ),
        clip: t.maybe(
            "clip",
            Number::above(0.0),
            "Largest global norm of the gradients. Absent: no clipping, as LoLCATs.",
        ),
    }
}

fn schedule(t: &mut Table, lr: f64) -> Schedule {
    let kind = t.variant(
        "kind",
        &[
            ("plateau", "lowered when the evaluated loss stops falling (LoLCATs)"),
            ("cosine", "half a cosine down to `min_lr` at the last step"),
            ("constant", "stays as it is"),
        ],
        Some("plateau"),
        "What happens after the warm-up.",
    );
    let rate = || Number::from(0.0).to(1.0);
    let lowest = "The rate never falls below this.";
    let kind = match kind.map(|(name, _)| *name) {
        Some("plateau") => ScheduleKind::Plateau {
            factor: t.optional(
                "factor",
                Number::above(0.0).below(1.0),
                0.1,
                "The rate is multiplied by this. LoLCATs: 0.1.",
            ),
            patience: t.optional(
                "patience",
                Integer { min: 0, max: MAX_STEPS },
                10,
                "Evaluations without a better loss that are tolerated. LoLCATs: 10.",
            ),
            min_lr: t.optional("min_lr", rate(), lr.min(1e-5), &format!("{lowest} LoLCATs: 1e-5.")),
            every: t.optional(
                "every",
                Integer { min: 1, max: MAX_STEPS },
                100,
                "Steps between evaluations. LoLCATs: 100.",
            ),
        },
        Some("cosine") => ScheduleKind::Cosine { min_lr: t.optional("min_lr", rate(), 0.0, lowest) },
        _ => ScheduleKind::Constant,
    };
    let help = "Steps over which the rate rises from 0 to `optimizer.lr`. LoLCATs: none.";
    let warmup = t.optional("warmup", Integer { min: 0, max: MAX_STEPS }, 0, help);
    Schedule { kind, warmup }
}

fn batch(t: &mut Table) -> Batch {
    Batch {
        size: t.optional("size", Integer { min: 1, max: 65_536 }, 1, "Windows computed together. LoLCATs: 1."),
        accumulate: t.optional(
            "accumulate",
            Integer { min: 1, max: 65_536 },
            8,
            "Batches whose gradients are averaged before an update. LoLCATs: 8.",
        ),
    }
}

fn checkpoint(t: &mut Table) -> Checkpoint {
    Checkpoint { every: t.optional("every", Integer { min: 1, max: MAX_STEPS }, 100, "Steps between checkpoints.") }
}
