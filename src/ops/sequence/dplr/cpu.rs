//! The kernels of the CPU.

use super::{Dplr, GATE, STATE};
use crate::Result;
use crate::ops::cpu::decay::{Decay, Read, gate_gradient, put_rows, state_terms, write};
use crate::ops::cpu::matrix::{Mat, MatMut, Triangle};
use crate::ops::cpu::simd::simd;
use crate::ops::cpu::triangular::{solve, solve_transposed};
use crate::ops::cpu::{HeadsView, Output, Slice, gradients_of, zeroed};
use crate::ops::recurrence::{PerState, Place, Sizes, keep_next, take_last};
use candle_core::Tensor;

/// Buffers that a thread keeps between heads.
#[derive(Default)]
struct Scratch {
    decay: Decay,
    product: Vec<f32>,
    transition: Vec<f32>,
    x: Vec<f32>,
    y: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
    da: Vec<f32>,
    db: Vec<f32>,
    dy: Vec<f32>,
    inclusive: Vec<f32>,
    exclusive: Vec<f32>,
    /// The state before a chunk.
    before: Vec<f32>,
}

/// Views of the inputs.
struct Views<'a> {
    heads: [HeadsView<'a>; STATE],
    state: Slice<'a>,
    gate: Option<HeadsView<'a>>,
}

/// What a chunk of one state reads.
#[derive(Clone, Copy)]
struct Rows<'a> {
    k: Mat<'a>,
    v: Mat<'a>,
    a: Mat<'a>,
    b: Mat<'a>,
    len: usize,
}

impl<'a> Views<'a> {
    fn of(x: &'a [Tensor]) -> Result<Self> {
        let heads = x[..STATE].iter().map(HeadsView::of).collect::<Result<Vec<_>>>()?;
        Ok(Views {
            heads: heads.try_into().ok().expect("five tensors"),
            state: Slice::of(&x[STATE])?,
            gate: x.get(GATE).map(HeadsView::of).transpose()?,
        })
    }

    /// Takes in a chunk's gates.
    fn enter(&self, at: &Place, decay: &mut Decay) -> Rows<'_> {
        let rows = &at.rows;
        decay.prepare(self.gate.as_ref().map(|x| x.head(at.b, at.n, rows.clone())), rows.len());
        let of = |i: usize, head: usize| self.heads[i].head(at.b, head, rows.clone());
        Rows { k: of(1, at.g), v: of(2, at.g), a: of(3, at.n), b: of(4, at.n), len: rows.len() }
    }
}

impl Scratch {
    /// y of a chunk from the state before it, which then moves on to the state after.
    fn advance(&mut self, Rows { k, v, a, b, len }: Rows, s: &mut [f32]) {
        self.y.resize(len * v.cols, 0.0);
        let mut y = MatMut::new(&mut self.y, len, v.cols);
        y.product(1.0, self.decay.from_start(Read::Before, a, &mut self.x), Mat::new(s, k.cols, v.cols), 0.0);
        self.decay.product(Read::Before, a, k, &mut self.product);
        y.product_in(Triangle::Left, 1.0, Mat::new(&self.product, len, len), v, 1.0);
        self.decay.product(Read::Before, a, b, &mut self.transition);
        negate(&mut self.transition);
        solve(Mat::new(&self.transition, len, len), &mut self.y, v.cols);
        self.decay.decay_state(s, v.cols);
        write(s, self.decay.to_end(k, &mut self.x), v);
        write(s, self.decay.to_end(b, &mut self.x), Mat::new(&self.y, len, v.cols));
    }
}

fn negate(x: &mut [f32]) {
    simd!(|| x.iter_mut().for_each(|x| *x = -*x),);
}

/// What the forward pass keeps.
pub(super) struct Kept {
    /// The state before every chunk, and after the last.
    states: PerState,
    after: Tensor,
    /// y of every token, and -A_ab of every chunk.
    reads: PerState,
    transitions: PerState,
}

impl Dplr {
    pub(super) fn forward(&self, x: &[Tensor], keep: bool) -> Result<(Vec<Tensor>, Kept)> {
        let Sizes { sharing, key_width, value_width, .. } = self.0;
        let (views, heads) = (Views::of(x)?, sharing.heads);
        let reads = PerState::of_tokens(&self.0, value_width, keep);
        let transitions = PerState::of_pairs(&self.0, sharing.states, keep);
        let mut out = self.0.output();
        let out_at = out.pointer();
        // SAFETY of every `of` and `rows` here: a state, and the heads that read it, belong to one task.
        let begin = |b, n| [&reads, &transitions].map(|kept| unsafe { kept.of(b, n) });
        let chunk = |scratch: &mut Scratch, kept: &mut [&mut [f32]; 2], at: &Place, s: &mut [f32]| {
            let rows = views.enter(at, &mut scratch.decay);
            scratch.before.clear();
            scratch.before.extend_from_slice(s);
            scratch.advance(rows, s);
            if keep {
                keep_next(&mut kept[0], &scratch.y);
                keep_next(&mut kept[1], &scratch.transition);
            }
            let y = Mat::new(&scratch.y, rows.len, value_width);
            for h in sharing.queries_of(at.n) {
                let q = views.heads[0].head(at.b, h, at.rows.clone());
                let mut o = unsafe { self.0.rows(out_at, heads, (at.b, h), &at.rows, value_width) };
                let q_start = scratch.decay.from_start(Read::After, q, &mut scratch.x);
                o.product(1.0, q_start, Mat::new(&scratch.before, key_width, value_width), 0.0);
                for (read, written) in [(rows.k, rows.v), (rows.b, y)] {
                    scratch.decay.product(Read::After, q, read, &mut scratch.product);
                    let product = Mat::new(&scratch.product, rows.len, rows.len);
                    o.product_in(Triangle::Left, 1.0, product, written, 1.0);
                }
            }
        };
        let (after, states) = self.0.forward(&views.state, keep, begin, chunk)?;
        Ok((vec![out.tensor()?, after.clone()], Kept { states, after, reads, transitions }))
    }

    /// With R the gradient of the state after a chunk: dy = A_qb^T do + (b e^(G_C - G)) R and w = (I - A_ab)^-T dy is the
    /// gradient of the right-hand side; dv = A_qk^T do + (k e^(G_C - G)) R + A_ak^T w, dA_ab = w y^T, dA_ak = w v^T, and
    /// R = e^(G_C) R + (q e^G)^T do + (a e^Gx)^T w. dG = q dq - k dk - b db, and a da for Gx.
    pub(super) fn backward(
        &self,
        x: &[Tensor],
        kept: Kept,
        wanted: &[bool],
        up: &[Tensor],
    ) -> Result<Vec<Option<Tensor>>> {
        let Sizes { sharing, key_width: kw, value_width: vw, gate_width, .. } = self.0;
        let (size, heads, kv_heads) = (self.0.state(), sharing.heads, sharing.kv_heads);
        let views = Views::of(x)?;
        let (d_out, d_state, after) = (HeadsView::of(&up[0])?, Slice::of(&up[1])?, Slice::of(&kept.after)?);
        let mut grads = self.0.gradients(&x[..STATE], &x[STATE], &x[GATE..]);
        let at: Vec<_> = grads.iter_mut().map(Output::pointer).collect();
        // SAFETY of every `of` and `rows` here: a state's heads, and those of its kv head, belong to one task.
        let begin = |b, n, r: &[f32]| {
            let mut running = vec![0f64; gate_width];
            if gate_width > 0 {
                state_terms(&mut running, &after[(b * sharing.states + n) * size..][..size], r, vw);
            }
            ([&kept.reads, &kept.transitions].map(|kept| unsafe { kept.of(b, n) }), running)
        };
        let chunk = |scratch: &mut Scratch,
                     kept: &mut [&mut [f32]; 2],
                     place: &Place,
                     s: &[f32],
                     r: &mut [f32],
                     running: &mut [f64]| {
            let Scratch { decay, product, x, dq, dk, dv, da, db, dy, inclusive, exclusive, .. } = scratch;
            let &Place { b, g, n, first, rows: ref tokens } = place;
            let Rows { k, v, a, b: low, len } = views.enter(place, decay);
            let [reads, transitions] = kept;
            let y = Mat::new(take_last(reads, len * vw), len, vw);
            let transition = Mat::new(take_last(transitions, len * len), len, len);
            zeroed(inclusive, len * gate_width);
            zeroed(exclusive, len * gate_width);
            for (buffer, width) in
                [(&mut *dq, kw), (&mut *dk, kw), (&mut *da, kw), (&mut *db, kw), (&mut *dv, vw), (&mut *dy, vw)]
            {
                buffer.resize(len * width, 0.0);
            }
            let (s, r_mat) = (Mat::new(s, kw, vw), Mat::new(r, kw, vw));
            for (written, value, d_written, d_value) in [(k, v, &mut *dk, &mut *dv), (low, y, &mut *db, &mut *dy)] {
                MatMut::new(d_written, len, kw).product(1.0, value, r_mat.t(), 0.0);
                decay.scale_end(d_written, kw);
                MatMut::new(d_value, len, vw).product(1.0, decay.to_end(written, x), r_mat, 0.0);
            }
            decay.decay_state(r, vw);
            for h in sharing.queries_of(n) {
                let q = views.heads[0].head(b, h, tokens.clone());
                let d_out = d_out.head(b, h, tokens.clone());
                MatMut::new(dq, len, kw).product(1.0, d_out, s.t(), 0.0);
                decay.scale_start(Read::After, dq, kw);
                let q_start = decay.from_start(Read::After, q, x);
                MatMut::new(r, kw, vw).product(1.0, q_start.t(), d_out, 1.0);
                for (written, value, d_written, d_value) in [(k, v, &mut *dk, &mut *dv), (low, y, &mut *db, &mut *dy)] {
                    decay.product(Read::After, q, written, product);
                    let read_by = Mat::new(product, len, len).t();
                    let mut d_value = MatMut::new(d_value, len, vw);
                    d_value.product_in(Triangle::LeftTransposed, 1.0, read_by, d_out, 1.0);
                    MatMut::new(product, len, len).product_in(Triangle::Output, 1.0, d_out, value.t(), 0.0);
                    decay.product_backward(Read::After, product, q, written, dq, d_written);
                }
                decay.gate_terms(inclusive, 1.0, q, Mat::new(dq, len, kw));
                put_rows(unsafe { self.0.rows(at[0], heads, (b, h), tokens, kw) }, dq, true);
            }
            solve_transposed(transition, dy, vw);
            let w = Mat::new(dy, len, vw);
            MatMut::new(da, len, kw).product(1.0, w, s.t(), 0.0);
            decay.scale_start(Read::Before, da, kw);
            let a_start = decay.from_start(Read::Before, a, x);
            MatMut::new(r, kw, vw).product(1.0, a_start.t(), w, 1.0);
            decay.product(Read::Before, a, k, product);
            let read_by = Mat::new(product, len, len).t();
            MatMut::new(dv, len, vw).product_in(Triangle::LeftTransposed, 1.0, read_by, w, 1.0);
            for (written, value, d_written) in [(k, v, &mut *dk), (low, y, &mut *db)] {
                MatMut::new(product, len, len).product_in(Triangle::Output, 1.0, w, value.t(), 0.0);
                decay.product_backward(Read::Before, product, a, written, da, d_written);
            }
            if gate_width > 0 {
                decay.gate_terms(inclusive, -1.0, k, Mat::new(dk, len, kw));
                decay.gate_terms(inclusive, -1.0, low, Mat::new(db, len, kw));
                decay.gate_terms(exclusive, 1.0, a, Mat::new(da, len, kw));
                let gate = unsafe { self.0.rows(at[GATE], sharing.states, (b, n), tokens, gate_width) };
                gate_gradient(running, inclusive, exclusive, gate);
            }
            let shared = [(1, kv_heads, g, kw, &*dk, first), (2, kv_heads, g, vw, &*dv, first)];
            let own = [(3, sharing.states, n, kw, &*da, true), (4, sharing.states, n, kw, &*db, true)];
            for (input, heads, head, width, gradient, first) in shared.into_iter().chain(own) {
                put_rows(unsafe { self.0.rows(at[input], heads, (b, head), tokens, width) }, gradient, first);
            }
        };
        self.0.backward(&d_state, &kept.states, at[STATE], begin, chunk);
        gradients_of(grads, wanted)
    }
}
