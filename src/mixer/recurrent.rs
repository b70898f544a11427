//! Mechanisms that are a recurrence (operators B to D, and what else carries a state), alone or blended with a window.

use super::carry::Carry;
use super::window::{Joined, Window};
use super::{Bound, Branches, Heads, Knob, Misfit, Mixer, NewTensor, Scale, Site, State};
use crate::Result;
use crate::ops::sight::{Past, Sight};
use crate::ops::{Var, quotient};
use candle_core::Tensor;

/// One layer's mechanism.
pub trait Recurrent: Send + Sync {
    /// Tensors that it adds to the model.
    fn tensors(&self) -> Vec<NewTensor>;

    /// Output [B, T, H, V] of T >= 1 tokens: feature maps, gates, a core operator of `carry`, norm and output gate.
    fn mix(&self, heads: &Heads, bound: &Bound, carry: &mut Carry) -> Result<Var>;

    /// [`Mixer::misfits`].
    fn misfits(&self, _tokens: usize) -> Vec<Misfit> {
        vec![]
    }

    /// What calibration may try: biases of gates first, then scales of features.
    fn knobs(&self) -> Vec<Knob>;

    /// What its output is multiplied by.
    fn scale(&self) -> Scale;

    /// f32 numbers that it carries for one sequence.
    fn state_size(&self) -> usize;
}

/// The mixer of a recurrence.
pub fn mixer(recurrent: impl Recurrent + 'static, site: Site, window: Option<Window>) -> Box<dyn Mixer> {
    Box::new(RecurrentMixer { recurrent: Box::new(recurrent), site, window })
}

/// A recurrence with its window, as a mixer.
struct RecurrentMixer {
    recurrent: Box<dyn Recurrent>,
    site: Site,
    window: Option<Window>,
}

impl Mixer for RecurrentMixer {
    fn tensors(&self) -> Vec<NewTensor> {
        let mut all = self.recurrent.tensors();
        all.extend(self.recurrent.scale().tensor(&self.site));
        all.extend(self.window.and_then(|w| w.tensors(&self.site)));
        all
    }

    fn mix(&self, heads: &Heads, bound: &Bound, mut state: Option<&mut State>, branches: Branches) -> Result<Var> {
        let window = match self.window {
            Some(w) if state.is_some() || branches.window() => Some((w, Joined::of(heads, state.as_deref())?)),
            _ => None,
        };
        let mut linear = None;
        // Without a state to leave, a switched-off branch need not be computed.
        if state.is_some() || branches.linear() {
            let mut carry = Carry::new(state.as_deref_mut(), &heads.documents);
            let output = self.recurrent.mix(heads, bound, &mut carry)?;
            linear = Some(self.recurrent.scale().apply(&output, bound)?);
        }
        let linear = linear.filter(|_| branches.linear());
        let exact = match &window {
            Some((w, joined)) if branches.window() => {
                let (num, den) = joined.attend(w.sight(), heads)?;
                Some((w, quotient::quotient(&num, &den, 0.0)?))
            }
            _ => None,
        };
        if let Some(state) = state {
            let (batch, _) = heads.size()?;
            state.past = Some(match &window {
                Some((w, joined)) => joined.keep(w.sight(), heads, state)?,
                None => Past { recent: 0, ..state.past(batch).after(&heads.documents, Sight::sliding(1)) },
            });
        }
        match (exact, linear) {
            (Some((w, exact)), Some(linear)) => w.blend(&exact, &linear, bound),
            (Some((_, exact)), None) => Ok(exact),
            (None, Some(linear)) => Ok(linear),
            // The only branch is switched off: the mixer is silent.
            (None, None) => Ok(Var::constant(heads.q.value().zeros_like()?)),
        }
    }

    fn step(&self, heads: &Heads, bound: &Bound, state: &mut State) -> Result<Tensor> {
        Ok(self.mix(heads, bound, Some(state), Branches::Both)?.value().clone())
    }

    fn misfits(&self, tokens: usize) -> Vec<Misfit> {
        self.recurrent.misfits(tokens)
    }

    fn knobs(&self) -> Vec<Knob> {
        Window::knobs(self.window, self.recurrent.knobs())
    }

    fn scale(&self) -> Scale {
        self.recurrent.scale()
    }

    fn share(&self) -> Option<&'static str> {
        self.window.and_then(|w| w.share())
    }

    fn state_bytes(&self, context: usize) -> usize {
        4 * self.recurrent.state_size() + self.window.map_or(0, |w| w.state_bytes(&self.site, context))
    }
}
