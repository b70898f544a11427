//! The forward pass of a block and of the whole decoder.

use super::adapter::Adapter;
use super::student::Student;
use super::weights::{Model, Target};
use crate::Result;
use crate::mixer::{Bound, Branches, Heads, Mixer, Softmax, State};
use crate::ops::linear::linear;
use crate::ops::rope::Angles;
use crate::ops::{Tape, Var, elementwise, head, norm};
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
    pub mixer: Bound,
    /// A and B of each adapted linear layer.
    lora: BTreeMap<Target, [Var; 2]>,
    /// What trains, by full name.
    pub leaves: Vec<(String, Var)>,
}

/// What a layer shows to whoever listens.
pub struct Tap<'a> {
    pub layer: usize,
    /// The block's input [B, T, D].
    pub input: &'a Var,
    pub heads: &'a Heads,
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
            None => f(&Softmax::new(self.model.spec.site(layer))),
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
            let names = Adapter::names(&self.model.spec.names, layer, target);
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

    /// y = x W^T, with the layer's adapter where it has one.
    fn linear(&self, layer: usize, target: Target, x: &Var, vars: &LayerVars) -> Result<Var> {
        let weight = Var::constant(self.model.layers[layer].weight(target).clone());
        let y = linear(x, &weight)?;
        match (self.adapter(), vars.lora.get(&target)) {
            (Some(adapter), Some([a, b])) => adapter.add(y, x, a, b),
            _ => Ok(y),
        }
    }

    /// A block's heads from its input [B, T, D].
    pub fn project(&self, layer: usize, x: &Var, vars: &LayerVars, angles: &Arc<Angles>) -> Result<Heads> {
        let spec = &self.model.spec;
        let (b, t, _) = x.value().dims3()?;
        let h = norm::rms_norm(x, &self.model.layers[layer].attn_norm, spec.norm_eps)?;
        let heads = |target, n: usize| self.linear(layer, target, &h, vars)?.reshape(&[b, t, n, spec.head_width]);
        let (q, k) = (heads(Target::Q, spec.heads)?, heads(Target::K, spec.kv_heads)?);
        let heads = Heads::new(q, k, heads(Target::V, spec.kv_heads)?)?;
        Ok(heads.of_layer(h, Some(angles.clone())))
    }

    /// The mixer's output [B, T, H, V] without a state.
    fn mix(&self, layer: usize, heads: &Heads, vars: &LayerVars) -> Result<Var> {
        match self.student {
            Some(student) if self.silent && student.replaced(layer) => Ok(Var::constant(heads.q.value().zeros_like()?)),
            _ => self.mixer(layer, |m| m.mix(heads, &vars.mixer, None, self.branches)),
        }
    }

    /// What attention adds to a block's input, [B, T, D], from its mixer's output.
    fn attended(&self, layer: usize, mixed: &Var, vars: &LayerVars) -> Result<Var> {
        let spec = &self.model.spec;
        let (b, t, ..) = mixed.value().dims4()?;
        let mixed = mixed.reshape(&[b, t, spec.heads * spec.head_width])?;
        self.linear(layer, Target::O, &mixed, vars)
    }

    /// What attention adds to a block's input `x` [B, T, D], without gradients: [B, T, D].
    pub fn attention(&self, layer: usize, x: &Var) -> Result<Tensor> {
        let vars = self.bind(layer, None, |_| false);
        let angles = self.model.rotary.angles(0, x.value().dim(1)?);
        let heads = self.project(layer, x, &vars, &angles)?;
        Ok(self.attended(layer, &self.mix(layer, &heads, &vars)?, &vars)?.value().clone())
    }

    /// A block's output from its input and its mixer's output.
    pub fn complete(&self, layer: usize, x: &Var, mixed: &Var, vars: &LayerVars) -> Result<Var> {
        let spec = &self.model.spec;
        let x = elementwise::add(x, &self.attended(layer, mixed, vars)?)?;
        let h = norm::rms_norm(&x, &self.model.layers[layer].mlp_norm, spec.norm_eps)?;
        let gate = self.linear(layer, Target::Gate, &h, vars)?;
        let up = self.linear(layer, Target::Up, &h, vars)?;
        let inner = elementwise::swiglu(&gate, &up)?;
        elementwise::add(&x, &self.linear(layer, Target::Down, &inner, vars)?)
    }

    /// A whole block without cache.
    pub fn block(&self, layer: usize, x: &Var, vars: &LayerVars, angles: &Arc<Angles>) -> Result<Var> {
        let heads = self.project(layer, x, vars, angles)?;
        let mixed = self.mix(layer, &heads, vars)?;
        drop(heads);
        self.complete(layer, x, &mixed, vars)
    }

    /// One block with cache: chunked for several tokens, recurrent for one.
    pub(super) fn cached_block(
        &self,
        layer: usize,
        x: &Var,
        vars: &LayerVars,
        angles: &Arc<Angles>,
        state: &mut State,
    ) -> Result<Var> {
        let heads = self.project(layer, x, vars, angles)?;
        let mixed = self.mixer(layer, |m| match x.value().dim(1)? {
            1 => m.step(&heads, &vars.mixer, state).map(Var::constant),
            _ => m.mix(&heads, &vars.mixer, Some(state), self.branches),
        })?;
        self.complete(layer, x, &mixed, vars)
    }

    /// `ids` of `batch` equal rows -> [B, T, D].
    pub fn embed(&self, ids: &[u32], batch: usize) -> Result<Tensor> {
        head::embed(&self.model.embed, ids, batch)
    }

    /// Hidden states after the final norm, [B, T, D], without gradients.
    pub fn hidden(&self, ids: &[u32], batch: usize) -> Result<Tensor> {
        let last = self.run(ids, batch, &mut |_| Ok(Flow::Continue))?;
        self.final_norm(&last.into()).map(|x| x.value().clone())
    }

    /// Runs all blocks without gradients and shows every layer to `tap`; the last block's output [B, T, D].
    pub fn run(&self, ids: &[u32], batch: usize, tap: &mut dyn FnMut(Tap) -> Result<Flow>) -> Result<Tensor> {
        let mut x = Var::constant(self.embed(ids, batch)?);
        let angles = self.model.rotary.angles(0, x.value().dim(1)?);
        for layer in 0..self.model.spec.layers {
            let vars = self.bind(layer, None, |_| false);
            let heads = self.project(layer, &x, &vars, &angles)?;
            let mixed = self.mix(layer, &heads, &vars)?;
            if tap(Tap { layer, input: &x, heads: &heads, output: &mixed })? == Flow::Stop {
                break;
            }
            drop(heads);
            x = self.complete(layer, &x, &mixed, &vars)?;
        }
        Ok(x.value().clone())
    }

    pub fn final_norm(&self, x: &Var) -> Result<Var> {
        norm::rms_norm(x, &self.model.final_norm, self.model.spec.norm_eps)
    }

    /// All logits, [B, T, vocab].
    pub fn logits(&self, ids: &[u32], batch: usize) -> Result<Tensor> {
        head::logits(&self.hidden(ids, batch)?, &self.model.head)
    }
}
