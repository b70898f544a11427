//! Softmax attention over all keys: o_i = sum_j softmax_j(q_i.k_j / sqrt K) v_j. The state grows with every token.

use super::{Bound, Branches, HeadSizes, Heads, Mixer, State};
use crate::Result;
use crate::ops::{Documents, Past, Sight, Var, attention, quotient};
use candle_core::{DType, Tensor};

pub struct Softmax {
    sizes: HeadSizes,
}

impl Softmax {
    pub fn new(sizes: HeadSizes) -> Self {
        Softmax { sizes }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.sizes.width as f32).sqrt()
    }
}

/// Appends `new` [B, T, G, K] to the buffer `name` and returns all `seen + T` tokens of it. The buffer doubles when it
/// is full, so a token costs no copy of the past.
fn append(state: &mut State, name: &'static str, new: &Tensor) -> Result<Tensor> {
    let (b, t, g, k) = new.dims4()?;
    let length = state.seen + t;
    let capacity = state.get(name).map_or(0, |x| x.dims()[1]);
    if length > capacity {
        let buffer = Tensor::zeros((b, length.max(2 * capacity).max(64), g, k), DType::F32, new.device())?;
        if let Some(old) = state.get(name) {
            buffer.slice_set(old, 1, 0)?;
        }
        state.tensors.insert(name, buffer);
    }
    let buffer = &state.tensors[name];
    buffer.slice_set(&new.contiguous()?, 1, state.seen)?;
    Ok(buffer.narrow(1, 0, length)?)
}

impl Mixer for Softmax {
    fn mix(&self, heads: &Heads, _: &Bound, state: Option<&mut State>, _: Branches) -> Result<Var> {
        let (batch, tokens, _, _) = heads.q.value().dims4()?;
        let documents = Documents::whole(batch, tokens);
        let (num, den) = match state {
            None => {
                let past = Past::none(batch);
                attention::attention(&heads.q, &heads.k, &heads.v, Sight::ALL, &documents, &past, self.scale())?
            }
            Some(state) => {
                let past = Past::whole(batch, state.seen);
                let k = append(state, "k", heads.k.value())?;
                let v = append(state, "v", heads.v.value())?;
                state.seen = k.dim(1)?;
                attention::attention(&heads.q, &k.into(), &v.into(), Sight::ALL, &documents, &past, self.scale())?
            }
        };
        quotient::quotient(&num, &den, 0.0)
    }

    fn step(&self, heads: &Heads, _: &Bound, state: &mut State) -> Result<Tensor> {
        let batch = heads.q.value().dim(0)?;
        let (documents, past) = (Documents::whole(batch, 1), Past::whole(batch, state.seen));
        let k = append(state, "k", heads.k.value())?;
        let v = append(state, "v", heads.v.value())?;
        state.seen = k.dim(1)?;
        let q = heads.q.value();
        let (num, den) = attention::attention_step(q, &k, &v, Sight::ALL, &documents, &past, self.scale())?;
        Ok(quotient::quotient(&num.into(), &den.into(), 0.0)?.value().clone())
    }

    fn state_bytes(&self, context: usize) -> usize {
        2 * context * self.sizes.kv_heads * self.sizes.width * 4
    }
}
