//! The tables of a stage.

use super::tables::MAX_SEQUENCE;
use super::types::{
    AttentionTransfer, Batch, Calibrate, Checkpoint, Evaluate, Lora, LoraLoss, LoraShape, Match, Optimizer, Schedule,
    ScheduleKind, StageRecipe, Target, Training, TransferLoss,
};
use super::values::TOKENS;
use crate::config::{Choice, Flag, Integer, List, Number, Table, Text};

/// More steps than any stage has.
const MAX_STEPS: u64 = 1_000_000_000;

/// Reads the keys of one kind of stage. The second argument: tokens of a training window, when known.
type ReadStage = fn(&mut Table, Option<usize>) -> StageRecipe;

const STAGES: [(&str, &str, ReadStage); 5] = [
    ("calibrate", "every mixer's free initial values from the teacher's activations, nothing trained", calibrate),
    ("attention-transfer", "every mixer learns the output of the attention that it replaces", attention_transfer),
    ("lora", "low-rank finetuning of the whole student on next-token labels", lora),
    ("merge", "the low-rank updates become part of the weights", |_, _| StageRecipe::Merge),
    ("evaluate", "perplexity of student and teacher on a text", evaluate),
];

/// The kinds of stages, as a recipe names them.
pub fn stage_kinds() -> impl Iterator<Item = &'static str> {
    STAGES.iter().map(|(kind, ..)| *kind)
}

/// One `[[stage]]`; `None` after an error in its kind.
pub(super) fn stage(t: &mut Table, sequence: Option<usize>) -> Option<StageRecipe> {
    let (_, _, read) = t.variant("kind", &STAGES, None, "What the stage does.")?;
    Some(read(t, sequence))
}

fn calibrate(t: &mut Table, sequence: Option<usize>) -> StageRecipe {
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
    StageRecipe::Calibrate(Calibrate { tokens, rule })
}

fn attention_transfer(t: &mut Table, sequence: Option<usize>) -> StageRecipe {
    let before = t.errors();
    let tokens = budget(t);
    let loss = t.table("loss", "Weights of the losses, which are summed.", |t: &mut Table| TransferLoss {
        output: t.optional(
            "output",
            Number::from(0.0),
            1000.0,
            "Weight of the mean squared error between head outputs before the output projection, the mean over \
                 layers. LoLCATs: 1000.",
        ),
        weights: t.optional(
            "weights",
            Number::from(0.0),
            0.0,
            "Weight of the cross-entropy between attention weights, quadratic in `data.sequence`. LoLCATs has it \
                 as an option; 0: not computed.",
        ),
    });
    if t.errors() == before && loss.output == 0.0 && loss.weights == 0.0 {
        let what = format!("both losses of `{}` have weight 0: there is nothing to learn", t.path());
        t.wrong_at("loss", what, "for example loss = { output = 1000.0 }");
    }
    let training = training(t, 1e-2);
    if t.errors() == before {
        refuse_less_than_a_step(t, tokens, &training.batch, sequence);
    }
    StageRecipe::AttentionTransfer(AttentionTransfer { tokens, loss, training })
}

fn lora(t: &mut Table, sequence: Option<usize>) -> StageRecipe {
    let before = t.errors();
    let tokens = budget(t);
    let lora = t.table("lora", "What the low-rank updates W + alpha / rank * B A look like.", lora_shape);
    let loss = t.table("loss", "Weights of the losses.", |t: &mut Table| LoraLoss {
        labels: t.optional("labels", Number::above(0.0), 1.0, "Weight of the cross-entropy of the next token."),
    });
    let train_mixer = t.optional(
        "train_mixer",
        Flag,
        false,
        "Also train the mixers' own tensors (a variant of LoLCATs; its default keeps them frozen here).",
    );
    let recompute = t.optional(
        "recompute",
        Flag,
        false,
        "Compute each layer's forward again in the backward pass rather than keep it: less memory, about a third \
         more time.",
    );
    let training = training(t, 1e-4);
    if t.errors() == before {
        refuse_less_than_a_step(t, tokens, &training.batch, sequence);
    }
    StageRecipe::Lora(Lora { tokens, lora, loss, train_mixer, recompute, training })
}

fn lora_shape(t: &mut Table) -> LoraShape {
    let projections = List {
        item: Choice(Target::ALL.map(|target| (target.word(), target)).to_vec()),
        min: 1,
        max: Target::ALL.len(),
        distinct: true,
        example: "[\"q\", \"k\", \"v\", \"o\"]",
    };
    let attention = vec![Target::Q, Target::K, Target::V, Target::O];
    LoraShape {
        rank: t.optional("rank", Integer { min: 1, max: 4096 }, 8, "Rank of each update. LoLCATs: 8."),
        alpha: t.optional("alpha", Number::above(0.0).to(1e6), 16.0, "Scale, over the rank. LoLCATs: 16."),
        on: t.optional("on", projections, attention, "Projections that get an update. LoLCATs: q, k, v, o."),
        from: t.maybe(
            "from",
            Text { example: "adapter" },
            "Folder of an adapter in PEFT's format to start from, as `subquad export --adapter` writes it; `rank`, \
             `alpha` and `on` say what it is. Absent: a new one.",
        ),
    }
}

fn evaluate(t: &mut Table, training_sequence: Option<usize>) -> StageRecipe {
    let before = t.errors();
    let text = t.required(
        "text",
        Text { example: "builtin:books-valid" },
        "\"builtin:books-valid\"",
        "A text that no stage trains on: a .txt or .jsonl file or a folder of them, or `builtin:NAME`.",
    );
    let tokens = t.maybe(
        "tokens",
        TOKENS,
        "How much of the text, from its start or, with `spread`, from all over it. Absent: all of it.",
    );
    let sequence = t.maybe(
        "sequence",
        Integer { min: 2, max: MAX_SEQUENCE },
        "Tokens of one window; each predicts all but its first token. Absent: as in training.",
    );
    let spread = t.optional(
        "spread",
        Flag,
        false,
        "Whether `tokens` are windows at even distances through the whole text: a short evaluation of a long text.",
    );
    if t.errors() == before
        && let (Some(tokens), Some(window)) = (tokens, sequence.or(training_sequence))
        && tokens < window as u64
    {
        let what = format!("`{}.tokens` is {tokens}, less than one window of {window} tokens", t.path());
        t.wrong_at("tokens", what, format!("at least {window}"));
    }
    StageRecipe::Evaluate(Evaluate { text, tokens, sequence, spread })
}

fn budget(t: &mut Table) -> u64 {
    t.required(
        "tokens",
        TOKENS,
        "\"6M\"",
        "Tokens to train on, as \"250K\", \"6M\", \"1.5B\" or a whole number; whole steps only. LoLCATs uses about \
         20M for each of its two stages.",
    )
}

fn refuse_less_than_a_step(t: &mut Table, tokens: u64, batch: &Batch, sequence: Option<usize>) {
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

fn training(t: &mut Table, lr: f64) -> Training {
    let before = t.errors();
    let optimizer = t.table("optimizer", "AdamW.", |t: &mut Table| optimizer(t, lr));
    let schedule = t.table("schedule", "The learning rate over the stage.", |t: &mut Table| schedule(t, optimizer.lr));
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
