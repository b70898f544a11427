//! The frozen weights of a decoder.

use super::fused_weights;
use crate::arch::{NormAt, Part, Spec, StoredTensor, Target};
use crate::checkpoint::Checkpoint;
use crate::ops::lm_head::Head;
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// One block, or what lies outside the blocks.
#[derive(Clone, Default)]
pub struct Layer {
    parts: BTreeMap<Part, Tensor>,
}

impl Layer {
    /// A weight, where the block has it.
    pub fn get(&self, part: Part) -> Option<&Tensor> {
        self.parts.get(&part)
    }

    /// A weight that the spec says is there.
    pub fn need(&self, part: Part) -> Result<&Tensor> {
        self.get(part).ok_or_else(|| Error::Internal(format!("the model has no {part:?}")))
    }

    /// [out, in] of a linear layer that the block has.
    pub fn weight(&self, target: Target) -> Result<&Tensor> {
        self.need(Part::Weight(target))
    }
}

/// All of a teacher, in f32 on the CPU. Clones share their tensors.
#[derive(Clone)]
pub struct Model {
    pub spec: Spec,
    /// [vocab, D]
    pub embed: Tensor,
    pub layers: Vec<Layer>,
    /// The embedding's weights when tied.
    pub head: Head,
    /// What lies outside the blocks.
    outer: Layer,
}

impl Model {
    /// Reads every weight of the teacher; shapes are held to the spec.
    pub fn load(checkpoint: &Checkpoint, spec: &Spec) -> Result<Model> {
        Model::of(spec, |stored| checkpoint.tensor_of(&stored.name, &stored.shape, DType::F32))
    }

    /// The model whose tensors, as files have them, `read` gives.
    pub fn of(spec: &Spec, read: impl Fn(&StoredTensor) -> Result<Tensor> + Sync) -> Result<Model> {
        let mut outer = Layer::default();
        let mut layers = vec![Layer::default(); spec.layers];
        let stored = spec.stored();
        let parts = stored.par_iter().map(|stored| fused_weights::cut(spec, stored, read(stored)?));
        // All first, so that of several errors it is always the same that is told.
        for (stored, parts) in stored.iter().zip(parts.collect::<Vec<Result<_>>>()) {
            let place = stored.layer.map_or(&mut outer, |layer| &mut layers[layer]);
            place.parts.extend(parts?);
        }
        let embed = outer.need(Part::Embed)?.clone();
        let weight = if spec.tied { embed.clone() } else { outer.need(Part::Head)?.clone() };
        let head = Head { weight, cap: spec.logit_cap.map(|cap| cap as f32) };
        Ok(Model { embed, layers, head, outer, spec: spec.clone() })
    }

    /// A tensor as files have it.
    pub fn stored(&self, stored: &StoredTensor) -> Result<Tensor> {
        let place = stored.layer.map_or(&self.outer, |layer| &self.layers[layer]);
        let parts = stored.parts.iter().map(|(part, _)| place.need(*part)).collect::<Result<Vec<_>>>()?;
        fused_weights::join(&self.spec, stored, &parts)
    }

    /// Replaces the weight of one linear layer, when an adapter is merged.
    pub fn set_weight(&mut self, layer: usize, target: Target, weight: Tensor) {
        self.layers[layer].parts.insert(Part::Weight(target), weight);
    }

    /// The learned positions, where there are some.
    pub fn positions(&self) -> Option<&Tensor> {
        self.outer.get(Part::Positions)
    }

    /// Weight and bias of the last norm.
    pub fn final_norm(&self) -> Result<(&Tensor, Option<&Tensor>)> {
        Ok((self.outer.need(Part::Norm(NormAt::Final))?, self.outer.get(Part::NormBias(NormAt::Final))))
    }
}
