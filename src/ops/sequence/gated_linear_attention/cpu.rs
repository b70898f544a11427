//! The kernels of the CPU.

use super::{GatedLinearAttention, STATE};
use crate::Result;
use crate::ops::cpu::decay::{Decay, Read, gate_gradient, put_rows, state_terms, write};
use crate::ops::cpu::matrix::{Mat, MatMut, Triangle};
use crate::ops::cpu::simd::{axpy, dot, simd, triple};
use crate::ops::cpu::{HeadsView, Output, Slice, gradients_of, zeroed};
use crate::ops::recurrence::{PerState, Place, Sizes, take_last, take_next};
use candle_core::Tensor;

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
    exclusive: Vec<f32>,
    /// Of the bonus: it passes no gate.
    dk_bonus: Vec<f32>,
}

/// Views of the inputs.
struct Views<'a> {
    q: HeadsView<'a>,
    k: HeadsView<'a>,
    v: HeadsView<'a>,
    state: Slice<'a>,
    gate: Option<HeadsView<'a>>,
    bonus: Option<Slice<'a>>,
}

impl Views<'_> {
    /// Takes in a chunk's gates; returns its keys and values.
    fn enter(&self, at: &Place, decay: &mut Decay) -> (Mat<'_>, Mat<'_>) {
        decay.prepare(self.gate.as_ref().map(|x| x.head(at.b, at.n, at.rows.clone())), at.rows.len());
        (self.k.head(at.b, at.g, at.rows.clone()), self.v.head(at.b, at.g, at.rows.clone()))
    }
}

impl GatedLinearAttention {
    fn views<'a>(&self, x: &'a [Tensor]) -> Result<Views<'a>> {
        Ok(Views {
            q: HeadsView::of(&x[0])?,
            k: HeadsView::of(&x[1])?,
            v: HeadsView::of(&x[2])?,
            state: Slice::of(&x[STATE])?,
            gate: self.gate.map(|i| HeadsView::of(&x[i])).transpose()?,
            bonus: self.bonus.map(|i| Slice::of(&x[i])).transpose()?,
        })
    }
}

/// What the forward pass keeps.
pub(super) struct Kept {
    /// The state before every chunk, and after the last.
    states: PerState,
    after: Tensor,
    /// A of every chunk and query head, the bonus on its diagonal.
    products: PerState,
}

impl GatedLinearAttention {
    pub(super) fn forward(&self, x: &[Tensor], keep: bool) -> Result<(Vec<Tensor>, Kept)> {
        let Sizes { sharing, key_width, value_width, .. } = self.sizes;
        let (views, heads, read) = (self.views(x)?, sharing.heads, self.read());
        let products = PerState::of_pairs(&self.sizes, heads, keep);
        let mut out = self.sizes.output();
        let out_at = out.pointer();
        // SAFETY of every `of` and `rows` here: the heads that read a state belong to its task.
        let begin = |b, n| sharing.queries_of(n).map(|h| unsafe { products.of(b, h) }).collect::<Vec<_>>();
        let chunk =
            |Scratch { decay, a, x, .. }: &mut Scratch, kept: &mut Vec<&mut [f32]>, at: &Place, s: &mut [f32]| {
                let (k, v) = views.enter(at, decay);
                for (h, products) in sharing.queries_of(at.n).zip(kept) {
                    let q = views.q.head(at.b, h, at.rows.clone());
                    let mut o = unsafe { self.sizes.rows(out_at, heads, (at.b, h), &at.rows, value_width) };
                    let q_start = decay.from_start(read, q, x);
                    o.product(1.0, q_start, Mat::new(s, key_width, value_width), 0.0);
                    let pairs = q.rows * q.rows;
                    a.resize(pairs, 0.0);
                    let a = if keep { take_next(products, pairs) } else { &mut a[..] };
                    decay.product_into(read, q, k, a);
                    if let Some(bonus) = &views.bonus {
                        add_bonus(a, q, k, &bonus[h * key_width..][..key_width]);
                    }
                    o.product_in(Triangle::Left, 1.0, Mat::new(a, q.rows, q.rows), v, 1.0);
                }
                decay.decay_state(s, value_width);
                write(s, decay.to_end(k, x), v);
            };
        let (after, states) = self.sizes.forward(&views.state, keep, begin, chunk)?;
        Ok((vec![out.tensor()?, after.clone()], Kept { states, after, products }))
    }

    /// With R the gradient of the state after a chunk: dq = (do S^T) e^G + dA k, dk = (v R^T) e^(G_C - G) + dA^T q,
    /// dv = A^T do + (k e^(G_C - G)) R, dG = q dq - k dk; then R = e^(G_C) R + (q e^G)^T do.
    pub(super) fn backward(
        &self,
        x: &[Tensor],
        kept: Kept,
        wanted: &[bool],
        up: &[Tensor],
    ) -> Result<Vec<Option<Tensor>>> {
        let Sizes { sharing, key_width: kw, value_width: vw, gate_width, .. } = self.sizes;
        let (size, heads, kv_heads, read) = (self.sizes.state(), sharing.heads, sharing.kv_heads, self.read());
        let views = self.views(x)?;
        let (d_out, d_state, after) = (HeadsView::of(&up[0])?, Slice::of(&up[1])?, Slice::of(&kept.after)?);
        let mut grads = self.sizes.gradients(&x[..STATE], &x[STATE], self.gate.map_or(&[], |i| &x[i..=i]));
        // A bonus is shared by all rows of a batch: each has its own part, summed at the end.
        let mut bonus_parts = Output::zeros(&[sharing.batch, self.bonus.map_or(0, |_| heads * kw)]);
        let at: Vec<_> = grads.iter_mut().map(Output::pointer).collect();
        let bonus_at = bonus_parts.pointer();
        // SAFETY of every `of`, `rows` and `slice` here: a state's heads, and those of its kv head, belong to one task.
        let begin = |b, n, r: &[f32]| {
            let products = sharing.queries_of(n).map(|h| unsafe { kept.products.of(b, h) }).collect::<Vec<_>>();
            let mut running = vec![0f64; gate_width];
            if gate_width > 0 {
                state_terms(&mut running, &after[(b * sharing.states + n) * size..][..size], r, vw);
            }
            (products, running)
        };
        let chunk = |scratch: &mut Scratch,
                     products: &mut Vec<&mut [f32]>,
                     place: &Place,
                     s: &[f32],
                     r: &mut [f32],
                     running: &mut [f64]| {
            let Scratch { decay, a: _, x, dq, dk, dv, inclusive, exclusive, dk_bonus } = scratch;
            let &Place { b, g, n, first, ref rows } = place;
            let len = rows.len();
            let (k, v) = views.enter(place, decay);
            zeroed(inclusive, len * gate_width);
            zeroed(exclusive, if read == Read::Before { len * gate_width } else { 0 });
            zeroed(dk_bonus, if self.bonus.is_some() { len * kw } else { 0 });
            dq.resize(len * kw, 0.0);
            dk.resize(len * kw, 0.0);
            dv.resize(len * vw, 0.0);
            let r_mat = Mat::new(r, kw, vw);
            MatMut::new(dk, len, kw).product(1.0, v, r_mat.t(), 0.0);
            decay.scale_end(dk, kw);
            MatMut::new(dv, len, vw).product(1.0, decay.to_end(k, x), r_mat, 0.0);
            decay.decay_state(r, vw);
            for (h, products) in sharing.queries_of(n).zip(products) {
                let (q, d_out) = (views.q.head(b, h, rows.clone()), d_out.head(b, h, rows.clone()));
                MatMut::new(dq, len, kw).product(1.0, d_out, Mat::new(s, kw, vw).t(), 0.0);
                decay.scale_start(read, dq, kw);
                let q_start = decay.from_start(read, q, x);
                MatMut::new(r, kw, vw).product(1.0, q_start.t(), d_out, 1.0);
                let a = take_last(products, len * len);
                let read_by = Mat::new(a, len, len).t();
                MatMut::new(dv, len, vw).product_in(Triangle::LeftTransposed, 1.0, read_by, d_out, 1.0);
                MatMut::new(a, len, len).product_in(Triangle::Output, 1.0, d_out, v.t(), 0.0);
                decay.product_backward(read, a, q, k, dq, dk);
                let terms = if read == Read::Before { &mut *exclusive } else { &mut *inclusive };
                decay.gate_terms(terms, 1.0, q, Mat::new(dq, len, kw));
                if let Some(bonus) = &views.bonus {
                    let u = &bonus[h * kw..][..kw];
                    let du = unsafe { bonus_at.slice((b * heads + h) * kw, kw) };
                    bonus_backward((q, k, v, u), d_out, dq, dk_bonus, du);
                }
                put_rows(unsafe { self.sizes.rows(at[0], heads, (b, h), rows, kw) }, dq, true);
            }
            if let Some(i) = self.gate {
                decay.gate_terms(inclusive, -1.0, k, Mat::new(dk, len, kw));
                let out = unsafe { self.sizes.rows(at[i], sharing.states, (b, n), rows, gate_width) };
                gate_gradient(running, inclusive, exclusive, out);
            }
            if self.bonus.is_some() {
                simd!(|| axpy(dk, 1.0, dk_bonus));
            }
            put_rows(unsafe { self.sizes.rows(at[1], kv_heads, (b, g), rows, kw) }, dk, first);
            put_rows(unsafe { self.sizes.rows(at[2], kv_heads, (b, g), rows, vw) }, dv, first);
        };
        self.sizes.backward(&d_state, &kept.states, at[STATE], begin, chunk);
        if self.bonus.is_some() {
            let mut bonus = Output::zeros(&[heads, kw]);
            bonus_parts.data().chunks_exact(heads * kw).for_each(|part| axpy(bonus.data(), 1.0, part));
            grads.push(bonus);
        }
        gradients_of(grads, wanted)
    }
}

/// The diagonal (q_i u).k_i, onto A [C, C].
fn add_bonus(a: &mut [f32], q: Mat, k: Mat, u: &[f32]) {
    simd!(|| {
        for i in 0..q.rows {
            a[i * q.rows + i] += triple(q.row(i), k.row(i), u);
        }
    });
}

/// The gradients of q, k and u through o_i += ((q_i u).k_i) v_i.
fn bonus_backward((q, k, v, u): (Mat, Mat, Mat, &[f32]), d_out: Mat, dq: &mut [f32], dk: &mut [f32], du: &mut [f32]) {
    simd!(|| {
        for i in 0..q.rows {
            let (q, k, v, d_out) = (q.row(i), k.row(i), v.row(i), d_out.row(i));
            let d = dot(v, d_out);
            let dk = &mut dk[i * q.len()..][..q.len()];
            for (c, dq) in dq[i * q.len()..][..q.len()].iter_mut().enumerate() {
                *dq += d * u[c] * k[c];
                dk[c] += d * u[c] * q[c];
            }
            for (c, du) in du.iter_mut().enumerate() {
                *du += d * q[c] * k[c];
            }
        }
    });
}
