//! Linear attention whose state decays along the value axis: the first pass of gated slot attention (GSA,
//! arXiv 2409.07146), where values are slots.
//!
//! ```text
//! S_t = S_{t-1} diag(e^(g_t)) + k_t v_t^T      o_t = q_t^T S_t      g [V]
//! ```
//!
//! In chunks of [`CHUNK`] tokens, with the decays of [`super::cpu::decay::values`] over A = tril(q k^T),
//!
//! ```text
//! o_i = e^(G_i) * (q_i^T S) + sum_{j <= i} A_ij e^(G_i - G_j) * v_j      S = S e^(G_C) + k^T (v e^(G_C - G))
//! ```
//!
//! Heads share states as in [`super::gated_linear_attention`]: G | N | H.

use super::cpu::decay::values::column_terms;
use super::cpu::decay::{Decay, Read, add_rows, gate_gradient, write};
use super::cpu::simd::{axpy, exp, simd};
use super::cpu::{Heads, Output, Sharing, Slice, matrix::Mat, matrix::MatMut, zeroed};
use super::documents::Documents;
use super::tape::{Var, record};
use crate::Result;
use candle_core::Tensor;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Tokens of a chunk.
pub const CHUNK: usize = 64;

/// Sizes of one call. Its inputs are q, k, v, state, gate.
struct Call {
    sharing: Sharing,
    tokens: usize,
    key_width: usize,
    value_width: usize,
    documents: Arc<Documents>,
}

/// `q` [B, T, H, K], `k` [B, T, G, K], `v` [B, T, G, V], log gates `gate` [B, T, N, V] (<= 0), and the state before,
/// `before` [B, N, K, V] (None: zero). Returns o [B, T, H, V] and the state after.
pub fn value_gated_linear_attention(
    q: &Var,
    k: &Var,
    v: &Var,
    gate: &Var,
    before: Option<&Var>,
    documents: &Arc<Documents>,
) -> Result<(Var, Var)> {
    let (batch, tokens, heads, key_width) = q.value().dims4()?;
    let (_, _, states, value_width) = gate.value().dims4()?;
    let sharing = Sharing { batch, heads, states, kv_heads: k.value().dims4()?.2 };
    let state = match before {
        Some(state) => state.clone(),
        None => Var::constant(Output::zeros(&[batch, states, key_width, value_width]).tensor()?),
    };
    let inputs = [q, k, v, &state, gate];
    let call = Call { sharing, tokens, key_width, value_width, documents: documents.clone() };
    let values = inputs.map(|x| x.value().clone());
    check(&call, &values)?;
    let outputs = forward(&call, &values)?;
    let wanted = inputs.map(Var::tracked);
    let o = outputs[0].clone();
    let mut vars = record(&inputs, outputs, move |g| backward(&call, &values, &o, &wanted, g))?;
    let state = vars.pop().expect("two outputs");
    Ok((vars.pop().expect("two outputs"), state))
}

fn check(call: &Call, x: &[Tensor; 5]) -> Result<()> {
    let &Call { sharing, tokens, key_width, value_width, .. } = call;
    let Sharing { batch, states, kv_heads, .. } = sharing;
    let fits = x[1].dims() == [batch, tokens, kv_heads, key_width]
        && x[2].dims() == [batch, tokens, kv_heads, value_width]
        && x[3].dims() == [batch, states, key_width, value_width]
        && x[4].dims() == [batch, tokens, states, value_width]
        && sharing.fits()
        && (call.documents.batch(), call.documents.tokens()) == (batch, tokens);
    match fits {
        true => Ok(()),
        false => {
            let shapes: Vec<_> = x.iter().map(Tensor::dims).collect();
            let what = format!("linear attention, values gated, of {shapes:?}, {:?}", call.documents);
            Err(candle_core::Error::Msg(what).into())
        }
    }
}

/// Buffers that a thread keeps between heads.
#[derive(Default)]
struct Scratch {
    decay: Decay,
    a: Vec<f32>,
    x: Vec<f32>,
    /// The state before every chunk of the head at hand.
    states: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
    inclusive: Vec<f32>,
}

/// Views of the inputs.
struct Views<'a> {
    q: Heads<'a>,
    k: Heads<'a>,
    v: Heads<'a>,
    state: Slice<'a>,
    gate: Heads<'a>,
}

impl<'a> Views<'a> {
    fn of([q, k, v, state, gate]: &'a [Tensor; 5]) -> Result<Self> {
        Ok(Views {
            q: Heads::of(q)?,
            k: Heads::of(k)?,
            v: Heads::of(v)?,
            state: Slice::of(state)?,
            gate: Heads::of(gate)?,
        })
    }

    /// Takes in a chunk's gates; returns its keys and values.
    fn enter(&self, (b, g, n): (usize, usize, usize), rows: &Range<usize>, decay: &mut Decay) -> (Mat<'_>, Mat<'_>) {
        decay.prepare(Some(self.gate.head(b, n, rows.clone())), rows.len());
        (self.k.head(b, g, rows.clone()), self.v.head(b, g, rows.clone()))
    }
}

fn forward(call: &Call, x: &[Tensor; 5]) -> Result<Vec<Tensor>> {
    let &Call { sharing, tokens, key_width, value_width, ref documents } = call;
    let views = Views::of(x)?;
    let (size, heads) = (key_width * value_width, sharing.heads);
    let mut out = Output::padded(&[sharing.batch, tokens, heads, value_width], documents);
    let mut state = Output::unwritten(x[3].dims());
    let (out_at, state_at) = (out.pointer(), state.pointer());
    sharing.tasks().for_each_init(Scratch::default, |scratch, (b, g)| {
        let Scratch { decay, a, x, .. } = scratch;
        for n in sharing.states_of(g) {
            let at = (b * sharing.states + n) * size;
            // SAFETY: state n of batch row b belongs to this task.
            let s = unsafe { state_at.slice(at, size) };
            s.copy_from_slice(&views.state[at..at + size]);
            for chunk in documents.chunks(b, CHUNK) {
                if chunk.fresh {
                    s.fill(0.0);
                }
                let rows = &chunk.tokens;
                let (k, v) = views.enter((b, g, n), rows, decay);
                a.resize(rows.len() * rows.len(), 0.0);
                for h in sharing.queries_of(n) {
                    let q = views.q.head(b, h, rows.clone());
                    // SAFETY: rows of head h of batch row b belong to this task.
                    let mut o = unsafe {
                        let start = ((b * tokens + rows.start) * heads + h) * value_width;
                        out_at.rows(start, rows.len(), value_width, heads * value_width)
                    };
                    o.product(1.0, q, Mat::new(s, key_width, value_width), 0.0);
                    decay.scale_rows(&mut o);
                    MatMut::new(a, rows.len(), rows.len()).product(1.0, q, k.t(), 0.0);
                    decay.mix(a, v, o);
                }
                decay.decay_columns(s);
                write(s, k, decay.to_end(v, x));
            }
        }
    });
    Ok(vec![out.tensor()?, state.tensor()?])
}

/// With R the gradient of the state after a chunk and A's gradient the decayed product of do with v: dq = (do e^G) S^T +
/// dA k, dk = (v e^(G_C - G)) R^T + dA^T q, dv = (k R) e^(G_C - G) + what A mixes back, dG = o do - v dv; then
/// R = R e^(G_C) + q^T (do e^G). The state before every chunk is computed once more, forward.
fn backward(
    call: &Call,
    x: &[Tensor; 5],
    o: &Tensor,
    wanted: &[bool],
    g: Vec<Option<Tensor>>,
) -> Result<Vec<Option<Tensor>>> {
    let &Call { sharing, tokens, key_width: kw, value_width: vw, ref documents } = call;
    let (size, heads) = (kw * vw, sharing.heads);
    let views = Views::of(x)?;
    let mut g = g.into_iter();
    let mut next = |dims: &[usize]| g.next().flatten().map_or_else(|| Output::zeros(dims).tensor(), Ok);
    let d_out = next(o.dims())?;
    let d_state = next(x[3].dims())?;
    let (o, d_out, d_state) = (Heads::of(o)?, Heads::of(&d_out)?, Slice::of(&d_state)?);
    let mut grads = x.each_ref().map(|x| Output::zeros(x.dims()));
    let at = grads.each_mut().map(Output::pointer);
    sharing.tasks().for_each_init(Scratch::default, |scratch, (b, g)| {
        // SAFETY of every `rows` and `slice` below: heads and states of (b, g) belong to this task.
        let head_rows = |input: usize, heads: usize, head: usize, rows: &Range<usize>, width: usize| unsafe {
            at[input].rows(((b * tokens + rows.start) * heads + head) * width, rows.len(), width, heads * width)
        };
        let chunks: Vec<_> = documents.chunks(b, CHUNK).collect();
        let Scratch { decay, a, x, states, dq, dk, dv, inclusive } = scratch;
        for n in sharing.states_of(g) {
            let state_at = (b * sharing.states + n) * size;
            let mut s = views.state[state_at..][..size].to_vec();
            states.clear();
            for chunk in &chunks {
                if chunk.fresh {
                    s.fill(0.0);
                }
                states.extend_from_slice(&s);
                let (k, v) = views.enter((b, g, n), &chunk.tokens, decay);
                decay.decay_columns(&mut s);
                write(&mut s, k, decay.to_end(v, x));
            }
            let mut r = d_state[state_at..][..size].to_vec();
            let mut running = vec![0f64; vw];
            column_terms(&mut running, &s, &r);
            for (chunk, s) in chunks.iter().zip(states.chunks_exact(size)).rev() {
                let rows = &chunk.tokens;
                let len = rows.len();
                let (k, v) = views.enter((b, g, n), rows, decay);
                zeroed(inclusive, len * vw);
                for (buffer, width) in [(&mut *dq, kw), (&mut *dk, kw), (&mut *dv, vw), (&mut *a, len)] {
                    buffer.resize(len * width, 0.0);
                }
                let r_mat = Mat::new(&r, kw, vw);
                MatMut::new(dk, len, kw).product(1.0, decay.to_end(v, x), r_mat.t(), 0.0);
                MatMut::new(dv, len, vw).product(1.0, k, r_mat, 0.0);
                decay.scale_end(dv, vw);
                decay.decay_columns(&mut r);
                for h in sharing.queries_of(n) {
                    let (q, d_out) = (views.q.head(b, h, rows.clone()), d_out.head(b, h, rows.clone()));
                    MatMut::new(a, len, len).product(1.0, q, k.t(), 0.0);
                    decay.mix_backward(a, d_out, dv);
                    let d_start = decay.from_start(Read::After, d_out, x);
                    MatMut::new(dq, len, kw).product(1.0, d_start, Mat::new(s, kw, vw).t(), 0.0);
                    MatMut::new(&mut r, kw, vw).product(1.0, q.t(), d_start, 1.0);
                    decay.product(Read::After, d_out, v, a);
                    let da = Mat::new(a, len, len);
                    MatMut::new(dq, len, kw).product(1.0, da, k, 1.0);
                    MatMut::new(dk, len, kw).product(1.0, da.t(), q, 1.0);
                    decay.gate_terms(inclusive, 1.0, o.head(b, h, rows.clone()), d_out);
                    add_rows(head_rows(0, heads, h, rows, kw), dq);
                }
                decay.gate_terms(inclusive, -1.0, v, Mat::new(dv, len, vw));
                gate_gradient(&mut running, inclusive, &[], head_rows(4, sharing.states, n, rows, vw));
                add_rows(head_rows(1, sharing.kv_heads, g, rows, kw), dk);
                add_rows(head_rows(2, sharing.kv_heads, g, rows, vw), dv);
                if chunk.fresh {
                    r.fill(0.0);
                    running.fill(0.0);
                }
            }
            unsafe { at[3].slice(state_at, size) }.copy_from_slice(&r);
        }
    });
    let keep = |(want, d): (&bool, Output)| if *want { d.tensor().map(Some) } else { Ok(None) };
    wanted.iter().zip(grads).map(keep).collect()
}

/// One token, T = 1, without gradients: o [B, 1, H, V] and the state after, from the state before, [B, N, K, V].
pub fn value_gated_step(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    gate: &Tensor,
    state: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let (batch, states, kw, vw) = state.dims4()?;
    let (q, k, v, gate) = (Heads::of(q)?, Heads::of(k)?, Heads::of(v)?, Heads::of(gate)?);
    let before = Slice::of(state)?;
    let sharing = Sharing { batch, heads: q.heads, states, kv_heads: k.heads };
    let mut out = Output::zeros(&[batch, 1, q.heads, vw]);
    let mut after = Output::unwritten(state.dims());
    let share = sharing.queries_of(0).len();
    let outputs = out.data().par_chunks_mut(share * vw).zip(after.data().par_chunks_mut(kw * vw)).enumerate();
    outputs.for_each(|(i, (out, s))| {
        let (b, n) = (i / states, i % states);
        let row = |x: &Heads, head: usize| x.head(b, head, 0..1).row(0).to_vec();
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
