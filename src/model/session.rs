//! Generation: a view with the states of its layers.

use super::forward::{LayerVars, View};
use super::positions::Positions;
use crate::Result;
use crate::mixer::State;
use crate::ops::{Documents, Var, head};
use candle_core::Tensor;

/// A text in progress.
pub struct Session<'a> {
    view: View<'a>,
    vars: Vec<LayerVars>,
    states: Vec<State>,
    position: usize,
}

/// Tokens of a prompt that are run at once: bounds the memory of long prompts.
const PREFILL: usize = 512;

impl<'a> Session<'a> {
    pub fn new(view: View<'a>) -> Self {
        let layers = view.model.spec.layers;
        Session {
            view,
            vars: (0..layers).map(|l| view.bind(l, None, |_| false)).collect(),
            states: (0..layers).map(|_| State::default()).collect(),
            position: 0,
        }
    }

    /// Takes in more tokens and returns the logits after the last one, `[vocab]`.
    pub fn feed(&mut self, ids: &[u32]) -> Result<Tensor> {
        let mut last = None;
        let length = self.position + ids.len();
        for part in ids.chunks(PREFILL) {
            let documents = Documents::whole(1, part.len());
            let positions = Positions::of(self.view.model, documents, &[self.position], length)?;
            let mut x = Var::constant(self.view.embed(part, &positions)?);
            for (layer, (vars, state)) in self.vars.iter().zip(&mut self.states).enumerate() {
                x = self.view.cached_block(layer, &x, vars, &positions, state)?;
            }
            self.position += part.len();
            last = Some(x);
        }
        let x = last.ok_or_else(|| crate::Error::Internal("no tokens to feed".into()))?;
        let x = x.value().narrow(1, x.value().dim(1)? - 1, 1)?.contiguous()?;
        let hidden = self.view.final_norm(&x.into())?;
        Ok(head::logits(hidden.value(), &self.view.model.head)?.flatten_all()?)
    }

    /// Tokens taken in.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Bytes of all states.
    pub fn state_bytes(&self) -> usize {
        self.states.iter().map(State::bytes).sum()
    }

    /// An independent copy that shares the weights: a prompt's state can serve many continuations.
    pub fn fork(&self) -> Result<Session<'a>> {
        let mut copy = Session::new(self.view);
        copy.states = self.states.iter().map(State::fork).collect::<Result<_>>()?;
        copy.position = self.position;
        Ok(copy)
    }
}
