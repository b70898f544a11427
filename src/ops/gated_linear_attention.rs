//! Linear attention with decay: none, one gate per token (retention, SSD) or one per key channel (GLA), and a bonus.
//!
//! ```text
//! S_t = diag(e^(g_t)) S_{t-1} + k_t v_t^T      o_t = q_t^T S_t
//! with a bonus u (RWKV-6):                     o_t = q_t^T (S_{t-1} + diag(u) k_t v_t^T)
//! ```
//!
//! In chunks of [`CHUNK`] tokens o = (q e^G) S + A v with A of [`super::cpu::decay`]. There may be fewer states than
//! query heads: H query heads share the N states of the gates, and these the G heads of keys and values (G | N | H).

use super::cpu::decay::{Decay, Read, add_rows, gate_gradient, state_terms, write};
use super::cpu::simd::{axpy, dot, simd, triple};
use super::cpu::{Heads, Output, Sharing, Slice, matrix::Mat, matrix::MatMut, zeroed};
use super::documents::Documents;
use super::tape::{Var, record};
use crate::Result;
use candle_core::Tensor;
use rayon::prelude::*;
use std::sync::Arc;

/// Tokens of a chunk.
pub const CHUNK: usize = 64;

/// Tensors of one call, in this order everywhere: q, k, v, state, then gate and bonus where there are any.
struct Call {
    sharing: Sharing,
    tokens: usize,
    key_width: usize,
    value_width: usize,
    /// Place of the gate [B, T, N, 1 or K] and of the bonus [H, K] among the inputs.
    gate: Option<usize>,
    bonus: Option<usize>,
    documents: Arc<Documents>,
}

impl Call {
    fn read(&self) -> Read {
        if self.bonus.is_some() { Read::Before } else { Read::After }
    }

    fn state(&self) -> usize {
        self.key_width * self.value_width
    }
}

/// `q` [B, T, H, K], `k` [B, T, G, K], `v` [B, T, G, V], log gates `gate` [B, T, N, 1 or K] (<= 0), `bonus` [H, K], and
/// the state before, `before` [B, N, K, V] (None: zero; N = G without gates). Returns o [B, T, H, V] and the state after.
pub fn gated_linear_attention(
    q: &Var,
    k: &Var,
    v: &Var,
    gate: Option<&Var>,
    bonus: Option<&Var>,
    before: Option<&Var>,
    documents: &Arc<Documents>,
) -> Result<(Var, Var)> {
    let (batch, tokens, heads, key_width) = q.value().dims4()?;
    let (_, _, kv_heads, value_width) = v.value().dims4()?;
    let states = gate.map_or(Ok(kv_heads), |g| g.value().dim(2))?;
    let sharing = Sharing { batch, heads, states, kv_heads };
    let state = match before {
        Some(state) => state.clone(),
        None => Var::constant(Output::zeros(&[batch, states, key_width, value_width]).tensor()?),
    };
    let mut inputs = vec![q, k, v, &state];
    let gate_at = gate.map(|_| 4);
    let bonus_at = bonus.map(|_| 4 + usize::from(gate.is_some()));
    inputs.extend(gate);
    inputs.extend(bonus);
    let call =
        Call { sharing, tokens, key_width, value_width, gate: gate_at, bonus: bonus_at, documents: documents.clone() };
    let values: Vec<Tensor> = inputs.iter().map(|x| x.value().clone()).collect();
    check(&call, &values)?;
    let outputs = forward(&call, &values)?;
    let wanted: Vec<bool> = inputs.iter().map(|x| x.tracked()).collect();
    let mut vars = record(&inputs, outputs, move |g| backward(&call, &values, &wanted, g))?;
    let state = vars.pop().expect("two outputs");
    Ok((vars.pop().expect("two outputs"), state))
}

fn check(call: &Call, x: &[Tensor]) -> Result<()> {
    let Call { sharing, tokens, key_width, value_width, documents, .. } = call;
    let Sharing { batch, heads, states, kv_heads } = *sharing;
    let gate_fits = call.gate.is_none_or(|i| {
        let width = x[i].dims()[3];
        x[i].dims()[..3] == [batch, *tokens, states] && (width == 1 || width == *key_width)
    });
    let fits = x[1].dims() == [batch, *tokens, kv_heads, *key_width]
        && x[2].dims() == [batch, *tokens, kv_heads, *value_width]
        && x[3].dims() == [batch, states, *key_width, *value_width]
        && call.bonus.is_none_or(|i| x[i].dims() == [heads, *key_width])
        && gate_fits
        && sharing.fits()
        && (documents.batch(), documents.tokens()) == (batch, *tokens);
    match fits {
        true => Ok(()),
        false => {
            let shapes: Vec<_> = x.iter().map(Tensor::dims).collect();
            Err(candle_core::Error::Msg(format!("gated linear attention of {shapes:?}, {documents:?}")).into())
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
    exclusive: Vec<f32>,
}

/// Views of the inputs.
struct Views<'a> {
    q: Heads<'a>,
    k: Heads<'a>,
    v: Heads<'a>,
    state: Slice<'a>,
    gate: Option<Heads<'a>>,
    bonus: Option<Slice<'a>>,
}

impl<'a> Views<'a> {
    fn of(call: &Call, x: &'a [Tensor]) -> Result<Self> {
        Ok(Views {
            q: Heads::of(&x[0])?,
            k: Heads::of(&x[1])?,
            v: Heads::of(&x[2])?,
            state: Slice::of(&x[3])?,
            gate: call.gate.map(|i| Heads::of(&x[i])).transpose()?,
            bonus: call.bonus.map(|i| Slice::of(&x[i])).transpose()?,
        })
    }
}

fn forward(call: &Call, x: &[Tensor]) -> Result<Vec<Tensor>> {
    let Call { sharing, tokens, key_width, value_width, documents, .. } = call;
    let views = Views::of(call, x)?;
    let (size, heads) = (call.state(), sharing.heads);
    let mut out = Output::padded(&[sharing.batch, *tokens, heads, *value_width], documents);
    let mut state = Output::unwritten(x[3].dims());
    let (out_at, state_at) = (out.pointer(), state.pointer());
    sharing.tasks().for_each_init(Scratch::default, |scratch, (b, g)| {
        for n in sharing.states_of(g) {
            let at = (b * sharing.states + n) * size;
            // SAFETY: state n of batch row b belongs to this task.
            let s = unsafe { state_at.slice(at, size) };
            s.copy_from_slice(&views.state[at..at + size]);
            for chunk in documents.chunks(b, CHUNK) {
                let rows = chunk.tokens.clone();
                if chunk.fresh {
                    s.fill(0.0);
                }
                scratch.decay.prepare(views.gate.as_ref().map(|x| x.head(b, n, rows.clone())), rows.len());
                let (k, v) = (views.k.head(b, g, rows.clone()), views.v.head(b, g, rows.clone()));
                for h in sharing.queries_of(n) {
                    let q = views.q.head(b, h, rows.clone());
                    scratch.decay.product(call.read(), q, k, &mut scratch.a);
                    if let Some(bonus) = &views.bonus {
                        add_bonus(&mut scratch.a, q, k, &bonus[h * key_width..][..*key_width]);
                    }
                    // SAFETY: rows of head h of batch row b belong to this task.
                    let mut o = unsafe {
                        let start = ((b * tokens + rows.start) * heads + h) * value_width;
                        out_at.rows(start, rows.len(), *value_width, heads * value_width)
                    };
                    o.product(1.0, Mat::new(&scratch.a, rows.len(), rows.len()), v, 0.0);
                    let q = scratch.decay.from_start(call.read(), q, &mut scratch.x);
                    o.product(1.0, q, Mat::new(s, *key_width, *value_width), 1.0);
                }
                scratch.decay.decay_state(s, *value_width);
                write(s, scratch.decay.to_end(k, &mut scratch.x), v);
            }
        }
    });
    Ok(vec![out.tensor()?, state.tensor()?])
}

/// The diagonal (q_i u).k_i, onto A [C, C].
fn add_bonus(a: &mut [f32], q: Mat, k: Mat, u: &[f32]) {
    simd!(|| {
        for i in 0..q.rows {
            a[i * q.rows + i] += triple(q.row(i), k.row(i), u);
        }
    });
}

/// With R the gradient of the state after a chunk: dq = (do S^T) e^G + dA k, dk = (v R^T) e^(G_C - G) + dA^T q,
/// dv = A^T do + (k e^(G_C - G)) R, dG = q dq - k dk; then R = e^(G_C) R + (q e^G)^T do. The state before every chunk
/// is computed once more, forward, and kept for the one head at hand.
fn backward(call: &Call, x: &[Tensor], wanted: &[bool], g: Vec<Option<Tensor>>) -> Result<Vec<Option<Tensor>>> {
    let Call { sharing, tokens, key_width, value_width, documents, .. } = call;
    let (kw, vw, size, heads, read) = (*key_width, *value_width, call.state(), sharing.heads, call.read());
    let views = Views::of(call, x)?;
    let mut g = g.into_iter();
    let mut next = |dims: &[usize]| g.next().flatten().map_or_else(|| Output::zeros(dims).tensor(), Ok);
    let d_out = next(&[sharing.batch, *tokens, heads, vw])?;
    let d_state = next(x[3].dims())?;
    let (d_out, d_state) = (Heads::of(&d_out)?, Slice::of(&d_state)?);
    let mut grads: Vec<Output> = x.iter().map(|x| Output::zeros(x.dims())).collect();
    // A bonus is shared by all rows of a batch: each task has its own part, summed at the end.
    let mut bonus_parts = Output::zeros(&[sharing.batch, call.bonus.map_or(0, |_| heads * kw)]);
    let at: Vec<_> = grads.iter_mut().map(Output::pointer).collect();
    let bonus_at = bonus_parts.pointer();
    let gate_width = call.gate.map_or(0, |i| x[i].dims()[3]);
    sharing.tasks().for_each_init(Scratch::default, |scratch, (b, g)| {
        // SAFETY of every `rows` and `slice` below: heads and states of (b, g) belong to this task.
        let head_rows = |input: usize, heads: usize, head: usize, rows: &std::ops::Range<usize>, width: usize| unsafe {
            at[input].rows(((b * tokens + rows.start) * heads + head) * width, rows.len(), width, heads * width)
        };
        let chunks: Vec<_> = documents.chunks(b, CHUNK).collect();
        for n in sharing.states_of(g) {
            let state_at = (b * sharing.states + n) * size;
            let gates = |rows: &std::ops::Range<usize>| views.gate.as_ref().map(|x| x.head(b, n, rows.clone()));
            let mut s = views.state[state_at..][..size].to_vec();
            scratch.states.resize(chunks.len() * size, 0.0);
            for (chunk, kept) in chunks.iter().zip(scratch.states.chunks_exact_mut(size)) {
                if chunk.fresh {
                    s.fill(0.0);
                }
                kept.copy_from_slice(&s);
                let rows = chunk.tokens.clone();
                scratch.decay.prepare(gates(&rows), rows.len());
                scratch.decay.decay_state(&mut s, vw);
                let k = scratch.decay.to_end(views.k.head(b, g, rows.clone()), &mut scratch.x);
                write(&mut s, k, views.v.head(b, g, rows));
            }
            let mut r = d_state[state_at..][..size].to_vec();
            let mut running = vec![0f64; gate_width];
            if gate_width > 0 {
                state_terms(&mut running, &s, &r, vw);
            }
            for (chunk, s) in chunks.iter().zip(scratch.states.chunks_exact(size)).rev() {
                let rows = &chunk.tokens;
                let len = rows.len();
                scratch.decay.prepare(gates(rows), len);
                let (k, v) = (views.k.head(b, g, rows.clone()), views.v.head(b, g, rows.clone()));
                zeroed(&mut scratch.inclusive, len * gate_width);
                zeroed(&mut scratch.exclusive, if read == Read::Before { len * gate_width } else { 0 });
                scratch.dk.resize(len * kw, 0.0);
                scratch.dv.resize(len * vw, 0.0);
                let r_mat = Mat::new(&r, kw, vw);
                MatMut::new(&mut scratch.dk, len, kw).product(1.0, v, r_mat.t(), 0.0);
                scratch.decay.scale_end(&mut scratch.dk, kw);
                let k_end = scratch.decay.to_end(k, &mut scratch.x);
                MatMut::new(&mut scratch.dv, len, vw).product(1.0, k_end, r_mat, 0.0);
                scratch.decay.decay_state(&mut r, vw);
                for h in sharing.queries_of(n) {
                    let (q, d_out) = (views.q.head(b, h, rows.clone()), d_out.head(b, h, rows.clone()));
                    scratch.dq.resize(len * kw, 0.0);
                    MatMut::new(&mut scratch.dq, len, kw).product(1.0, d_out, Mat::new(s, kw, vw).t(), 0.0);
                    scratch.decay.scale_start(read, &mut scratch.dq, kw);
                    let q_start = scratch.decay.from_start(read, q, &mut scratch.x);
                    MatMut::new(&mut r, kw, vw).product(1.0, q_start.t(), d_out, 1.0);
                    scratch.decay.product(read, q, k, &mut scratch.a);
                    let a = Mat::new(&scratch.a, len, len);
                    MatMut::new(&mut scratch.dv, len, vw).product(1.0, a.t(), d_out, 1.0);
                    MatMut::new(&mut scratch.a, len, len).product(1.0, d_out, v.t(), 0.0);
                    let Scratch { decay, a, dq, dk, .. } = scratch;
                    decay.product_backward(read, a, q, k, dq, dk);
                    let terms = if read == Read::Before { &mut scratch.exclusive } else { &mut scratch.inclusive };
                    scratch.decay.gate_terms(terms, 1.0, q, Mat::new(&scratch.dq, len, kw));
                    if let (Some(bonus), Some(i)) = (&views.bonus, call.bonus) {
                        let u = &bonus[h * kw..][..kw];
                        let mut dk = head_rows(1, sharing.kv_heads, g, rows, kw);
                        let du = unsafe { bonus_at.slice((b * heads + h) * kw, if wanted[i] { kw } else { 0 }) };
                        bonus_backward((q, k, v, u), d_out, &mut scratch.dq, &mut dk, &mut scratch.dv, du);
                    }
                    add_rows(head_rows(0, heads, h, rows, kw), &scratch.dq);
                }
                if let Some(i) = call.gate {
                    scratch.decay.gate_terms(&mut scratch.inclusive, -1.0, k, Mat::new(&scratch.dk, len, kw));
                    let out = head_rows(i, sharing.states, n, rows, gate_width);
                    gate_gradient(&mut running, &scratch.inclusive, &scratch.exclusive, out);
                }
                add_rows(head_rows(1, sharing.kv_heads, g, rows, kw), &scratch.dk);
                add_rows(head_rows(2, sharing.kv_heads, g, rows, vw), &scratch.dv);
                if chunk.fresh {
                    r.fill(0.0);
                    running.fill(0.0);
                }
            }
            unsafe { at[3].slice(state_at, size) }.copy_from_slice(&r);
        }
    });
    if let Some(i) = call.bonus {
        for part in bonus_parts.data().chunks_exact(heads * kw) {
            axpy(grads[i].data(), 1.0, part);
        }
    }
    let keep = |(want, d): (&bool, Output)| if *want { d.tensor().map(Some) } else { Ok(None) };
    wanted.iter().zip(grads).map(keep).collect()
}

/// The gradients of o_i += ((q_i u).k_i) v_i.
fn bonus_backward(
    (q, k, v, u): (Mat, Mat, Mat, &[f32]),
    d_out: Mat,
    dq: &mut [f32],
    dk: &mut MatMut,
    dv: &mut [f32],
    du: &mut [f32],
) {
    simd!(|| {
        for i in 0..q.rows {
            let (q, k, v, d_out) = (q.row(i), k.row(i), v.row(i), d_out.row(i));
            let d = dot(v, d_out);
            axpy(&mut dv[i * v.len()..][..v.len()], triple(q, k, u), d_out);
            let dk = dk.row(i);
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
