//! The kernels of the CPU.

use super::{BETA, DeltaRule, GATE, STATE};
use crate::Result;
use crate::ops::cpu::decay::{Decay, Read, gate_gradient, put_rows, state_terms, write};
use crate::ops::cpu::matrix::{Mat, MatMut, Triangle};
use crate::ops::cpu::simd::{axpy, dot, simd};
use crate::ops::cpu::triangular::{solve, solve_transposed};
use crate::ops::cpu::{HeadsView, Output, Slice, gradients_of, zeroed};
use crate::ops::recurrence::{PerState, Place, Sizes, keep_next, take_last};
use candle_core::Tensor;

/// Buffers that a thread keeps between heads.
#[derive(Default)]
struct Scratch {
    decay: Decay,
    a: Vec<f32>,
    m: Vec<f32>,
    x: Vec<f32>,
    beta: Vec<f32>,
    u: Vec<f32>,
    y: Vec<f32>,
    dq: Vec<f32>,
    dk_read: Vec<f32>,
    dk_write: Vec<f32>,
    dy: Vec<f32>,
    inclusive: Vec<f32>,
    /// The state before a chunk.
    before: Vec<f32>,
}

/// Views of the inputs.
struct Views<'a> {
    q: HeadsView<'a>,
    k: HeadsView<'a>,
    v: HeadsView<'a>,
    beta: HeadsView<'a>,
    state: Slice<'a>,
    gate: Option<HeadsView<'a>>,
}

/// What a chunk of one state reads.
struct Rows<'a> {
    k: Mat<'a>,
    v: Mat<'a>,
    len: usize,
}

impl<'a> Views<'a> {
    fn of(x: &'a [Tensor]) -> Result<Self> {
        Ok(Views {
            q: HeadsView::of(&x[0])?,
            k: HeadsView::of(&x[1])?,
            v: HeadsView::of(&x[2])?,
            beta: HeadsView::of(&x[3])?,
            state: Slice::of(&x[STATE])?,
            gate: x.get(GATE).map(HeadsView::of).transpose()?,
        })
    }

    /// Takes in a chunk's gates and betas.
    fn enter(&self, at: &Place, scratch: &mut Scratch) -> Rows<'_> {
        let &Place { b, g, n, ref rows, .. } = at;
        scratch.decay.prepare(self.gate.as_ref().map(|x| x.head(b, n, rows.clone())), rows.len());
        let beta = self.beta.head(b, n, rows.clone());
        scratch.beta.clear();
        scratch.beta.extend((0..rows.len()).map(|i| beta.row(i)[0]));
        Rows { k: self.k.head(b, g, rows.clone()), v: self.v.head(b, g, rows.clone()), len: rows.len() }
    }
}

impl Scratch {
    /// u and y of a chunk from the state before it, which then moves on to the state after.
    fn correct(&mut self, rows: &Rows, s: &mut [f32]) {
        let Rows { k, v, len } = *rows;
        self.decay.product(Read::Decayed, k, k, &mut self.m);
        simd!(|| {
            self.a.resize(len * len, 0.0);
            for (a, m) in self.a.chunks_exact_mut(len).zip(self.m.chunks_exact(len)) {
                a.iter_mut().zip(m).zip(&self.beta).for_each(|((a, m), beta)| *a = m * beta);
            }
        });
        self.u.clear();
        (0..len).for_each(|i| self.u.extend_from_slice(v.row(i)));
        let read = self.decay.from_start(Read::Decayed, k, &mut self.x);
        MatMut::new(&mut self.u, len, v.cols).product(-1.0, read, Mat::new(s, k.cols, v.cols), 1.0);
        solve(Mat::new(&self.a, len, len), &mut self.u, v.cols);
        let u = std::mem::take(&mut self.u);
        self.weigh_corrections(&u, v.cols);
        self.u = u;
        self.decay.decay_state(s, v.cols);
        write(s, self.decay.to_end(k, &mut self.x), Mat::new(&self.y, len, v.cols));
    }

    /// y = beta u.
    fn weigh_corrections(&mut self, u: &[f32], width: usize) {
        self.y.resize(u.len(), 0.0);
        simd!(|| {
            let rows = self.y.chunks_exact_mut(width).zip(u.chunks_exact(width)).zip(&self.beta);
            rows.for_each(|((y, u), beta)| y.iter_mut().zip(u).for_each(|(y, u)| *y = beta * u));
        });
    }
}

/// What the forward pass keeps.
pub(super) struct Kept {
    /// The state before every chunk, and after the last.
    states: PerState,
    after: Tensor,
    /// u of every token, and M of every chunk.
    corrections: PerState,
    products: PerState,
}

impl DeltaRule {
    pub(super) fn forward(&self, x: &[Tensor], keep: bool) -> Result<(Vec<Tensor>, Kept)> {
        let Sizes { sharing, key_width, value_width, .. } = self.0;
        let (views, heads) = (Views::of(x)?, sharing.heads);
        let corrections = PerState::of_tokens(&self.0, value_width, keep);
        let products = PerState::of_pairs(&self.0, sharing.states, keep);
        let mut out = self.0.output();
        let out_at = out.pointer();
        // SAFETY of every `of` and `rows` here: a state, and the heads that read it, belong to one task.
        let begin = |b, n| [&corrections, &products].map(|kept| unsafe { kept.of(b, n) });
        let chunk = |scratch: &mut Scratch, kept: &mut [&mut [f32]; 2], at: &Place, s: &mut [f32]| {
            let rows = views.enter(at, scratch);
            scratch.before.clear();
            scratch.before.extend_from_slice(s);
            scratch.correct(&rows, s);
            if keep {
                keep_next(&mut kept[0], &scratch.u);
                keep_next(&mut kept[1], &scratch.m);
            }
            for h in sharing.queries_of(at.n) {
                let q = views.q.head(at.b, h, at.rows.clone());
                let mut o = unsafe { self.0.rows(out_at, heads, (at.b, h), &at.rows, value_width) };
                let q_start = scratch.decay.from_start(Read::After, q, &mut scratch.x);
                o.product(1.0, q_start, Mat::new(&scratch.before, key_width, value_width), 0.0);
                scratch.decay.product(Read::After, q, rows.k, &mut scratch.a);
                let (a, y) = (Mat::new(&scratch.a, rows.len, rows.len), &scratch.y);
                o.product_in(Triangle::Left, 1.0, a, Mat::new(y, rows.len, value_width), 1.0);
            }
        };
        let (after, states) = self.0.forward(&views.state, keep, begin, chunk)?;
        Ok((vec![out.tensor()?, after.clone()], Kept { states, after, corrections, products }))
    }

    /// With R the gradient of the state after a chunk: dy = A^T do + (k e^(G_C - G)) R, w = (I + diag(beta) M)^-T dy,
    /// e = beta w; dv = e, dbeta = w.u, dM = -e y^T, and k has one gradient as what is read and one as what is written:
    /// dG = q dq + k dk_read - k dk_write. R = e^(G_C) R + (q e^G)^T do - (k e^G)^T e.
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
            ([&kept.corrections, &kept.products].map(|kept| unsafe { kept.of(b, n) }), running)
        };
        let chunk = |scratch: &mut Scratch,
                     kept: &mut [&mut [f32]; 2],
                     place: &Place,
                     s: &[f32],
                     r: &mut [f32],
                     running: &mut [f64]| {
            let &Place { b, g, n, first, rows: ref tokens } = place;
            let Rows { k, v: _, len } = views.enter(place, scratch);
            let [corrections, products] = kept;
            let u = take_last(corrections, len * vw);
            let m = take_last(products, len * len);
            scratch.weigh_corrections(u, vw);
            let Scratch { decay, a, x, beta, y, dq, dk_read, dk_write, dy, inclusive, .. } = &mut *scratch;
            zeroed(inclusive, len * gate_width);
            dq.resize(len * kw, 0.0);
            dk_read.resize(len * kw, 0.0);
            dk_write.resize(len * kw, 0.0);
            dy.resize(len * vw, 0.0);
            let (s, y) = (Mat::new(s, kw, vw), Mat::new(y, len, vw));
            let r_mat = Mat::new(r, kw, vw);
            MatMut::new(dk_write, len, kw).product(1.0, y, r_mat.t(), 0.0);
            decay.scale_end(dk_write, kw);
            MatMut::new(dy, len, vw).product(1.0, decay.to_end(k, x), r_mat, 0.0);
            decay.decay_state(r, vw);
            for h in sharing.queries_of(n) {
                let (q, d_out) = (views.q.head(b, h, tokens.clone()), d_out.head(b, h, tokens.clone()));
                MatMut::new(dq, len, kw).product(1.0, d_out, s.t(), 0.0);
                decay.scale_start(Read::After, dq, kw);
                let q_start = decay.from_start(Read::After, q, x);
                MatMut::new(r, kw, vw).product(1.0, q_start.t(), d_out, 1.0);
                decay.product(Read::After, q, k, a);
                let read_by = Mat::new(a, len, len).t();
                MatMut::new(dy, len, vw).product_in(Triangle::LeftTransposed, 1.0, read_by, d_out, 1.0);
                MatMut::new(a, len, len).product_in(Triangle::Output, 1.0, d_out, y.t(), 0.0);
                decay.product_backward(Read::After, a, q, k, dq, dk_write);
                decay.gate_terms(inclusive, 1.0, q, Mat::new(dq, len, kw));
                put_rows(unsafe { self.0.rows(at[0], heads, (b, h), tokens, kw) }, dq, true);
            }
            simd!(|| {
                let rows = m.chunks_exact_mut(len).zip(beta.iter());
                rows.for_each(|(row, beta)| row.iter_mut().for_each(|m| *m *= beta));
            });
            solve_transposed(Mat::new(m, len, len), dy, vw);
            let mut d_beta = unsafe { self.0.rows(at[BETA], sharing.states, (b, n), tokens, 1) };
            simd!(|| {
                let rows = dy.chunks_exact_mut(vw).zip(u.chunks_exact(vw)).zip(&*beta);
                for (i, ((w, u), beta)) in rows.enumerate() {
                    d_beta.row(i)[0] = dot(w, u);
                    w.iter_mut().for_each(|w| *w *= beta);
                }
            });
            let e = Mat::new(dy, len, vw);
            put_rows(unsafe { self.0.rows(at[2], kv_heads, (b, g), tokens, vw) }, dy, first);
            MatMut::new(dk_read, len, kw).product(-1.0, e, s.t(), 0.0);
            decay.scale_start(Read::Decayed, dk_read, kw);
            let k_start = decay.from_start(Read::Decayed, k, x);
            MatMut::new(r, kw, vw).product(-1.0, k_start.t(), e, 1.0);
            MatMut::new(a, len, len).product_in(Triangle::Output, -1.0, e, y.t(), 0.0);
            decay.product_backward(Read::Decayed, a, k, k, dk_read, dk_write);
            if gate_width > 0 {
                decay.gate_terms(inclusive, 1.0, k, Mat::new(dk_read, len, kw));
                decay.gate_terms(inclusive, -1.0, k, Mat::new(dk_write, len, kw));
                let gate = unsafe { self.0.rows(at[GATE], sharing.states, (b, n), tokens, gate_width) };
                gate_gradient(running, inclusive, &[], gate);
            }
            simd!(|| axpy(dk_read, 1.0, dk_write));
            put_rows(unsafe { self.0.rows(at[1], kv_heads, (b, g), tokens, kw) }, dk_read, first);
        };
        self.0.backward(&d_state, &kept.states, at[STATE], begin, chunk);
        gradients_of(grads, wanted)
    }
}
