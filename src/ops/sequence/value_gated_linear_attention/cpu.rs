//! The kernels of the CPU.

use super::{GATE, STATE, ValueGated};
use crate::Result;
use crate::ops::cpu::decay::values::column_terms;
use crate::ops::cpu::decay::{Decay, Read, gate_gradient, put_rows, write};
use crate::ops::cpu::matrix::{Mat, MatMut, Triangle};
use crate::ops::cpu::simd::{axpy, exp, simd};
use crate::ops::cpu::{HeadsView, Output, Sharing, Slice, gradients_of, zeroed};
use crate::ops::recurrence::{PerState, Place, Sizes};
use candle_core::Tensor;
use rayon::prelude::*;

/// Buffers that a thread keeps between heads.
#[derive(Default)]
struct Scratch {
    decay: Decay,
    a: Vec<f32>,
    x: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
    inclusive: Vec<f32>,
}

/// Views of the inputs.
struct Views<'a> {
    q: HeadsView<'a>,
    k: HeadsView<'a>,
    v: HeadsView<'a>,
    state: Slice<'a>,
    gate: HeadsView<'a>,
}

impl<'a> Views<'a> {
    fn of(x: &'a [Tensor]) -> Result<Self> {
        Ok(Views {
            q: HeadsView::of(&x[0])?,
            k: HeadsView::of(&x[1])?,
            v: HeadsView::of(&x[2])?,
            state: Slice::of(&x[STATE])?,
            gate: HeadsView::of(&x[GATE])?,
        })
    }

    /// Takes in a chunk's gates; returns its keys and values.
    fn enter(&self, at: &Place, decay: &mut Decay) -> (Mat<'_>, Mat<'_>) {
        decay.prepare(Some(self.gate.head(at.b, at.n, at.rows.clone())), at.rows.len());
        (self.k.head(at.b, at.g, at.rows.clone()), self.v.head(at.b, at.g, at.rows.clone()))
    }
}
/// The state before every chunk, o, and the state after the last.
pub(super) type Kept = (PerState, [Tensor; 2]);

impl ValueGated {
    pub(super) fn forward(&self, x: &[Tensor], keep: bool) -> Result<(Vec<Tensor>, Kept)> {
        let Sizes { sharing, key_width, value_width, .. } = self.0;
        let (views, heads) = (Views::of(x)?, sharing.heads);
        let mut out = self.0.output();
        let out_at = out.pointer();
        let chunk = |Scratch { decay, a, x, .. }: &mut Scratch, (): &mut (), at: &Place, s: &mut [f32]| {
            let (k, v) = views.enter(at, decay);
            a.resize(k.rows * k.rows, 0.0);
            for h in sharing.queries_of(at.n) {
                let q = views.q.head(at.b, h, at.rows.clone());
                // SAFETY: the heads that read a state belong to its task.
                let mut o = unsafe { self.0.rows(out_at, heads, (at.b, h), &at.rows, value_width) };
                o.product(1.0, q, Mat::new(s, key_width, value_width), 0.0);
                decay.scale_rows(&mut o);
                MatMut::new(a, q.rows, q.rows).product_in(Triangle::Output, 1.0, q, k.t(), 0.0);
                decay.mix(a, v, o);
            }
            decay.decay_columns(s);
            write(s, k, decay.to_end(v, x));
        };
        let (after, states) = self.0.forward(&views.state, keep, |_, _| (), chunk)?;
        let outputs = [out.tensor()?, after];
        Ok((outputs.to_vec(), (states, outputs)))
    }

    /// With R the gradient of the state after a chunk and A's gradient the decayed product of do with v:
    /// dq = (do e^G) S^T + dA k, dk = (v e^(G_C - G)) R^T + dA^T q, dv = (k R) e^(G_C - G) + what A mixes back,
    /// dG = o do - v dv; then R = R e^(G_C) + q^T (do e^G).
    pub(super) fn backward(
        &self,
        x: &[Tensor],
        (states, [o, after]): Kept,
        wanted: &[bool],
        up: &[Tensor],
    ) -> Result<Vec<Option<Tensor>>> {
        let Sizes { sharing, key_width: kw, value_width: vw, .. } = self.0;
        let (size, heads, kv_heads) = (self.0.state(), sharing.heads, sharing.kv_heads);
        let views = Views::of(x)?;
        let (d_out, d_state) = (HeadsView::of(&up[0])?, Slice::of(&up[1])?);
        let (o, after) = (HeadsView::of(&o)?, Slice::of(&after)?);
        let mut grads = self.0.gradients(&x[..STATE], &x[STATE], &x[GATE..]);
        let at: Vec<_> = grads.iter_mut().map(Output::pointer).collect();
        let begin = |b, n, r: &[f32]| {
            let mut running = vec![0f64; vw];
            column_terms(&mut running, &after[(b * sharing.states + n) * size..][..size], r);
            ((), running)
        };
        // SAFETY of every `rows` here: a state's heads, and those of its kv head, belong to one task.
        let chunk =
            |scratch: &mut Scratch, (): &mut (), place: &Place, s: &[f32], r: &mut [f32], running: &mut [f64]| {
                let Scratch { decay, a, x, dq, dk, dv, inclusive } = scratch;
                let &Place { b, g, n, first, ref rows } = place;
                let len = rows.len();
                let (k, v) = views.enter(place, decay);
                zeroed(inclusive, len * vw);
                for (buffer, width) in [(&mut *dq, kw), (&mut *dk, kw), (&mut *dv, vw), (&mut *a, len)] {
                    buffer.resize(len * width, 0.0);
                }
                let r_mat = Mat::new(r, kw, vw);
                MatMut::new(dk, len, kw).product(1.0, decay.to_end(v, x), r_mat.t(), 0.0);
                MatMut::new(dv, len, vw).product(1.0, k, r_mat, 0.0);
                decay.scale_end(dv, vw);
                decay.decay_columns(r);
                for h in sharing.queries_of(n) {
                    let (q, d_out) = (views.q.head(b, h, rows.clone()), d_out.head(b, h, rows.clone()));
                    MatMut::new(a, len, len).product_in(Triangle::Output, 1.0, q, k.t(), 0.0);
                    decay.mix_backward(a, d_out, dv);
                    let d_start = decay.from_start(Read::After, d_out, x);
                    MatMut::new(dq, len, kw).product(1.0, d_start, Mat::new(s, kw, vw).t(), 0.0);
                    MatMut::new(r, kw, vw).product(1.0, q.t(), d_start, 1.0);
                    decay.product(Read::After, d_out, v, a);
                    let da = Mat::new(a, len, len);
                    MatMut::new(dq, len, kw).product_in(Triangle::Left, 1.0, da, k, 1.0);
                    MatMut::new(dk, len, kw).product_in(Triangle::LeftTransposed, 1.0, da.t(), q, 1.0);
                    decay.gate_terms(inclusive, 1.0, o.head(b, h, rows.clone()), d_out);
                    put_rows(unsafe { self.0.rows(at[0], heads, (b, h), rows, kw) }, dq, true);
                }
                decay.gate_terms(inclusive, -1.0, v, Mat::new(dv, len, vw));
                let gate = unsafe { self.0.rows(at[GATE], sharing.states, (b, n), rows, vw) };
                gate_gradient(running, inclusive, &[], gate);
                put_rows(unsafe { self.0.rows(at[1], kv_heads, (b, g), rows, kw) }, dk, first);
                put_rows(unsafe { self.0.rows(at[2], kv_heads, (b, g), rows, vw) }, dv, first);
            };
        self.0.backward(&d_state, &states, at[STATE], begin, chunk);
        gradients_of(grads, wanted)
    }
}

pub(super) fn value_gated_step(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    gate: &Tensor,
    state: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let (batch, states, kw, vw) = state.dims4()?;
    let (q, k, v, gate) = (HeadsView::of(q)?, HeadsView::of(k)?, HeadsView::of(v)?, HeadsView::of(gate)?);
    let before = Slice::of(state)?;
    let sharing = Sharing { batch, heads: q.heads, states, kv_heads: k.heads };
    let mut out = Output::zeros(&[batch, 1, q.heads, vw]);
    let mut after = Output::unwritten(state.dims());
    let share = sharing.queries_of(0).len();
    let outputs = out.data().par_chunks_mut(share * vw).zip(after.data().par_chunks_mut(kw * vw)).enumerate();
    outputs.for_each(|(i, (out, s))| {
        let (b, n) = (i / states, i % states);
        let row = |x: &HeadsView, head: usize| x.head(b, head, 0..1).row(0).to_vec();
        let g = n / (states / k.heads);
        let (k, v, mut factors) = (row(&k, g), row(&v, g), row(&gate, n));
        s.copy_from_slice(&before[i * kw * vw..][..kw * vw]);
        let queries: Vec<_> = sharing.queries_of(n).map(|h| row(&q, h)).collect();
        simd!(|| {
            factors.iter_mut().for_each(|f| *f = exp(*f));
            for (s, k) in s.chunks_exact_mut(vw).zip(&k) {
                s.iter_mut().zip(&factors).zip(&v).for_each(|((s, f), v)| *s = *s * f + k * v);
            }
            for (q, out) in queries.iter().zip(out.chunks_exact_mut(vw)) {
                s.chunks_exact(vw).zip(q).for_each(|(s, q)| axpy(out, *q, s));
            }
        });
    });
    Ok((out.tensor()?, after.tensor()?))
}
