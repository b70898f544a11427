//! The softmax window beside a mixer's linear branch: which keys it sees, what of them is kept, and how both branches
//! become one output.

use super::{
    CalibrationParam, CalibrationUpdate, Granularity, Initial, LayerDims, LayerInputs, NewTensor, Params, State,
};
use crate::Result;
use crate::ops::attention_mask::{AttentionMask, KvLayout, Span};
use crate::ops::{Var, attention, lerp};
use candle_core::{DType, Tensor};

/// The tensor that weighs a window under a joint normaliser.
pub(super) const FACTOR: &str = "window_factor";
/// LoLCATs' start of it: sigmoid(-2.197) = 0.1.
const START: f32 = -2.197_224_6;
/// The tensor that shares an output out.
const SHARE: &str = "window_share";

/// Window factors to try: from a thousandth to a hundred thousand, or to one.
const WEIGHTS: &[f32] = &[-7.0, -4.6, -2.3, 0.0, 2.3, 4.6, 7.0, 9.2, 11.5];
/// Window shares to try, as logits: a tenth to 98%.
const WINDOW_GATES: &[f32] = &[-2.2, -0.8, 0.0, 0.8, 1.4, 2.2, 3.0, 4.0];

/// A softmax window beside the linear branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Keys that it sees, the query's own included.
    pub size: usize,
    /// First tokens of the text that every query sees besides.
    #[serde(default, skip_serializing_if = "none")]
    pub sinks: usize,
    pub combine: Combine,
}

fn none(n: &usize) -> bool {
    *n == 0
}

/// How window and linear branch become one output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Combine {
    /// One normaliser over both, the window weighed by a learned factor per head (LoLCATs); the linear branch sees
    /// what the window does not.
    Joint,
    /// Half and half; the linear branch sees everything (Liger).
    Fixed,
    /// A learned share per head, half at the start; the linear branch sees everything.
    Learned,
}

impl Combine {
    pub const ALL: &'static [Combine] = &[Combine::Joint, Combine::Fixed, Combine::Learned];

    pub fn name(self) -> &'static str {
        match self {
            Combine::Joint => "joint",
            Combine::Fixed => "fixed",
            Combine::Learned => "learned",
        }
    }
}

impl Window {
    pub(super) fn mask(&self) -> AttentionMask {
        AttentionMask { span: Span::Sliding { size: self.size }, sinks: self.sinks }
    }

    pub(super) fn tensors(&self, layer_dims: &LayerDims) -> Option<NewTensor> {
        let (name, start) = match self.combine {
            Combine::Joint => (FACTOR, START),
            Combine::Learned => (SHARE, 0.0),
            Combine::Fixed => return None,
        };
        Some(NewTensor { name, shape: vec![layer_dims.heads], initial: Initial::Constant(start) })
    }

    /// The tensor of [`super::Mixer::share`].
    pub(super) fn window_gate(&self) -> Option<&'static str> {
        (self.combine == Combine::Learned).then_some(SHARE)
    }

    /// What calibration may try: the window's weight first, since with a poor one nothing of a mixer's own looks better
    /// than another; then `own`; then the weight again.
    pub(super) fn calibration_params(window: Option<Self>, own: Vec<CalibrationParam>) -> Vec<CalibrationParam> {
        let weight = window.and_then(|w| match w.combine {
            Combine::Joint => Some((FACTOR, WEIGHTS)),
            Combine::Learned => Some((SHARE, WINDOW_GATES)),
            Combine::Fixed => None,
        });
        let weight = weight.map(|(tensor, values)| CalibrationParam {
            tensor,
            granularity: Granularity::Head,
            values,
            update: CalibrationUpdate::Set,
        });
        weight.into_iter().chain(own).chain(weight).collect()
    }

    /// Bytes of its keys and values after `context` tokens.
    pub(super) fn state_bytes(&self, layer_dims: &LayerDims, context: usize) -> usize {
        let sink_tokens = self.sinks.min(context);
        4 * 2 * (sink_tokens + self.size.min(context - sink_tokens)) * layer_dims.kv_heads * layer_dims.width
    }

    /// Both outputs in this window's shares; not for a joint normaliser.
    pub(super) fn blend(&self, window: &Var, linear: &Var, params: &Params) -> Result<Var> {
        match self.combine {
            Combine::Learned => lerp::lerp(window, linear, params.get(SHARE)?),
            _ => {
                // A factor of 0 is a share of one half.
                let (heads, device) = (window.value().dim(2)?, window.value().device());
                lerp::lerp(window, linear, &Tensor::zeros(heads, DType::F32, device)?.into())
            }
        }
    }
}

/// The keys and values of a call: those that a state has kept, then the call's own.
pub(super) struct KvWithCache {
    /// After RoPE.
    pub k: Var,
    pub v: Var,
    pub past: KvLayout,
    /// One token after a state: recurrent form.
    one_token: bool,
}

impl KvWithCache {
    pub fn of(heads: &LayerInputs, state: Option<&State>) -> Result<Self> {
        let (batch, tokens) = heads.size()?;
        let past = state.map_or_else(|| KvLayout::none(batch), |s| s.past(batch));
        let (k, v) = (after(state, "k", &heads.rotated()?.1)?, after(state, "v", &heads.v)?);
        Ok(KvWithCache { k, v, past, one_token: state.is_some() && tokens == 1 })
    }

    /// Numerator and denominator of the window.
    pub fn attend(&self, mask: AttentionMask, heads: &LayerInputs) -> Result<(Var, Var)> {
        let (q, documents, scores) = (&heads.rotated()?.0, &heads.documents, heads.scores);
        if self.one_token {
            let (k, v) = (self.k.value(), self.v.value());
            let (num, den) = attention::attention_step(q.value(), k, v, mask, documents, &self.past, scores)?;
            return Ok((num.into(), den.into()));
        }
        attention::attention(q, &self.k, &self.v, mask, documents, &self.past, scores)
    }

    /// Leaves in `state` what the next call needs of these keys and values.
    pub fn keep(&self, mask: AttentionMask, heads: &LayerInputs, state: &mut State) -> Result<KvLayout> {
        let next = self.past.after(&heads.documents, mask);
        for (name, x) in [("k", &self.k), ("v", &self.v)] {
            state.tensors.insert(name, self.past.carry(x.value(), &heads.documents, &next)?);
        }
        Ok(next)
    }
}

/// The columns that `state` has kept under `name`, then `new`, along the tokens.
pub(super) fn after(state: Option<&State>, name: &str, new: &Var) -> Result<Var> {
    Ok(match state.and_then(|s| s.get(name)) {
        Some(old) => Tensor::cat(&[old, new.value()], 1)?.into(),
        None => new.clone(),
    })
}
