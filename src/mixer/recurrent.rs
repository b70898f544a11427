//! Mechanisms that are a recurrence (operators B to D, and what else carries a state), alone or blended with a window.

use super::stateful_ops::StatefulOps;
use super::window::{KvWithCache, Window};
use super::{
    Branches, CalibrationParam, Incompatibility, LayerDims, LayerInputs, Mixer, NewTensor, OutputScale, Params, State,
};
use crate::Result;
use crate::ops::attention_mask::{AttentionMask, KvLayout};
use crate::ops::{Var, normalize};
use candle_core::Tensor;

/// One layer's mechanism.
pub trait Recurrent: Send + Sync {
    /// Tensors that it adds to the model.
    fn tensors(&self) -> Vec<NewTensor>;

    /// Output [B, T, H, V] of T >= 1 tokens: feature maps, gates, a core operator of `ops`, norm and output gate.
    fn mix(&self, heads: &LayerInputs, params: &Params, ops: &mut StatefulOps) -> Result<Var>;

    /// [`Mixer::incompatibilities`].
    fn incompatibilities(&self, _tokens: usize) -> Vec<Incompatibility> {
        vec![]
    }

    /// What calibration may try: biases of gates first, then scales of features.
    fn calibration_params(&self) -> Vec<CalibrationParam>;

    /// What its output is multiplied by.
    fn scale(&self) -> OutputScale;

    /// f32 numbers that it carries for one sequence.
    fn state_size(&self) -> usize;
}

/// The mixer of a recurrence.
pub fn mixer(recurrent: impl Recurrent + 'static, layer_dims: LayerDims, window: Option<Window>) -> Box<dyn Mixer> {
    Box::new(RecurrentMixer { recurrent: Box::new(recurrent), layer_dims, window })
}

/// A recurrence with its window, as a mixer.
struct RecurrentMixer {
    recurrent: Box<dyn Recurrent>,
    layer_dims: LayerDims,
    window: Option<Window>,
}

impl Mixer for RecurrentMixer {
    fn tensors(&self) -> Vec<NewTensor> {
        let mut all = self.recurrent.tensors();
        all.extend(self.recurrent.scale().tensor(&self.layer_dims));
        all.extend(self.window.and_then(|w| w.tensors(&self.layer_dims)));
        all
    }

    fn mix(
        &self,
        heads: &LayerInputs,
        params: &Params,
        mut state: Option<&mut State>,
        branches: Branches,
    ) -> Result<Var> {
        let window = match self.window {
            Some(w) if state.is_some() || branches.window() => Some((w, KvWithCache::of(heads, state.as_deref())?)),
            _ => None,
        };
        let mut linear = None;
        // Without a state to leave, a switched-off branch need not be computed.
        if state.is_some() || branches.linear() {
            let mut ops = StatefulOps::new(state.as_deref_mut(), &heads.documents);
            let output = self.recurrent.mix(heads, params, &mut ops)?;
            linear = Some(self.recurrent.scale().apply(&output, params)?);
        }
        let linear = linear.filter(|_| branches.linear());
        let exact = match &window {
            Some((w, kv)) if branches.window() => {
                let (num, den) = kv.attend(w.mask(), heads)?;
                Some((w, normalize::normalize(&num, &den, 0.0)?))
            }
            _ => None,
        };
        if let Some(state) = state {
            let (batch, _) = heads.size()?;
            state.past = Some(match &window {
                Some((w, kv)) => kv.keep(w.mask(), heads, state)?,
                None => KvLayout {
                    window_tokens: 0,
                    ..state.past(batch).after(&heads.documents, AttentionMask::sliding(1))
                },
            });
        }
        match (exact, linear) {
            (Some((w, exact)), Some(linear)) => w.blend(&exact, &linear, params),
            (Some((_, exact)), None) => Ok(exact),
            (None, Some(linear)) => Ok(linear),
            // The only branch is switched off: the mixer is silent.
            (None, None) => Ok(Var::constant(heads.q.value().zeros_like()?)),
        }
    }

    fn step(&self, heads: &LayerInputs, params: &Params, state: &mut State) -> Result<Tensor> {
        Ok(self.mix(heads, params, Some(state), Branches::Both)?.value().clone())
    }

    fn incompatibilities(&self, tokens: usize) -> Vec<Incompatibility> {
        self.recurrent.incompatibilities(tokens)
    }

    fn calibration_params(&self) -> Vec<CalibrationParam> {
        Window::calibration_params(self.window, self.recurrent.calibration_params())
    }

    fn scale(&self) -> OutputScale {
        self.recurrent.scale()
    }

    fn window_gate(&self) -> Option<&'static str> {
        self.window.and_then(|w| w.window_gate())
    }

    fn state_bytes(&self, context: usize) -> usize {
        4 * self.recurrent.state_size() + self.window.map_or(0, |w| w.state_bytes(&self.layer_dims, context))
    }
}
