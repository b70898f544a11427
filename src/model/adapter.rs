//! Low-rank adapters (LoRA, arXiv 2106.09685): W x + (alpha / r) B A x, A [r, in] Kaiming-uniform, B [out, r] zero.
//! Names are PEFT's, without its prefix.

use super::weights::Model;
use crate::Result;
use crate::arch::{Part, Spec, Target};
use crate::mixer::Initial;
use crate::ops::linear::linear;
use crate::ops::{Var, elementwise};
use candle_core::Tensor;
use std::collections::BTreeMap;

/// Which linear layers are adapted, and how. Those that a block does not have are passed over.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    pub rank: usize,
    pub alpha: f64,
    pub targets: Vec<Target>,
}

impl Adapter {
    /// alpha / r
    pub fn scale(&self) -> f32 {
        (self.alpha / self.rank as f64) as f32
    }

    /// Names of A and B of one linear layer; `None` where the block has no such layer. A weight that shares its tensor
    /// with others adds its own word.
    pub fn names(spec: &Spec, layer: usize, target: Target) -> Option<[String; 2]> {
        let (full, weights) = spec.place(layer, Part::Weight(target))?;
        let base = full.strip_suffix(".weight").unwrap_or(&full);
        let word = if weights > 1 { format!(".{}", target.word()) } else { String::new() };
        Some([format!("{base}{word}.lora_A.weight"), format!("{base}{word}.lora_B.weight")])
    }

    /// All tensors of one layer: name, shape, initial value.
    pub fn tensors(&self, spec: &Spec, layer: usize) -> Vec<(String, Vec<usize>, Initial)> {
        let one = |&target: &Target| {
            let ([out, input], [a, b]) = (spec.linear(layer, target)?, Self::names(spec, layer, target)?);
            Some([
                (a, vec![self.rank, input], Initial::Kaiming { fan_in: input }),
                (b, vec![out, self.rank], Initial::Constant(0.0)),
            ])
        };
        self.targets.iter().filter_map(one).flatten().collect()
    }

    /// y + (alpha / r) B A x.
    pub fn add(&self, y: Var, x: &Var, a: &Var, b: &Var) -> Result<Var> {
        elementwise::add_scaled(&y, self.scale(), &linear(&linear(x, a)?, b)?)
    }

    /// Adds (alpha / r) B A to the model's weights.
    pub fn merge(&self, model: &mut Model, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        for layer in 0..model.spec.layers {
            for &target in &self.targets {
                let Some([a, b]) = Self::names(&model.spec, layer, target) else { continue };
                if let (Some(a), Some(b)) = (tensors.get(&a), tensors.get(&b)) {
                    let delta = linear(&b.clone().into(), &a.t()?.contiguous()?.into())?;
                    let old = Var::constant(model.layers[layer].weight(target)?.clone());
                    let merged = elementwise::add_scaled(&old, self.scale(), &delta)?;
                    model.set_weight(layer, target, merged.value().clone());
                }
            }
        }
        Ok(())
    }
}
