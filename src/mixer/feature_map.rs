//! Mechanisms that are a kernel: two feature maps and a normaliser (operator A).
//!
//! o_t = phi_q(q_t) S_t / (phi_q(q_t).z_t + eps) with S, z the sums over keys of phi_k(k) v^T and phi_k(k); beside a window
//! under one joint normaliser, or blended with it.

use super::window::{Combine, FACTOR, KvWithCache, Window, after};
use super::{
    Branches, CalibrationParam, Incompatibility, LayerDims, LayerInputs, Mixer, NO_WEIGHTS, NewTensor, OutputScale,
    Params, State,
};
use crate::ops::attention_mask::{AttentionMask, KvLayout};
use crate::ops::linear_attention::{LinearAttention, linear_attention};
use crate::ops::linear_attention_step::{Entering, linear_attention_step};
use crate::ops::unary::{Unary, unary};
use crate::ops::{Var, attention_entropy, normalize};
use crate::{Error, Result};
use candle_core::{DType, Tensor};

/// Whether a map is that of queries or of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Query,
    Key,
}

/// The feature maps of one layer.
pub trait FeatureMap: Send + Sync {
    /// Tensors of the maps.
    fn tensors(&self) -> Vec<NewTensor> {
        vec![]
    }

    /// F
    fn features(&self) -> usize;

    /// What is added to the normaliser without a window.
    fn eps(&self) -> f32;

    /// Whether the maps take q and k after RoPE.
    fn rotary(&self) -> bool {
        true
    }

    /// Why its site is not for it.
    fn incompatibilities(&self) -> Vec<Incompatibility> {
        vec![]
    }

    /// What calibration may try: scales of features.
    fn calibration_params(&self) -> Vec<CalibrationParam> {
        vec![]
    }

    /// What the linear branch is multiplied by, or the output under a joint normaliser.
    fn scale(&self) -> OutputScale;

    /// Whether features are shares of one, so that a joint normaliser need only take from the window (LoLCATs).
    fn unit_features(&self) -> bool {
        false
    }

    /// q [B, T, H, K] or k [B, T, G, K] -> [B, T, H, F], non-negative.
    fn map(&self, side: Side, x: &Var, params: &Params) -> Result<Var>;
}

/// The mixer of a kernel.
pub fn mixer(kernel: impl FeatureMap + 'static, layer_dims: LayerDims, window: Option<Window>) -> Box<dyn Mixer> {
    Box::new(FeatureMapMixer { kernel: Box::new(kernel), layer_dims, window })
}

/// A kernel with its window, as a mixer.
struct FeatureMapMixer {
    kernel: Box<dyn FeatureMap>,
    layer_dims: LayerDims,
    window: Option<Window>,
}

/// Features of queries and of keys.
struct Features {
    q: Var,
    k: Var,
}

impl FeatureMapMixer {
    /// The window whose keys the linear branch leaves to it.
    fn beside(&self) -> Option<AttentionMask> {
        self.window.filter(|w| w.combine == Combine::Joint).map(|w| w.mask())
    }

    /// What a joint normaliser multiplies the window by: LoLCATs' sigmoid, and beside features of any size any weight.
    fn gamma(&self, params: &Params) -> Result<Var> {
        let factor = params.get(FACTOR)?;
        if self.kernel.unit_features() {
            return unary(factor, Unary::Sigmoid);
        }
        // Far enough for every size, and never an infinity.
        unary(&unary(factor, Unary::Clamp { min: -30.0, max: 30.0 })?, Unary::Exp)
    }

    /// What the maps take, of q and of k.
    fn mapped<'a>(&self, heads: &'a LayerInputs) -> Result<(&'a Var, &'a Var)> {
        let (q, k) = heads.rotated()?;
        Ok(if self.kernel.rotary() { (q, k) } else { (&heads.q, &heads.k) })
    }

    /// Where a state keeps what the maps take of past keys.
    fn key_name(&self) -> &'static str {
        if self.kernel.rotary() { "k" } else { "raw_k" }
    }

    fn features(&self, heads: &LayerInputs, state: Option<&State>, params: &Params) -> Result<Features> {
        let (q, k) = self.mapped(heads)?;
        // Keys that a window held until now enter late, so their features are needed now.
        let k = if self.beside().is_some() { after(state, self.key_name(), k)? } else { k.clone() };
        Ok(Features { q: self.kernel.map(Side::Query, q, params)?, k: self.kernel.map(Side::Key, &k, params)? })
    }

    fn linear(
        &self,
        heads: &LayerInputs,
        features: &Features,
        kv: &KvWithCache,
        state: Option<&State>,
    ) -> Result<LinearAttention> {
        let before = state.and_then(|s| Some((s.get("s")?.clone().into(), s.get("z")?.clone().into())));
        let before: Option<(&Var, &Var)> = before.as_ref().map(|(s, z)| (s, z));
        let Features { q, k } = features;
        match self.beside() {
            Some(mask) => linear_attention(q, k, &kv.v, Some(mask), &heads.documents, &kv.past, before),
            None => {
                let past = KvLayout { sink_tokens: 0, window_tokens: 0, ..kv.past.clone() };
                linear_attention(q, k, &heads.v, None, &heads.documents, &past, before)
            }
        }
    }

    /// One output from the branches that there are.
    fn combine(
        &self,
        window: Option<(Var, Var)>,
        linear: Option<(Var, Var)>,
        heads: &LayerInputs,
        params: &Params,
        branches: Branches,
    ) -> Result<Var> {
        match (window, linear, self.window) {
            (Some(w), Some(l), Some(window)) => match window.combine {
                Combine::Joint => {
                    let joint = normalize::joint_normalize((&w.0, &w.1), (&l.0, &l.1), &self.gamma(params)?)?;
                    Mixer::scale(self).apply(&joint, params)
                }
                _ => {
                    let w = normalize::normalize(&w.0, &w.1, 0.0)?;
                    window.blend(&w, &self.alone(&l, params)?, params)
                }
            },
            // The window's factor cancels against its own normaliser; the scale of the joint output does not.
            (Some(w), None, Some(Window { combine: Combine::Joint, .. })) if branches == Branches::WindowOnly => {
                Mixer::scale(self).apply(&normalize::normalize(&w.0, &w.1, 0.0)?, params)
            }
            (Some(w), ..) => normalize::normalize(&w.0, &w.1, 0.0),
            (None, Some(l), _) => self.alone(&l, params),
            // The only branch is switched off: the mixer is silent.
            (None, None, _) => Ok(Var::constant(heads.q.value().zeros_like()?)),
        }
    }

    /// The linear branch under its own normaliser.
    fn alone(&self, linear: &(Var, Var), params: &Params) -> Result<Var> {
        let output = normalize::normalize(&linear.0, &linear.1, self.kernel.eps())?;
        Mixer::scale(self).apply(&output, params)
    }

    fn window_of(&self, heads: &LayerInputs, kv: &KvWithCache, branches: Branches) -> Result<Option<(Var, Var)>> {
        match self.window {
            Some(w) if branches.window() => kv.attend(w.mask(), heads).map(Some),
            _ => Ok(None),
        }
    }

    /// Leaves in `state` what the next call needs of this call's keys.
    fn keep(&self, heads: &LayerInputs, kv: &KvWithCache, raw: Option<Var>, state: &mut State) -> Result<()> {
        let Some(window) = self.window else {
            let past = kv.past.after(&heads.documents, AttentionMask::sliding(1));
            state.past = Some(KvLayout { window_tokens: 0, ..past });
            return Ok(());
        };
        let next = kv.keep(window.mask(), heads, state)?;
        if let Some(raw) = raw {
            state.tensors.insert(self.key_name(), kv.past.carry(raw.value(), &heads.documents, &next)?);
        }
        state.past = Some(next);
        Ok(())
    }

    /// The keys that the maps take, past ones first, where they are not those of the window.
    fn raw(&self, heads: &LayerInputs, state: &State) -> Result<Option<Var>> {
        match self.beside() {
            Some(_) if !self.kernel.rotary() => after(Some(state), self.key_name(), &heads.k).map(Some),
            _ => Ok(None),
        }
    }
}

impl Mixer for FeatureMapMixer {
    fn tensors(&self) -> Vec<NewTensor> {
        let mut all = self.kernel.tensors();
        all.extend(Mixer::scale(self).tensor(&self.layer_dims));
        all.extend(self.window.and_then(|w| w.tensors(&self.layer_dims)));
        all
    }

    fn mix(&self, heads: &LayerInputs, params: &Params, state: Option<&mut State>, branches: Branches) -> Result<Var> {
        let kv = KvWithCache::of(heads, state.as_deref())?;
        let mut linear = None;
        // Without a state to leave, a switched-off linear branch need not be computed.
        if state.is_some() || branches.linear() {
            let features = self.features(heads, state.as_deref(), params)?;
            linear = Some(self.linear(heads, &features, &kv, state.as_deref())?);
        }
        let window = self.window_of(heads, &kv, branches)?;
        if let (Some(state), Some(linear)) = (state, &linear) {
            let raw = self.raw(heads, state)?;
            state.tensors.insert("s", linear.state.value().clone());
            state.tensors.insert("z", linear.normaliser.value().clone());
            self.keep(heads, &kv, raw, state)?;
        }
        let linear = linear.filter(|_| branches.linear()).map(|l| (l.num, l.den));
        self.combine(window, linear, heads, params, branches)
    }

    fn step(&self, heads: &LayerInputs, params: &Params, state: &mut State) -> Result<Tensor> {
        let (batch, _) = heads.size()?;
        let (q, k) = self.mapped(heads)?;
        let LayerDims { heads: h, width, .. } = self.layer_dims;
        if state.get("s").is_none() {
            let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, heads.q.value().device());
            state.tensors.insert("s", zeros(&[batch, h, self.kernel.features(), width])?);
            state.tensors.insert("z", zeros(&[batch, h, self.kernel.features()])?);
        }
        let kv = KvWithCache::of(heads, Some(state))?;
        let raw = self.raw(heads, state)?;
        // The key that leaves the window enters the state; without a joint normaliser the token's own does at once.
        let (keys, values, rows) = match self.beside() {
            Some(mask) => {
                let (columns, rows) = kv.past.leaving(&heads.documents, mask);
                let leaving = |x: &Var| x.value().narrow(1, columns.start, columns.len());
                (leaving(raw.as_ref().unwrap_or(&kv.k))?, leaving(&kv.v)?, rows)
            }
            None => {
                let whole = |row: usize| 0..heads.documents.row(row).len().min(1);
                (k.value().clone(), heads.v.value().clone(), (0..batch).map(whole).collect())
            }
        };
        let a = self.kernel.map(Side::Query, q, params)?;
        let b = match keys.dim(1)? {
            0 => None,
            _ => Some(self.kernel.map(Side::Key, &keys.contiguous()?.into(), params)?),
        };
        let entering = b.as_ref().map(|b| Entering { b: b.value(), v: &values, rows: &rows });
        let (s, z) = (&state.tensors["s"], &state.tensors["z"]);
        let (num, den, s, z) = linear_attention_step(a.value(), entering, &heads.documents, s, z)?;
        let window = self.window_of(heads, &kv, Branches::Both)?;
        state.tensors.insert("s", s);
        state.tensors.insert("z", z);
        self.keep(heads, &kv, raw, state)?;
        Ok(self.combine(window, Some((num.into(), den.into())), heads, params, Branches::Both)?.value().clone())
    }

    fn transfer(&self, heads: &LayerInputs, params: &Params, weights: bool) -> Result<(Var, Option<Var>)> {
        if !weights {
            return Ok((self.mix(heads, params, None, Branches::Both)?, None));
        }
        if let Some(what) = self.without_weights() {
            return Err(Error::usage(what, NO_WEIGHTS));
        }
        let window = match self.window {
            Some(w) => Some((w.size, self.gamma(params)?)),
            None => None,
        };
        let window = window.as_ref().map(|(size, gamma)| (*size, gamma));
        let kv = KvWithCache::of(heads, None)?;
        let features = self.features(heads, None, params)?;
        let linear = self.linear(heads, &features, &kv, None)?;
        let of_window = self.window_of(heads, &kv, Branches::Both)?;
        let output = self.combine(of_window, Some((linear.num, linear.den)), heads, params, Branches::Both)?;
        let (q, k) = heads.rotated()?;
        let (q, k, Features { q: a, k: b }) = (q.value(), k.value(), &features);
        let loss = attention_entropy::attention_entropy(q, k, a, b, window, &heads.documents, heads.scores)?;
        Ok((output, Some(loss)))
    }

    fn incompatibilities(&self, _: usize) -> Vec<Incompatibility> {
        self.kernel.incompatibilities()
    }

    fn without_weights(&self) -> Option<&'static str> {
        let comparable = self.window.is_none_or(|w| w.combine == Combine::Joint && w.sinks == 0);
        (!comparable).then_some(
            "attention weights can be compared only without a window, or with one under a joint normaliser and without \
             sinks",
        )
    }

    fn calibration_params(&self) -> Vec<CalibrationParam> {
        Window::calibration_params(self.window, self.kernel.calibration_params())
    }

    fn scale(&self) -> OutputScale {
        // LoLCATs' joint form has none.
        if self.beside().is_some() && self.kernel.unit_features() { OutputScale::None } else { self.kernel.scale() }
    }

    fn window_gate(&self) -> Option<&'static str> {
        self.window.and_then(|w| w.window_gate())
    }

    fn state_bytes(&self, context: usize) -> usize {
        let LayerDims { heads, width, .. } = self.layer_dims;
        let window = self.window.map_or(0, |w| w.state_bytes(&self.layer_dims, context));
        // Half as much again where the maps take keys before RoPE and the window those after it.
        let raw = if self.beside().is_some() && !self.kernel.rotary() { window / 2 } else { 0 };
        4 * heads * self.kernel.features() * (width + 1) + window + raw
    }
}
