//! The frozen weights of a decoder.

use crate::Result;
use crate::arch::{Names, Spec};
use crate::checkpoint::Checkpoint;
use crate::ops::rope::Rotary;
use candle_core::{DType, Tensor};

/// A linear layer of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Target {
    pub const ALL: [Target; 7] = [Target::Q, Target::K, Target::V, Target::O, Target::Gate, Target::Up, Target::Down];

    /// As recipes write it.
    pub fn word(self) -> &'static str {
        ["q", "k", "v", "o", "gate", "up", "down"][self as usize]
    }

    pub fn from_word(word: &str) -> Option<Target> {
        Self::ALL.into_iter().find(|t| t.word() == word)
    }

    /// Name of its weight in a checkpoint, `{}` for the layer.
    pub fn template(self, names: &Names) -> &'static str {
        [names.q, names.k, names.v, names.o, names.gate, names.up, names.down][self as usize]
    }

    /// [out, in]
    pub fn shape(self, spec: &Spec) -> [usize; 2] {
        let (d, q, kv) = (spec.width, spec.heads * spec.head_width, spec.kv_heads * spec.head_width);
        match self {
            Target::Q => [q, d],
            Target::K | Target::V => [kv, d],
            Target::O => [d, q],
            Target::Gate | Target::Up => [spec.ffn, d],
            Target::Down => [d, spec.ffn],
        }
    }
}

/// One block.
#[derive(Clone)]
pub struct Layer {
    /// `[D]`
    pub attn_norm: Tensor,
    /// `[D]`
    pub mlp_norm: Tensor,
    /// [out, in] in the order of [`Target::ALL`].
    weights: [Tensor; 7],
}

impl Layer {
    pub fn weight(&self, target: Target) -> &Tensor {
        &self.weights[target as usize]
    }
}

/// All of a teacher, in f32 on the CPU. Clones share their tensors.
#[derive(Clone)]
pub struct Model {
    pub spec: Spec,
    /// [vocab, D]
    pub embed: Tensor,
    pub layers: Vec<Layer>,
    /// `[D]`
    pub final_norm: Tensor,
    /// [vocab, D]; the embedding itself when tied.
    pub head: Tensor,
    pub rotary: Rotary,
}

impl Model {
    /// Reads every weight of the teacher; shapes are held to the spec.
    pub fn load(checkpoint: &Checkpoint, spec: &Spec) -> Result<Model> {
        let read = |name: &str, shape: &[usize]| checkpoint.tensor_of(name, shape, DType::F32);
        let (d, names) = (spec.width, &spec.names);
        let layer = |i: usize| -> Result<Layer> {
            let weight = |t: Target| read(&Names::of_layer(t.template(names), i), &t.shape(spec));
            let [q, k, v, o, gate, up, down] = Target::ALL.map(weight);
            Ok(Layer {
                attn_norm: read(&Names::of_layer(names.attn_norm, i), &[d])?,
                mlp_norm: read(&Names::of_layer(names.mlp_norm, i), &[d])?,
                weights: [q?, k?, v?, o?, gate?, up?, down?],
            })
        };
        let embed = read(names.embed, &[spec.vocab, d])?;
        Ok(Model {
            layers: (0..spec.layers).map(layer).collect::<Result<_>>()?,
            final_norm: read(names.final_norm, &[d])?,
            head: if spec.tied { embed.clone() } else { read(names.head, &[spec.vocab, d])? },
            embed,
            rotary: Rotary::new(spec.head_width, spec.rope.theta),
            spec: spec.clone(),
        })
    }

    /// Replaces the weight of one linear layer, when an adapter is merged.
    pub fn set_weight(&mut self, layer: usize, target: Target, weight: Tensor) {
        self.layers[layer].weights[target as usize] = weight;
    }

    /// The weight that a checkpoint calls `name`.
    pub fn named(&self, name: &str) -> Option<&Tensor> {
        let names = &self.spec.names;
        if name == names.embed {
            return Some(&self.embed);
        } else if name == names.final_norm {
            return Some(&self.final_norm);
        } else if name == names.head {
            return Some(&self.head);
        }
        self.layers.iter().enumerate().find_map(|(i, layer)| {
            let is = |template| Names::of_layer(template, i) == name;
            if is(names.attn_norm) {
                return Some(&layer.attn_norm);
            } else if is(names.mlp_norm) {
                return Some(&layer.mlp_norm);
            }
            Target::ALL.into_iter().find(|t| is(t.template(names))).map(|t| layer.weight(t))
        })
    }
}
