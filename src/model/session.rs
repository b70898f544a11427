//! Generation: a view with the states of its layers.

use super::forward::{LayerVars, View};
use super::positions::Positions;
use crate::Result;
use crate::mixer::State;
use crate::ops::{Documents, Var, lm_head};
use candle_core::Tensor;
use std::sync::Arc;

/// Texts in progress: one, or the rows of a batch.
pub struct Session<'a> {
    view: View<'a>,
    vars: Vec<LayerVars>,
    states: Vec<State>,
    /// Tokens taken in, row by row.
    seen: Vec<usize>,
}

/// Tokens of a prompt that are run at once: bounds the memory of long prompts.
const PREFILL: usize = 512;

impl<'a> Session<'a> {
    /// For one text.
    pub fn new(view: View<'a>) -> Self {
        Session::of_batch(view, 1)
    }

    /// For `batch` texts side by side.
    pub fn of_batch(view: View<'a>, batch: usize) -> Self {
        let layers = view.model.spec.layers;
        Session {
            view,
            vars: (0..layers).map(|l| view.bind(l, None, |_| false)).collect(),
            states: (0..layers).map(|_| State::default()).collect(),
            seen: vec![0; batch],
        }
    }

    /// Takes in more tokens of one text and returns the logits after the last one, `[vocab]`.
    pub fn feed(&mut self, ids: &[u32]) -> Result<Tensor> {
        let mut last = None;
        let length = self.position() + ids.len();
        for part in ids.chunks(PREFILL) {
            last = Some(self.read(part, Documents::whole(1, part.len()), length)?);
        }
        let last = last.ok_or_else(|| crate::Error::Internal("no tokens to feed".into()))?;
        Ok(self.logits(last)?.flatten_all()?)
    }

    /// Takes in as many tokens of every row, prompts of different lengths with padding on their left, and returns the
    /// logits after the last ones, [B, vocab].
    pub fn feed_rows(&mut self, ids: &[u32], documents: &Arc<Documents>) -> Result<Tensor> {
        let last = self.read(ids, documents.clone(), 0)?;
        Ok(self.logits(last)?.squeeze(1)?)
    }

    /// The last block's output. `length`: tokens of the text once all of it is read.
    fn read(&mut self, ids: &[u32], documents: Arc<Documents>, length: usize) -> Result<Var> {
        let positions = Positions::of(self.view.model, documents, &self.seen, length)?;
        let mut x = Var::constant(self.view.embed(ids, &positions)?);
        for (layer, (vars, state)) in self.vars.iter().zip(&mut self.states).enumerate() {
            x = self.view.cached_block(layer, &x, vars, &positions, state)?;
        }
        for (row, seen) in self.seen.iter_mut().enumerate() {
            *seen += positions.documents.row(row).iter().map(|document| document.len()).sum::<usize>();
        }
        Ok(x)
    }

    /// After the last token of each row, [B, 1, vocab].
    fn logits(&self, x: Var) -> Result<Tensor> {
        let x = x.value().narrow(1, x.value().dim(1)? - 1, 1)?.contiguous()?;
        lm_head::logits(self.view.final_norm(&x.into())?.value(), &self.view.model.head)
    }

    /// Tokens taken in, of the longest row.
    pub fn position(&self) -> usize {
        self.seen.iter().copied().max().unwrap_or(0)
    }

    /// Bytes of all states.
    pub fn state_bytes(&self) -> usize {
        self.states.iter().map(State::bytes).sum()
    }

    /// An independent copy that shares the weights: a prompt's state can serve many continuations.
    pub fn fork(&self) -> Result<Session<'a>> {
        let mut copy = Session::of_batch(self.view, self.seen.len());
        copy.states = self.states.iter().map(State::fork).collect::<Result<_>>()?;
        copy.seen = self.seen.clone();
        Ok(copy)
    }
}
