//! What the gated recurrences share: sizes of a call and its checks, the way over states and chunks, forward and
//! backward, and what is kept for the way back.

use crate::ops::chunked::Chunks;
use crate::ops::cpu::{Output, OutputPointer, Sharing, matrix::MatMut};
use crate::ops::documents::{Chunk, Documents};
use crate::ops::tape::Var;
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Tokens of a chunk.
const CHUNK: usize = 64;

/// Sizes of one call: q [B, T, H, K], k [B, T, G, K], v [B, T, G, V], states [B, N, K, V], gate [B, T, N, any].
pub(crate) struct Sizes {
    pub sharing: Sharing,
    pub tokens: usize,
    pub key_width: usize,
    pub value_width: usize,
    /// 0: no gate.
    pub gate_width: usize,
    pub documents: Arc<Documents>,
}

impl Sizes {
    pub fn of(q: &Var, v: &Var, states: usize, gate: Option<&Var>, documents: &Arc<Documents>) -> Result<Self> {
        let (batch, tokens, heads, key_width) = q.value().dims4()?;
        let (_, _, kv_heads, value_width) = v.value().dims4()?;
        let gate_width = gate.map_or(Ok(0), |g| g.value().dim(3))?;
        let sharing = Sharing { batch, heads, states, kv_heads };
        Ok(Sizes { sharing, tokens, key_width, value_width, gate_width, documents: documents.clone() })
    }

    /// The width that a gate may have: one per token, or K.
    pub fn narrow_or_key_gate(&self) -> usize {
        if self.gate_width == 1 { 1 } else { self.key_width }
    }

    /// Elements of a state.
    pub fn state(&self) -> usize {
        self.key_width * self.value_width
    }

    /// The state given, or zero where `v` lies.
    pub fn state_before(&self, given: Option<&Var>, v: &Var) -> Result<Var> {
        match given {
            Some(state) => Ok(state.clone()),
            None => Ok(Var::constant(Tensor::zeros(&self.state_dims(), DType::F32, v.value().device())?)),
        }
    }

    fn state_dims(&self) -> [usize; 4] {
        [self.sharing.batch, self.sharing.states, self.key_width, self.value_width]
    }

    /// o [B, T, H, V], to be written.
    pub fn output(&self) -> Output {
        let o = [self.sharing.batch, self.tokens, self.sharing.heads, self.value_width];
        Output::padded(&o, &self.documents)
    }

    /// Refuses inputs that do not fit q's and v's sizes: k, the state, and `others` of N states, each with its width.
    pub fn check(&self, name: &str, k: &Var, state: &Var, others: &[(&Var, usize)]) -> Result<()> {
        let Sharing { batch, states, kv_heads, .. } = self.sharing;
        let dims = |x: &Var| x.value().dims().to_vec();
        let fits = dims(k) == [batch, self.tokens, kv_heads, self.key_width]
            && dims(state) == self.state_dims()
            && others.iter().all(|(x, width)| dims(x) == [batch, self.tokens, states, *width])
            && self.sharing.fits()
            && (self.documents.batch(), self.documents.tokens()) == (batch, self.tokens);
        if fits {
            return Ok(());
        }
        let others: Vec<_> = others.iter().map(|(x, _)| dims(x)).collect();
        let (sharing, state) = (self.sharing, dims(state));
        let what = format!("{name} of {sharing:?}, k {:?}, state {state:?}, {others:?}, {:?}", dims(k), self.documents);
        Err(Error::Internal(what))
    }

    /// Gradients to be written, of inputs that go by tokens, the state, and further inputs that do.
    pub fn gradients(&self, first: &[Tensor], state: &Tensor, rest: &[Tensor]) -> Vec<Output> {
        let by_tokens = |x: &Tensor| Output::padded(x.dims(), &self.documents);
        let state = Output::unwritten(state.dims());
        first.iter().map(by_tokens).chain([state]).chain(rest.iter().map(by_tokens)).collect()
    }

    /// Rows of one head in a [B, T, heads, width] buffer.
    ///
    /// # Safety
    /// The caller's task alone owns that head of batch row `b`.
    pub unsafe fn rows<'a>(
        &self,
        to: OutputPointer,
        heads: usize,
        (b, head): (usize, usize),
        tokens: &Range<usize>,
        width: usize,
    ) -> MatMut<'a> {
        let start = ((b * self.tokens + tokens.start) * heads + head) * width;
        unsafe { to.rows(start, tokens.len(), width, heads * width) }
    }
}

/// What the formulas share.
impl Sizes {
    /// The outputs of a call without tokens in documents.
    pub fn nothing(&self, q: &Tensor, state: &Tensor) -> Result<Vec<Tensor>> {
        let o = (self.sharing.batch, self.tokens, self.sharing.heads, self.value_width);
        Ok(vec![Tensor::zeros(o, q.dtype(), q.device())?, state.clone()])
    }

    /// Queries [Z, C, R, K] of [`Chunks::split`] times a weight [H, K] of their heads.
    pub fn by_heads(&self, q: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let Sharing { batch, heads, states, .. } = self.sharing;
        let (z, _, share, width) = q.dims4()?;
        debug_assert_eq!(share, heads / states);
        let weight = weight.reshape((1, states, 1, share, width))?;
        let weight = weight.broadcast_as((batch, states, z / (batch * states), share, width))?.contiguous()?;
        Ok(q.broadcast_mul(&weight.reshape((z, 1, share, width))?)?)
    }

    /// o [Z, C R, V] in the order of the tokens, and the state after.
    pub fn outputs(&self, chunks: &Chunks, o: Tensor, state: Tensor) -> Result<Vec<Tensor>> {
        let (z, rows, width) = o.dims3()?;
        Ok(vec![chunks.join(&o.reshape((z, chunks.size, rows / chunks.size, width))?)?, state])
    }
}

/// A chunk of the tokens that one state reads.
pub(crate) struct Place {
    /// Batch row, kv head, state.
    pub b: usize,
    pub g: usize,
    pub n: usize,
    /// The first of the states that share the kv head: the others add to its gradients.
    pub first: bool,
    pub rows: Range<usize>,
}

impl Sizes {
    /// Takes every state from `before` over its chunks: `chunk` moves it on, and may leave the numbers that `begin`
    /// makes room for. Returns the states after, and those before every chunk where they are to be kept.
    pub fn forward<S: Default, K>(
        &self,
        before: &[f32],
        keep: bool,
        begin: impl Fn(usize, usize) -> K + Sync,
        chunk: impl Fn(&mut S, &mut K, &Place, &mut [f32]) + Sync,
    ) -> Result<(Tensor, PerState)> {
        let (sharing, size) = (self.sharing, self.state());
        let states = PerState::of_chunks(self, size, keep);
        let mut after = Output::unwritten(&self.state_dims());
        let after_at = after.pointer();
        sharing.tasks().for_each_init(S::default, |scratch, (b, g)| {
            for n in sharing.states_of(g) {
                let at = (b * sharing.states + n) * size;
                // SAFETY: state n of batch row b belongs to this task.
                let (s, mut states) = unsafe { (after_at.slice(at, size), states.of(b, n)) };
                s.copy_from_slice(&before[at..][..size]);
                let mut kept = begin(b, n);
                for Chunk { tokens, fresh } in self.documents.chunks(b, CHUNK) {
                    if fresh {
                        s.fill(0.0);
                    }
                    if keep {
                        keep_next(&mut states, s);
                    }
                    let first = n == sharing.states_of(g).start;
                    chunk(scratch, &mut kept, &Place { b, g, n, first, rows: tokens }, s);
                }
            }
        });
        Ok((after.tensor()?, states))
    }

    /// Takes every state's gradient back over its chunks: `chunk` gets the state before it and the gradient of the state
    /// after it, and makes of this that of the state before. `begin` gets the gradient of the last state; what it returns
    /// is `chunk`'s own on the way, and running sums that end where a document begins. Writes the first states' gradients.
    pub fn backward<S: Default, K>(
        &self,
        d_after: &[f32],
        states: &PerState,
        d_before: OutputPointer,
        begin: impl Fn(usize, usize, &[f32]) -> (K, Vec<f64>) + Sync,
        chunk: impl Fn(&mut S, &mut K, &Place, &[f32], &mut [f32], &mut [f64]) + Sync,
    ) {
        let (sharing, size) = (self.sharing, self.state());
        sharing.tasks().for_each_init(S::default, |scratch, (b, g)| {
            let chunks: Vec<_> = self.documents.chunks(b, CHUNK).collect();
            for n in sharing.states_of(g) {
                let at = (b * sharing.states + n) * size;
                // SAFETY: state n of batch row b belongs to this task.
                let (states, r) = unsafe { (states.of(b, n), d_before.slice(at, size)) };
                r.copy_from_slice(&d_after[at..][..size]);
                let (mut kept, mut running) = begin(b, n, r);
                for (Chunk { tokens, fresh }, s) in chunks.iter().zip(states.chunks_exact(size)).rev() {
                    let first = n == sharing.states_of(g).start;
                    chunk(scratch, &mut kept, &Place { b, g, n, first, rows: tokens.clone() }, s, r, &mut running);
                    if *fresh {
                        r.fill(0.0);
                        running.fill(0.0);
                    }
                }
            }
        });
    }
}

/// Numbers of every state's chunks or tokens, in the order of the text: what a forward pass keeps.
pub(crate) struct PerState {
    /// What `at` points into.
    _data: Output,
    at: OutputPointer,
    states: usize,
    /// Where batch rows begin, in units of one state's numbers, and how many numbers a state has.
    rows: Vec<(usize, usize)>,
}

impl PerState {
    /// `width` numbers for every chunk.
    pub fn of_chunks(sizes: &Sizes, width: usize, keep: bool) -> Self {
        Self::new(sizes.sharing.batch, sizes.sharing.states, keep, |row| {
            sizes.documents.chunks(row, CHUNK).count() * width
        })
    }

    /// `width` numbers for every token of a document.
    pub fn of_tokens(sizes: &Sizes, width: usize, keep: bool) -> Self {
        let tokens = |row| sizes.documents.chunks(row, CHUNK).map(|c| c.tokens.len()).sum::<usize>();
        Self::new(sizes.sharing.batch, sizes.sharing.states, keep, |row| tokens(row) * width)
    }

    /// A number for every pair of tokens of a chunk, of `heads` states or heads.
    pub fn of_pairs(sizes: &Sizes, heads: usize, keep: bool) -> Self {
        let pairs = |row| sizes.documents.chunks(row, CHUNK).map(|c| c.tokens.len().pow(2)).sum();
        Self::new(sizes.sharing.batch, heads, keep, pairs)
    }

    /// As many as `numbers` says for every state of a batch row; none unless `keep`.
    pub fn new(batch: usize, states: usize, keep: bool, numbers: impl Fn(usize) -> usize) -> Self {
        let (mut rows, mut total) = (vec![], 0);
        for row in 0..batch {
            let numbers = if keep { numbers(row) } else { 0 };
            rows.push((total, numbers));
            total += numbers * states;
        }
        let mut data = Output::unwritten(&[total]);
        let at = data.pointer();
        PerState { _data: data, at, states, rows }
    }

    /// The numbers of state n of batch row b; empty where nothing is kept.
    ///
    /// # Safety
    /// The caller's task alone owns that state.
    #[expect(clippy::mut_from_ref, reason = "tasks write disjoint parts")]
    pub unsafe fn of(&self, b: usize, n: usize) -> &mut [f32] {
        let (start, numbers) = self.rows[b];
        debug_assert!(n < self.states);
        unsafe { self.at.slice(start + n * numbers, numbers) }
    }
}

/// Writes the next of the numbers that are kept.
pub(crate) fn keep_next(kept: &mut &mut [f32], numbers: &[f32]) {
    take_next(kept, numbers.len()).copy_from_slice(numbers);
}

/// The next `n` numbers that have not been taken yet.
pub(crate) fn take_next<'a>(kept: &mut &'a mut [f32], n: usize) -> &'a mut [f32] {
    let (next, rest) = std::mem::take(kept).split_at_mut(n);
    *kept = rest;
    next
}

/// The last `n` numbers that have not been taken yet.
pub(crate) fn take_last<'a>(kept: &mut &'a mut [f32], n: usize) -> &'a mut [f32] {
    let all = std::mem::take(kept);
    let (rest, last) = all.split_at_mut(all.len() - n);
    *kept = rest;
    last
}
