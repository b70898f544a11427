//! Softmax attention over all keys, or over the last ones where the teacher has a window:
//! o_i = sum_j softmax_j(s(q_i.k_j)) v_j, s the teacher's scores. Without a window the state grows with every token.

use super::window::KvWithCache;
use super::{Branches, LayerDims, LayerInputs, Mixer, Params, State};
use crate::ops::attention_mask::{AttentionMask, KvLayout};
use crate::ops::{Var, attention, normalize};
use crate::{Error, Result};
use candle_core::{DType, Tensor};

pub struct Softmax {
    layer_dims: LayerDims,
    /// Keys that a query sees, its own included; none: all.
    window: Option<usize>,
}

impl Softmax {
    pub fn new(layer_dims: LayerDims) -> Self {
        Softmax { layer_dims, window: None }
    }

    /// The same under the teacher's own window.
    pub fn within(self, window: Option<usize>) -> Self {
        Softmax { window, ..self }
    }
}

/// Appends `new` [B, T, G, K] to the `kept` tokens of the buffer `name` and returns all of it. The buffer doubles when it
/// is full, so a token costs no copy of the past.
fn append(state: &mut State, name: &'static str, kept: usize, new: &Tensor) -> Result<Tensor> {
    let (b, t, g, k) = new.dims4()?;
    let length = kept + t;
    let capacity = state.get(name).map_or(0, |x| x.dims()[1]);
    if length > capacity {
        let buffer = Tensor::zeros((b, length.max(2 * capacity).max(64), g, k), DType::F32, new.device())?;
        if let Some(old) = state.get(name) {
            buffer.slice_set(old, 1, 0)?;
        }
        state.tensors.insert(name, buffer);
    }
    let buffer = &state.tensors[name];
    buffer.slice_set(&new.contiguous()?, 1, kept)?;
    Ok(buffer.narrow(1, 0, length)?)
}

/// Keys and values so far, those of the call included, and what those before it are. Columns are never moved, so a row's
/// text has to reach the end of the call: padding stands on the left.
fn extend(heads: &LayerInputs, state: &mut State) -> Result<(Var, Var, KvLayout)> {
    let (batch, tokens) = heads.size()?;
    if (0..batch).any(|row| heads.documents.row(row).last().is_none_or(|d| d.end < tokens)) {
        return Err(Error::Internal("a text that is continued ends in padding".into()));
    }
    let past = state.past(batch);
    let k = append(state, "k", past.window_tokens, heads.rotated()?.1.value())?;
    let v = append(state, "v", past.window_tokens, heads.v.value())?;
    let next = past.after(&heads.documents, AttentionMask::ALL);
    state.past = Some(KvLayout { sink_tokens: 0, window_tokens: past.window_tokens + tokens, ..next });
    Ok((k.into(), v.into(), past))
}

impl Mixer for Softmax {
    fn mix(&self, heads: &LayerInputs, _: &Params, state: Option<&mut State>, _: Branches) -> Result<Var> {
        if let Some(size) = self.window {
            let (mask, kv) = (AttentionMask::sliding(size), KvWithCache::of(heads, state.as_deref())?);
            let (num, den) = kv.attend(mask, heads)?;
            if let Some(state) = state {
                state.past = Some(kv.keep(mask, heads, state)?);
            }
            return normalize::normalize(&num, &den, 0.0);
        }
        let (q, k) = heads.rotated()?;
        let (k, v, past) = match state {
            None => (k.clone(), heads.v.clone(), KvLayout::none(heads.size()?.0)),
            Some(state) => extend(heads, state)?,
        };
        let (num, den) = attention::attention(q, &k, &v, AttentionMask::ALL, &heads.documents, &past, heads.scores)?;
        normalize::normalize(&num, &den, 0.0)
    }

    fn step(&self, heads: &LayerInputs, params: &Params, state: &mut State) -> Result<Tensor> {
        if self.window.is_some() {
            return Ok(self.mix(heads, params, Some(state), Branches::Both)?.value().clone());
        }
        let (k, v, past) = extend(heads, state)?;
        let (q, k, v) = (heads.rotated()?.0.value(), k.value(), v.value());
        let (num, den) = attention::attention_step(q, k, v, AttentionMask::ALL, &heads.documents, &past, heads.scores)?;
        Ok(normalize::normalize(&num.into(), &den.into(), 0.0)?.value().clone())
    }

    fn state_bytes(&self, context: usize) -> usize {
        2 * self.window.map_or(context, |window| window.min(context))
            * self.layer_dims.kv_heads
            * self.layer_dims.width
            * 4
    }
}
