//! Low-rank recovery (LoLCATs' second stage): the whole student learns next-token labels through LoRA, all else frozen,
//! or the mixers' tensors with it.

use super::api::{
    CheckContext, Measured, Needs, Refusal, Registration, RunContext, Stage, StageRecipe, Work, WorkContext, elements,
};
use super::cost::{Cost, F32, PROGRAM, Sizes};
use super::training::{Training, budget, refuse_less_than_a_step};
use crate::arch::Spec;
use crate::config::{Choice, Flag, Integer, List, Number, Table, Text};
use crate::model::{Adapter, Model, Student, Target, View};
use crate::train::{Gradients, Group, Objective, end_to_end, loss_only, non_finite_layer};
use crate::{Error, Result};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeSet;

pub(super) const REGISTRATION: Registration =
    Registration { kind: "lora", about: "low-rank finetuning of the whole student on next-token labels", read };

/// Low-rank finetuning of the whole student on next-token labels.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lora {
    pub tokens: u64,
    pub lora: LoraShape,
    pub loss: LoraLoss,
    /// Train the mixers' tensors as well.
    pub train_mixer: bool,
    /// Compute each layer's forward again in the backward pass rather than keep it.
    pub recompute: bool,
    #[serde(flatten)]
    pub training: Training,
}

/// The shape of the low-rank updates: `W + alpha / rank * B A`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoraShape {
    pub rank: usize,
    pub alpha: f64,
    #[serde(serialize_with = "words")]
    pub on: Vec<Target>,
    /// Folder of an adapter in PEFT's format to start from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

/// Weights of the losses of a LoRA stage.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LoraLoss {
    /// Of the cross-entropy of the next token.
    pub labels: f64,
}

impl LoraShape {
    /// The adapter that a stage of this shape trains.
    pub fn adapter(&self) -> Adapter {
        Adapter { rank: self.rank, alpha: self.alpha, targets: self.on.clone() }
    }

    /// Weights of all layers' adapters.
    fn parameters(&self, spec: &Spec) -> f64 {
        let one = |layer, target: &Target| spec.linear(layer, *target).map_or(0, |shape| shape.iter().sum::<usize>());
        let of_layer = |layer| self.on.iter().map(|target| one(layer, target)).sum::<usize>() as f64;
        (0..spec.layers).map(of_layer).sum::<f64>() * self.rank as f64
    }

    /// Linear layers that the recipe asks for and that no block has.
    fn check(&self, spec: &Spec) -> Vec<Refusal> {
        let absent = |target: &&Target| (0..spec.layers).all(|layer| spec.linear(layer, **target).is_none());
        let there = Target::ALL.into_iter().filter(|target| !absent(&target)).map(|t| format!("\"{}\"", t.word()));
        let there = there.collect::<Vec<_>>().join(", ");
        let why = if spec.experts.is_some() { ": its experts stay as they are" } else { "" };
        let refusal = |target: &Target| {
            let what = format!("this teacher has no `{}` to adapt{why}", target.word());
            ("lora.on".to_string(), what, format!("choose from {there}"))
        };
        self.on.iter().filter(absent).map(refusal).collect()
    }
}

fn words<S: serde::Serializer>(on: &[Target], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(on.iter().map(|target| target.word()))
}

fn read(t: &mut Table, sequence: Option<usize>) -> StageRecipe {
    let before = t.errors();
    let tokens = budget(t);
    let lora = t.table("lora", "What the low-rank updates W + alpha / rank * B A look like.", shape);
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
    let training = Training::read(t, 1e-4);
    if t.errors() == before {
        refuse_less_than_a_step(t, tokens, &training.batch, sequence);
    }
    StageRecipe::new(Lora { tokens, lora, loss, train_mixer, recompute, training })
}

fn shape(t: &mut Table) -> LoraShape {
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

impl Stage for Lora {
    fn kind(&self) -> &'static str {
        REGISTRATION.kind
    }

    fn settings(&self) -> Result<Value> {
        serde_json::to_value(self).map_err(|e| Error::Internal(e.to_string()))
    }

    fn needs(&self) -> Needs<'_> {
        Needs { adapter: Some(&self.lora), ..self.training.needs() }
    }

    fn check(&self, c: &CheckContext) -> Vec<Refusal> {
        self.lora.check(c.spec)
    }

    fn work(&self, c: &WorkContext) -> Work {
        let adapter = self.lora.adapter();
        let of_layer = |layer| adapter.tensors(c.spec, layer).into_iter().map(|(_, shape, _)| elements(&shape));
        let mut trained: Vec<u64> = (0..c.spec.layers).flat_map(of_layer).collect();
        if self.train_mixer {
            trained.extend(c.tensors(true));
        }
        let cost = self.cost(&c.sizes(c.sequence), c.spec, c.sequence);
        self.training.work(self.tokens, trained, cost, c)
    }

    /// A second adapter starts on weights that hold the first.
    fn prepare(&self, model: &mut Model, student: &mut Student, seed: u64) -> Result<()> {
        student.merge(model)?;
        student.adapt(self.lora.adapter(), &model.spec, seed)
    }

    fn run(&self, c: &mut RunContext) -> Result<Measured> {
        let decay = self.training.optimizer.weight_decay;
        let groups = LoraObjective::trained(c.student, c.model, &self.lora.adapter(), self.train_mixer, decay);
        let objective = LoraObjective::new(c.model, self.loss.labels, self.recompute, &groups);
        self.training.run(c, &objective, groups)?;
        Ok(Measured::Nothing)
    }
}

impl Lora {
    /// LoRA runs the student forward and backward. Frozen weights get no gradient, so their backward pass costs as much
    /// as the forward one; what trains costs twice as much:
    ///
    /// ```text
    /// forward    = L 2 block + L' mixer + (L - L') softmax + 2 adapters + 2 V D
    /// operations = forward + (L 2 block + 2 mixers and softmaxes + 4 adapters + 2 V D) + forward again if recomputed
    /// memory = teacher + mixers + 4 trained + n (layer (L + 1) + 3 D) + logits in slices
    /// layer  = 4 D + 4 H K + 2 G K + 2 H F + 3 ffn
    /// ```
    ///
    /// A layer keeps the inputs of its products, its features and its MLP until the backward pass has come down to it;
    /// one more layer's worth is the gradients on the way. Recomputed, a layer keeps its input alone.
    fn cost(&self, s: &Sizes, spec: &Spec, sequence: usize) -> Cost {
        let n = (self.training.batch.size * sequence) as f64;
        let adapters = self.lora.parameters(spec);
        let mixed = s.replaced * s.mixer + (s.layers - s.replaced) * s.softmax;
        let linear = 2.0 * s.layers * s.block;
        let forward = linear + mixed + 2.0 * adapters + 2.0 * s.head;
        let backward = linear + 2.0 * mixed + 4.0 * adapters + 2.0 * s.head;
        let again = if self.recompute { forward } else { 0.0 };
        let layer = 4.0 * s.width + 4.0 * s.queries + 2.0 * s.keys + 2.0 * s.features + 3.0 * s.ffn;
        let kept = if self.recompute { s.layers * s.width + 2.0 * layer } else { (s.layers + 1.0) * layer };
        let mixers = s.replaced * s.mixer_parameters;
        let trained = 4.0 * adapters + if self.train_mixer { 3.0 * mixers } else { 0.0 };
        let held = s.parameters + mixers + trained + n * (kept + 3.0 * s.width) + s.slices(1.0);
        Cost { per_token: forward + backward + again, memory: PROGRAM + F32 * held }
    }
}

/// The objective: next-token cross-entropy times `labels`.
pub struct LoraObjective<'a> {
    pub model: &'a Model,
    pub labels: f64,
    /// Computes each layer's forward again in the backward pass rather than keep it.
    pub recompute: bool,
    trained: BTreeSet<String>,
}

impl<'a> LoraObjective<'a> {
    pub fn new(model: &'a Model, labels: f64, recompute: bool, groups: &[Group]) -> Self {
        LoraObjective {
            model,
            labels,
            recompute,
            trained: groups.iter().flat_map(|g| g.names.iter().cloned()).collect(),
        }
    }

    /// The adapter's tensors, and with `train_mixer` the mixers'.
    pub fn trained(
        student: &Student,
        model: &Model,
        adapter: &Adapter,
        train_mixer: bool,
        weight_decay: f64,
    ) -> Vec<Group> {
        let spec = &model.spec;
        let adapters = (0..spec.layers).flat_map(|l| adapter.tensors(spec, l)).map(|(name, ..)| name).collect();
        let mut groups = vec![Group { names: adapters, lr_scale: 1.0, weight_decay }];
        if train_mixer {
            groups.push(Group { names: student.learned_tensors(), lr_scale: 1.0, weight_decay });
        }
        groups
    }
}

impl Objective for LoraObjective<'_> {
    fn name(&self) -> &str {
        "LoRA"
    }

    fn gradients(&self, student: &Student, ids: &[u32], batch: usize) -> Result<(f64, Gradients)> {
        let view = View::student(self.model, student);
        end_to_end(view, ids, batch, self.labels, &|name| self.trained.contains(name), self.recompute)
    }

    fn loss(&self, student: &Student, ids: &[u32], batch: usize) -> Result<f64> {
        Ok(self.labels * loss_only(View::student(self.model, student), ids, batch)?)
    }

    fn locate_non_finite(&self, student: &Student, ids: &[u32], batch: usize) -> Result<String> {
        let layer = non_finite_layer(View::student(self.model, student), ids, batch)?;
        Ok(layer.map_or("the loss at the head".into(), |l| format!("the attention output of layer {l}")))
    }
}
