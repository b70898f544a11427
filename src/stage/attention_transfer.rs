//! Attention transfer (LoLCATs, arXiv 2410.10254): every layer's mixer learns the output of the softmax attention that
//! it replaces, on the teacher's own inputs. One forward pass of the teacher serves all layers; no gradient crosses a
//! layer, and nothing of a layer outlives it.

use crate::Result;
use crate::model::{Flow, Model, Student, View};
use crate::ops::{Tape, elementwise};
use crate::train::{Gradients, Group, Objective};
use candle_core::Tensor;

/// output times the mean squared error of head outputs before the o projection, plus weights times the cross-entropy
/// of attention weights, averaged over the layers that are replaced.
pub struct AttentionTransfer<'a> {
    pub model: &'a Model,
    pub output: f64,
    pub weights: f64,
}

impl AttentionTransfer<'_> {
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

impl Objective for AttentionTransfer<'_> {
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
