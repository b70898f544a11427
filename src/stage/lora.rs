//! Low-rank recovery (LoLCATs' second stage): the whole student learns next-token labels through LoRA, all else frozen,
//! or the mixers' tensors with it.

use crate::Result;
use crate::model::{Adapter, Model, Student, View};
use crate::train::{Gradients, Group, Objective, end_to_end, loss_only, non_finite_layer};
use std::collections::BTreeSet;

/// Next-token cross-entropy times `labels`.
pub struct Lora<'a> {
    pub model: &'a Model,
    pub labels: f64,
    /// Computes each layer's forward again in the backward pass rather than keep it.
    pub recompute: bool,
    trained: BTreeSet<String>,
}

impl<'a> Lora<'a> {
    pub fn new(model: &'a Model, labels: f64, recompute: bool, groups: &[Group]) -> Self {
        Lora { model, labels, recompute, trained: groups.iter().flat_map(|g| g.names.iter().cloned()).collect() }
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

impl Objective for Lora<'_> {
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
