//! The forward pass of a block and of the whole decoder.

use super::adapter::Adapter;
use super::positions::Positions;
use super::student::{Student, softmax};
use super::weights::Model;
use crate::Result;
use crate::arch::{Layout, NormAt, NormKind, Part, QkNorm, Target};
use crate::mixer::{Branches, LayerInputs, Mixer, Params, State};
use crate::ops::attention::Scores;
use crate::ops::linear::linear;
use crate::ops::{Documents, Tape, Var, broadcast, elementwise, lm_head, norm};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A model as it is to be run: the teacher alone, or with a student's mixers and adapters.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub model: &'a Model,
    pub student: Option<&'a Student>,
    pub branches: Branches,
    /// The output of every replaced layer's mixer is zero.
    silent: bool,
    /// Leave the student's adapter out.
    without_adapter: bool,
}

/// A layer's new tensors, bound to a tape where they train.
#[derive(Default)]
pub struct LayerVars {
    pub mixer: Params,
    /// A and B of each adapted linear layer.
    lora: BTreeMap<Target, [Var; 2]>,
    /// What trains, by full name.
    pub leaves: Vec<(String, Var)>,
}

/// What a layer shows to whoever listens.
pub struct LayerHook<'a> {
    pub layer: usize,
    /// The block's input [B, T, D].
    pub input: &'a Var,
    pub heads: &'a LayerInputs,
    /// The mixer's output before the o projection [B, T, H, V].
    pub output: &'a Var,
}

/// Whether a pass goes on after a tap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Continue,
    Stop,
}

impl<'a> View<'a> {
    pub fn teacher(model: &'a Model) -> Self {
        View { model, student: None, branches: Branches::Both, silent: false, without_adapter: false }
    }

    pub fn student(model: &'a Model, student: &'a Student) -> Self {
        View::of(model, Some(student))
    }

    /// With a student or without.
    pub fn of(model: &'a Model, student: Option<&'a Student>) -> Self {
        View { student, ..View::teacher(model) }
    }

    /// The same without the student's adapter.
    pub fn without_adapter(self) -> Self {
        View { without_adapter: true, ..self }
    }

    /// The same with a branch of its mixers switched off.
    pub fn with(self, branches: Branches) -> Self {
        View { branches, ..self }
    }

    /// The same with zero in place of what its mixers and the windows beside them say.
    pub fn silent(self) -> Self {
        View { silent: true, ..self }
    }

    /// Runs `f` with the mixer of a layer.
    pub fn mixer<R>(&self, layer: usize, f: impl FnOnce(&dyn Mixer) -> R) -> R {
        match self.student {
            Some(student) => f(student.mixer(layer)),
            None => f(&softmax(&self.model.spec, layer)),
        }
    }

    /// Binds a layer's new tensors; those that `trains` names become leaves of the tape.
    pub fn bind(&self, layer: usize, tape: Option<&Tape>, trains: impl Fn(&str) -> bool) -> LayerVars {
        let mut vars = LayerVars::default();
        let Some(student) = self.student else { return vars };
        let mut leaves = vec![];
        let mut bind = |name: &str, tensor: &Tensor| match tape {
            Some(tape) if trains(name) => {
                let leaf = tape.leaf(tensor.clone());
                leaves.push((name.to_string(), leaf.clone()));
                leaf
            }
            _ => Var::constant(tensor.clone()),
        };
        for (short, full, tensor) in student.mixer_tensors(layer) {
            vars.mixer.0.insert(short.to_string(), bind(full, tensor));
        }
        for &target in self.adapter().iter().flat_map(|a| &a.targets) {
            let Some(names) = Adapter::names(&self.model.spec, layer, target) else { continue };
            if let [Some(a), Some(b)] = names.each_ref().map(|n| student.tensors.get(n)) {
                vars.lora.insert(target, [bind(&names[0], a), bind(&names[1], b)]);
            }
        }
        vars.leaves = leaves;
        vars
    }

    fn adapter(&self) -> Option<&'a Adapter> {
        self.student.and_then(|s| s.adapter.as_ref()).filter(|_| !self.without_adapter)
    }

    /// y = x W^T + b, with the layer's adapter where it has one.
    pub(super) fn linear(&self, layer: usize, target: Target, x: &Var, vars: &LayerVars) -> Result<Var> {
        let weights = &self.model.layers[layer];
        let mut y = linear(x, &Var::constant(weights.weight(target)?.clone()))?;
        if let Some(bias) = weights.get(Part::Bias(target)) {
            y = broadcast::add(&y, &Var::constant(bias.clone()))?;
        }
        match (self.adapter(), vars.lora.get(&target)) {
            (Some(adapter), Some([a, b])) => adapter.add(y, x, a, b),
            _ => Ok(y),
        }
    }

    /// The norm of a block that stands `at` a place; x as it is where there is none.
    fn norm(&self, layer: usize, at: NormAt, x: &Var) -> Result<Var> {
        let weights = &self.model.layers[layer];
        match weights.get(Part::Norm(at)) {
            Some(weight) => self.normalise(x, weight, weights.get(Part::NormBias(at))),
            None => Ok(x.clone()),
        }
    }

    fn normalise(&self, x: &Var, weight: &Tensor, bias: Option<&Tensor>) -> Result<Var> {
        let norm = self.model.spec.norm;
        match norm.kind {
            NormKind::Rms => norm::rms_norm(x, weight, norm.eps),
            NormKind::RmsPlusOne => norm::rms_norm_plus_one(x, weight, norm.eps),
            NormKind::Layer => {
                let [weight, bias] = [Some(weight), bias].map(|t| t.map(|t| Var::constant(t.clone())));
                norm::layer_norm(x, 1, weight.as_ref(), bias.as_ref(), norm.eps)
            }
        }
    }

    /// A block's heads from its input [B, T, D].
    pub fn qkv(&self, layer: usize, x: &Var, vars: &LayerVars, positions: &Positions) -> Result<LayerInputs> {
        let spec = &self.model.spec;
        let (b, t, _) = x.value().dims3()?;
        let h = self.norm(layer, NormAt::Attention, x)?;
        let heads = |target, n: usize, at: Option<NormAt>| {
            let (flat, split) = (self.linear(layer, target, &h, vars)?, [b, t, n, spec.head_width]);
            match (spec.qk_norm, at) {
                (Some(QkNorm::Full), Some(at)) => self.norm(layer, at, &flat)?.reshape(&split),
                (Some(QkNorm::Head), Some(at)) => self.norm(layer, at, &flat.reshape(&split)?),
                _ => flat.reshape(&split),
            }
        };
        let q = heads(Target::Q, spec.heads, Some(NormAt::Q))?;
        let k = heads(Target::K, spec.kv_heads, Some(NormAt::K))?;
        let heads = LayerInputs::new(q, k, heads(Target::V, spec.kv_heads, None)?)?;
        let block = spec.blocks[layer];
        let scores = Scores { scale: block.scale as f32, cap: spec.score_cap.map(|cap| cap as f32) };
        let heads = heads.in_documents(positions.documents.clone()).scored(scores);
        Ok(heads.of_layer(h, positions.angles(block.rope)))
    }

    /// The mixer's output [B, T, H, V] without a state.
    fn mix(&self, layer: usize, heads: &LayerInputs, vars: &LayerVars) -> Result<Var> {
        match self.student {
            Some(student) if self.silent && student.replaced(layer) => Ok(Var::constant(heads.q.value().zeros_like()?)),
            _ => self.mixer(layer, |m| m.mix(heads, &vars.mixer, None, self.branches)),
        }
    }

    /// What attention adds to a block's input, [B, T, D], from its mixer's output.
    fn attn_out(&self, layer: usize, mixed: &Var, vars: &LayerVars) -> Result<Var> {
        let spec = &self.model.spec;
        let (b, t, ..) = mixed.value().dims4()?;
        let mixed = mixed.reshape(&[b, t, spec.heads * spec.head_width])?;
        self.norm(layer, NormAt::AfterAttention, &self.linear(layer, Target::O, &mixed, vars)?)
    }

    /// What attention adds to a block's input `x` [B, T, D], without gradients: [B, T, D].
    pub fn attention(&self, layer: usize, x: &Var) -> Result<Tensor> {
        let vars = self.bind(layer, None, |_| false);
        let (b, t, _) = x.value().dims3()?;
        let heads = self.qkv(layer, x, &vars, &Positions::whole(self.model, b, t)?)?;
        Ok(self.attn_out(layer, &self.mix(layer, &heads, &vars)?, &vars)?.value().clone())
    }

    /// What the MLP adds to `x`, [B, T, D].
    fn mlp_out(&self, layer: usize, x: &Var, vars: &LayerVars) -> Result<Var> {
        let at = if self.model.spec.layout == Layout::ParallelShared { NormAt::Attention } else { NormAt::Mlp };
        let h = self.norm(layer, at, x)?;
        self.norm(layer, NormAt::AfterMlp, &self.mlp(layer, &h, vars)?)
    }

    /// A block's output from its input and its mixer's output.
    pub fn finish_block(&self, layer: usize, x: &Var, mixed: &Var, vars: &LayerVars) -> Result<Var> {
        let spec = &self.model.spec;
        let add = |x: &Var, y: &Var| match spec.multipliers.residual {
            1.0 => elementwise::add(x, y),
            factor => elementwise::add_scaled(x, factor as f32, y),
        };
        let between = add(x, &self.attn_out(layer, mixed, vars)?)?;
        let parallel = matches!(spec.layout, Layout::Parallel | Layout::ParallelShared);
        add(&between, &self.mlp_out(layer, if parallel { x } else { &between }, vars)?)
    }

    /// A whole block without cache.
    pub fn block(&self, layer: usize, x: &Var, vars: &LayerVars, positions: &Positions) -> Result<Var> {
        let heads = self.qkv(layer, x, vars, positions)?;
        let mixed = self.mix(layer, &heads, vars)?;
        drop(heads);
        self.finish_block(layer, x, &mixed, vars)
    }

    /// One block with cache: chunked for several tokens, recurrent for one.
    pub(super) fn cached_block(
        &self,
        layer: usize,
        x: &Var,
        vars: &LayerVars,
        positions: &Positions,
        state: &mut State,
    ) -> Result<Var> {
        let heads = self.qkv(layer, x, vars, positions)?;
        let mixed = self.mixer(layer, |m| match x.value().dim(1)? {
            1 => m.step(&heads, &vars.mixer, state).map(Var::constant),
            _ => m.mix(&heads, &vars.mixer, Some(state), self.branches),
        })?;
        self.finish_block(layer, x, &mixed, vars)
    }

    /// Embeddings of `ids`, as many equal rows as `positions` has: [B, T, D].
    pub fn embed(&self, ids: &[u32], positions: &Positions) -> Result<Tensor> {
        let batch = positions.documents.batch();
        let mut x = Var::constant(lm_head::embed(&self.model.embed, ids, batch)?);
        if self.model.spec.multipliers.embedding != 1.0 {
            x = broadcast::scale(&x, self.model.spec.multipliers.embedding as f32, 0.0)?;
        }
        if let Some(table) = self.model.positions() {
            x = elementwise::add(&x, &lm_head::embed(table, positions.rows(), batch)?.into())?;
        }
        Ok(x.value().clone())
    }

    /// Hidden states after the final norm, [B, T, D], without gradients.
    pub fn hidden(&self, ids: &[u32], batch: usize) -> Result<Tensor> {
        self.hidden_in(ids, &Documents::whole(batch, ids.len() / batch.max(1)))
    }

    /// The same of rows with padding, or with several documents.
    pub fn hidden_in(&self, ids: &[u32], documents: &Arc<Documents>) -> Result<Tensor> {
        let last = self.run_in(ids, documents, &mut |_| Ok(Flow::Continue))?;
        self.final_norm(&last.into()).map(|x| x.value().clone())
    }

    /// Runs all blocks without gradients and shows every layer to `hook`; the last block's output [B, T, D].
    pub fn run(&self, ids: &[u32], batch: usize, hook: &mut dyn FnMut(LayerHook) -> Result<Flow>) -> Result<Tensor> {
        self.run_in(ids, &Documents::whole(batch, ids.len() / batch.max(1)), hook)
    }

    fn run_in(
        &self,
        ids: &[u32],
        documents: &Arc<Documents>,
        hook: &mut dyn FnMut(LayerHook) -> Result<Flow>,
    ) -> Result<Tensor> {
        let positions = Positions::of(self.model, documents.clone(), &vec![0; documents.batch()], 0)?;
        let mut x = Var::constant(self.embed(ids, &positions)?);
        for layer in 0..self.model.spec.layers {
            let vars = self.bind(layer, None, |_| false);
            let heads = self.qkv(layer, &x, &vars, &positions)?;
            let mixed = self.mix(layer, &heads, &vars)?;
            if hook(LayerHook { layer, input: &x, heads: &heads, output: &mixed })? == Flow::Stop {
                break;
            }
            drop(heads);
            x = self.finish_block(layer, &x, &mixed, &vars)?;
        }
        Ok(x.value().clone())
    }

    /// The last norm, times what the logits are multiplied by.
    pub fn final_norm(&self, x: &Var) -> Result<Var> {
        let (weight, bias) = self.model.final_norm()?;
        let x = self.normalise(x, weight, bias)?;
        match self.model.spec.multipliers.logits {
            1.0 => Ok(x),
            factor => broadcast::scale(&x, factor as f32, 0.0),
        }
    }

    /// All logits, [B, T, vocab].
    pub fn logits(&self, ids: &[u32], batch: usize) -> Result<Tensor> {
        lm_head::logits(&self.hidden(ids, batch)?, &self.model.head)
    }

    /// The same of rows with padding, or with several documents.
    pub fn logits_in(&self, ids: &[u32], documents: &Arc<Documents>) -> Result<Tensor> {
        lm_head::logits(&self.hidden_in(ids, documents)?, &self.model.head)
    }
}
