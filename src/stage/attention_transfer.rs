//! Attention transfer (LoLCATs, arXiv 2410.10254): every layer's mixer learns the output of the softmax attention that
//! it replaces, on the teacher's own inputs. One forward pass of the teacher serves all layers; no gradient crosses a
//! layer, and nothing of a layer outlives it.

use super::api::{
    CheckContext, Measured, Needs, Refusal, Registration, RunContext, Stage, StageRecipe, Work, WorkContext,
};
use super::cost::{Cost, F32, PROGRAM, Sizes};
use super::training::{Training, budget, refuse_less_than_a_step};
use crate::config::{Number, Table};
use crate::mixer::NO_WEIGHTS;
use crate::model::{Flow, Model, Student, View};
use crate::ops::{Tape, elementwise};
use crate::train::{Gradients, Group, Objective};
use crate::{Error, Result};
use candle_core::Tensor;
use serde::Serialize;
use serde_json::Value;

pub(super) const REGISTRATION: Registration = Registration {
    kind: "attention-transfer",
    about: "every mixer learns the output of the attention that it replaces",
    read,
};

/// Every mixer learns the output of the attention that it replaces, on the teacher's own inputs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AttentionTransfer {
    pub tokens: u64,
    pub loss: TransferLoss,
    #[serde(flatten)]
    pub training: Training,
}

/// Weights of the losses of attention transfer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TransferLoss {
    /// Of the mean squared error of head outputs before the output projection.
    pub output: f64,
    /// Of the cross-entropy between attention weights; 0: not computed.
    pub weights: f64,
}

fn read(t: &mut Table, sequence: Option<usize>) -> StageRecipe {
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
    let training = Training::read(t, 1e-2);
    if t.errors() == before {
        refuse_less_than_a_step(t, tokens, &training.batch, sequence);
    }
    StageRecipe::new(AttentionTransfer { tokens, loss, training })
}

impl Stage for AttentionTransfer {
    fn kind(&self) -> &'static str {
        REGISTRATION.kind
    }

    fn settings(&self) -> Result<Value> {
        serde_json::to_value(self).map_err(|e| Error::Internal(e.to_string()))
    }

    fn needs(&self) -> Needs<'_> {
        self.training.needs()
    }

    fn check(&self, c: &CheckContext) -> Vec<Refusal> {
        let mut all = vec![];
        let unlike = c.replaced.iter().find_map(|&layer| c.student.mixer(layer).without_weights());
        if let Some(what) = unlike.filter(|_| self.loss.weights > 0.0) {
            all.push(("loss.weights".into(), what.into(), NO_WEIGHTS.into()));
        }
        if !c.replaced.is_empty() && c.student.learned_tensors().is_empty() {
            let conversion = &c.student.conversion;
            let what = format!("`{}` adds nothing that attention transfer could train", conversion.mixer);
            let scaled = conversion.options.get("output_scale").is_some_and(|scale| scale == false);
            let scale = if scaled { "set `student.output_scale = true`, or " } else { "" };
            all.push(("kind".into(), what, format!("{scale}leave this stage out")));
        }
        all
    }

    fn work(&self, c: &WorkContext) -> Work {
        let cost = self.cost(&c.sizes(c.sequence), c.sequence);
        self.training.work(self.tokens, c.tensors(true), cost, c)
    }

    fn run(&self, c: &mut RunContext) -> Result<Measured> {
        let objective = TransferObjective { model: c.model, output: self.loss.output, weights: self.loss.weights };
        let groups = TransferObjective::trained(c.student, self.training.optimizer.weight_decay);
        self.training.run(c, &objective, groups)?;
        Ok(Measured::Nothing)
    }
}

impl AttentionTransfer {
    /// Attention transfer runs the teacher, and each mixer forward and backward on the teacher's inputs:
    ///
    /// ```text
    /// operations = L (2 block + softmax) + L' (3 mixer + 3 softmax if weights are compared)
    /// memory = teacher + 4 trained + one layer's: n (D + 8 H K + 3 G K + 5 H F), or the MLP's n (4 D + H K + 3 ffn)
    /// ```
    ///
    /// `4 trained`: weights, gradients, two moments. `5 H F`: two features, their gradients, one in between.
    fn cost(&self, s: &Sizes, sequence: usize) -> Cost {
        let n = (self.training.batch.size * sequence) as f64;
        let weights = if self.loss.weights > 0.0 { 3.0 * s.softmax } else { 0.0 };
        let per_token = s.layers * (2.0 * s.block + s.softmax) + s.replaced * (3.0 * s.mixer + weights);
        let attention = s.width + 8.0 * s.queries + 3.0 * s.keys + 5.0 * s.features;
        let mlp = 4.0 * s.width + s.queries + 3.0 * s.ffn;
        let trained = 4.0 * s.replaced * s.mixer_parameters;
        Cost { per_token, memory: PROGRAM + F32 * (s.parameters + trained + n * attention.max(mlp)) }
    }
}

/// The objective: output times the mean squared error of head outputs before the o projection, plus weights times the cross-entropy
/// of attention weights, averaged over the layers that are replaced.
pub struct TransferObjective<'a> {
    pub model: &'a Model,
    pub output: f64,
    pub weights: f64,
}

impl TransferObjective<'_> {
    /// The mixers' tensors.
    pub fn trained(student: &Student, weight_decay: f64) -> Vec<Group> {
        let names = student.learned_tensors();
        vec![Group { names, lr_scale: 1.0, weight_decay }]
    }

    /// Loss of every replaced layer, by layer.
    pub fn layer_losses(&self, student: &Student, ids: &[u32], batch: usize) -> Result<Vec<(usize, f64)>> {
        self.each_layer(student, ids, batch, None)
    }

    fn each_layer(
        &self,
        student: &Student,
        ids: &[u32],
        batch: usize,
        mut gradients: Option<&mut Gradients>,
    ) -> Result<Vec<(usize, f64)>> {
        let replaced: Vec<usize> = (0..self.model.spec.layers).filter(|&l| student.replaced(l)).collect();
        let Some(&last) = replaced.last() else { return Ok(vec![]) };
        let share = 1.0 / replaced.len() as f64;
        let view = View::student(self.model, student);
        let mut losses = vec![];
        View::teacher(self.model).run(ids, batch, &mut |hook| {
            if student.replaced(hook.layer) {
                let tape = Tape::new();
                let vars = view.bind(hook.layer, gradients.is_some().then_some(&tape), |_| true);
                let (output, entropy) =
                    student.mixer(hook.layer).transfer(hook.heads, &vars.mixer, self.weights > 0.0)?;
                let error = elementwise::mean_squared_error(&output, hook.output.value())?;
                let mut loss = self.output * f64::from(error.scalar()?);
                if let Some(entropy) = &entropy {
                    loss += self.weights * f64::from(entropy.scalar()?);
                }
                losses.push((hook.layer, loss));
                if let Some(gradients) = gradients.as_deref_mut() {
                    let seed = |weight: f64| Tensor::new((weight * share) as f32, error.value().device());
                    let mut seeds = vec![(&error, seed(self.output)?)];
                    if let Some(entropy) = &entropy {
                        seeds.push((entropy, seed(self.weights)?));
                    }
                    let mut grads = tape.backward(seeds)?;
                    for (name, leaf) in &vars.leaves {
                        // A mixer whose linear branch no token reaches (a text shorter than the window) has none.
                        let g = grads.take(leaf).map_or_else(|| leaf.value().zeros_like(), Ok)?;
                        gradients.insert(name.clone(), g);
                    }
                }
            }
            Ok(if hook.layer == last { Flow::Stop } else { Flow::Continue })
        })?;
        Ok(losses)
    }
}

fn mean(losses: &[(usize, f64)]) -> f64 {
    losses.iter().map(|l| l.1).sum::<f64>() / losses.len().max(1) as f64
}

impl Objective for TransferObjective<'_> {
    fn name(&self) -> &str {
        "attention transfer"
    }

    fn gradients(&self, student: &Student, ids: &[u32], batch: usize) -> Result<(f64, Gradients)> {
        let mut gradients = Gradients::new();
        let losses = self.each_layer(student, ids, batch, Some(&mut gradients))?;
        Ok((mean(&losses), gradients))
    }

    fn loss(&self, student: &Student, ids: &[u32], batch: usize) -> Result<f64> {
        Ok(mean(&self.each_layer(student, ids, batch, None)?))
    }

    fn locate_non_finite(&self, student: &Student, ids: &[u32], batch: usize) -> Result<String> {
        let losses = self.each_layer(student, ids, batch, None)?;
        let bad = losses.iter().find(|(_, loss)| !loss.is_finite());
        Ok(bad.map_or("the loss".into(), |(layer, _)| format!("the loss of layer {layer}")))
    }
}
