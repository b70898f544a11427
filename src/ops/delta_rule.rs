//! The delta rule: without a gate (DeltaNet), with one per token (Gated DeltaNet) or per key channel (KDA).
//!
//! ```text
//! S~ = diag(e^(g_t)) S_{t-1}      S_t = S~ + beta_t k_t (v_t - S~^T k_t)^T      o_t = q_t^T S_t
//! ```
//!
//! What a token corrects, u_t = v_t - S~^T k_t, depends on the corrections before it. In a chunk, with M the products
//! of keys with earlier keys ([`Read::Decayed`]) and y = beta u,
//!
//! ```text
//! (I + M diag(beta)) u = v - (k e^G) S      o = (q e^G) S + A y      S = e^(G_C) S + (k e^(G_C - G))^T y
//! ```
//!
//! (the WY form of arXiv 2406.06484 and 2412.06464, applied to one right-hand side instead of two, since the chunks of
//! a head follow each other here). Keys must have unit length, or beta |k|^2 <= 2, for the state to stay bounded.

use super::cpu::decay::{Decay, Read, add_rows, gate_gradient, state_terms, write};
use super::cpu::simd::{dot, simd};
use super::cpu::triangular::{solve, solve_transposed};
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

/// Sizes of one call. Its inputs are q, k, v, beta, state, and the gate if there is one.
struct Call {
    sharing: Sharing,
    tokens: usize,
    key_width: usize,
    value_width: usize,
    gate_width: usize,
    documents: Arc<Documents>,
}

const GATE: usize = 5;

/// `q` [B, T, H, K], `k` [B, T, G, K], `v` [B, T, G, V], `beta` [B, T, N, 1], log gates `gate` [B, T, N, 1 or K] (<= 0),
/// and the state before, `before` [B, N, K, V] (None: zero). Returns o [B, T, H, V] and the state after.
pub fn delta_rule(
    q: &Var,
    k: &Var,
    v: &Var,
    beta: &Var,
    gate: Option<&Var>,
    before: Option<&Var>,
    documents: &Arc<Documents>,
) -> Result<(Var, Var)> {
    let (batch, tokens, heads, key_width) = q.value().dims4()?;
    let (_, _, kv_heads, value_width) = v.value().dims4()?;
    let states = beta.value().dim(2)?;
    let state = match before {
        Some(state) => state.clone(),
        None => Var::constant(Output::zeros(&[batch, states, key_width, value_width]).tensor()?),
    };
    let mut inputs = vec![q, k, v, beta, &state];
    inputs.extend(gate);
    let call = Call {
        sharing: Sharing { batch, heads, states, kv_heads },
        tokens,
        key_width,
        value_width,
        gate_width: gate.map_or(Ok(0), |g| g.value().dim(3))?,
        documents: documents.clone(),
    };
    let values: Vec<Tensor> = inputs.iter().map(|x| x.value().clone()).collect();
    check(&call, &values)?;
    let outputs = forward(&call, &values)?;
    let wanted: Vec<bool> = inputs.iter().map(|x| x.tracked()).collect();
    let mut vars = record(&inputs, outputs, move |g| backward(&call, &values, &wanted, g))?;
    let state = vars.pop().expect("two outputs");
    Ok((vars.pop().expect("two outputs"), state))
}

fn check(call: &Call, x: &[Tensor]) -> Result<()> {
    let &Call { sharing, tokens, key_width, value_width, gate_width, .. } = call;
    let Sharing { batch, states, kv_heads, .. } = sharing;
    let fits = x[1].dims() == [batch, tokens, kv_heads, key_width]
        && x[2].dims() == [batch, tokens, kv_heads, value_width]
        && x[3].dims() == [batch, tokens, states, 1]
        && x[4].dims() == [batch, states, key_width, value_width]
        && x.get(GATE).is_none_or(|g| g.dims() == [batch, tokens, states, gate_width])
        && [0, 1, key_width].contains(&gate_width)
        && sharing.fits()
        && (call.documents.batch(), call.documents.tokens()) == (batch, tokens);
    match fits {
        true => Ok(()),
        false => {
            let shapes: Vec<_> = x.iter().map(Tensor::dims).collect();
            Err(candle_core::Error::Msg(format!("delta rule of {shapes:?}, {:?}", call.documents)).into())
        }
    }
}

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
    /// Of every chunk of the head at hand: the state before it, u of its tokens, M.
    states: Vec<f32>,
    corrections: Vec<f32>,
    products: Vec<f32>,
    dq: Vec<f32>,
    dk_read: Vec<f32>,
    dk_write: Vec<f32>,
    dy: Vec<f32>,
    inclusive: Vec<f32>,
}

/// Views of the inputs.
struct Views<'a> {
    q: Heads<'a>,
    k: Heads<'a>,
    v: Heads<'a>,
    beta: Heads<'a>,
    state: Slice<'a>,
    gate: Option<Heads<'a>>,
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
            q: Heads::of(&x[0])?,
            k: Heads::of(&x[1])?,
            v: Heads::of(&x[2])?,
            beta: Heads::of(&x[3])?,
            state: Slice::of(&x[4])?,
            gate: x.get(GATE).map(Heads::of).transpose()?,
        })
    }

    /// Takes in a chunk's gates and betas.
    fn enter(&self, (b, g, n): (usize, usize, usize), rows: &Range<usize>, scratch: &mut Scratch) -> Rows<'_> {
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
        self.weigh_corrections(v.cols);
        self.decay.decay_state(s, v.cols);
        write(s, self.decay.to_end(k, &mut self.x), Mat::new(&self.y, len, v.cols));
    }

    /// y = beta u.
    fn weigh_corrections(&mut self, width: usize) {
        self.y.resize(self.u.len(), 0.0);
        simd!(|| {
            let rows = self.y.chunks_exact_mut(width).zip(self.u.chunks_exact(width)).zip(&self.beta);
            rows.for_each(|((y, u), beta)| y.iter_mut().zip(u).for_each(|(y, u)| *y = beta * u));
        });
    }
}

fn forward(call: &Call, x: &[Tensor]) -> Result<Vec<Tensor>> {
    let &Call { sharing, tokens, key_width, value_width, ref documents, .. } = call;
    let views = Views::of(x)?;
    let (size, heads) = (key_width * value_width, sharing.heads);
    let mut out = Output::padded(&[sharing.batch, tokens, heads, value_width], documents);
    let mut state = Output::unwritten(x[4].dims());
    let (out_at, state_at) = (out.pointer(), state.pointer());
    sharing.tasks().for_each_init(Scratch::default, |scratch, (b, g)| {
        let mut before = vec![0.0; size];
        for n in sharing.states_of(g) {
            let at = (b * sharing.states + n) * size;
            // SAFETY: state n of batch row b belongs to this task.
            let s = unsafe { state_at.slice(at, size) };
            s.copy_from_slice(&views.state[at..at + size]);
            for chunk in documents.chunks(b, CHUNK) {
                if chunk.fresh {
                    s.fill(0.0);
                }
                before.copy_from_slice(s);
                let rows = views.enter((b, g, n), &chunk.tokens, scratch);
                scratch.correct(&rows, s);
                for h in sharing.queries_of(n) {
                    let q = views.q.head(b, h, chunk.tokens.clone());
                    scratch.decay.product(Read::After, q, rows.k, &mut scratch.a);
                    // SAFETY: rows of head h of batch row b belong to this task.
                    let mut o = unsafe {
                        let start = ((b * tokens + chunk.tokens.start) * heads + h) * value_width;
                        out_at.rows(start, rows.len, value_width, heads * value_width)
                    };
                    let (a, y) = (Mat::new(&scratch.a, rows.len, rows.len), &scratch.y);
                    o.product(1.0, a, Mat::new(y, rows.len, value_width), 0.0);
                    let q = scratch.decay.from_start(Read::After, q, &mut scratch.x);
                    o.product(1.0, q, Mat::new(&before, key_width, value_width), 1.0);
                }
            }
        }
    });
    Ok(vec![out.tensor()?, state.tensor()?])
}

/// With R the gradient of the state after a chunk: dy = A^T do + (k e^(G_C - G)) R, w = (I + diag(beta) M)^-T dy,
/// e = beta w; dv = e, dbeta = w.u, dM = -e y^T, and k has one gradient as what is read and one as what is written:
/// dG = q dq + k dk_read - k dk_write. R = e^(G_C) R + (q e^G)^T do - (k e^G)^T e.
fn backward(call: &Call, x: &[Tensor], wanted: &[bool], g: Vec<Option<Tensor>>) -> Result<Vec<Option<Tensor>>> {
    let &Call { sharing, tokens, key_width: kw, value_width: vw, gate_width, ref documents } = call;
    let (size, heads) = (kw * vw, sharing.heads);
    let views = Views::of(x)?;
    let mut g = g.into_iter();
    let mut next = |dims: &[usize]| g.next().flatten().map_or_else(|| Output::zeros(dims).tensor(), Ok);
    let d_out = next(&[sharing.batch, tokens, heads, vw])?;
    let d_state = next(x[4].dims())?;
    let (d_out, d_state) = (Heads::of(&d_out)?, Slice::of(&d_state)?);
    let mut grads: Vec<Output> = x.iter().map(|x| Output::zeros(x.dims())).collect();
    let at: Vec<_> = grads.iter_mut().map(Output::pointer).collect();
    sharing.tasks().for_each_init(Scratch::default, |scratch, (b, g)| {
        // SAFETY of every `rows` and `slice` below: heads and states of (b, g) belong to this task.
        let head_rows = |input: usize, heads: usize, head: usize, rows: &Range<usize>, width: usize| unsafe {
            at[input].rows(((b * tokens + rows.start) * heads + head) * width, rows.len(), width, heads * width)
        };
        let chunks: Vec<_> = documents.chunks(b, CHUNK).collect();
        for n in sharing.states_of(g) {
            let state_at = (b * sharing.states + n) * size;
            let mut s = views.state[state_at..][..size].to_vec();
            scratch.states.clear();
            scratch.corrections.clear();
            scratch.products.clear();
            for chunk in &chunks {
                if chunk.fresh {
                    s.fill(0.0);
                }
                scratch.states.extend_from_slice(&s);
                let rows = views.enter((b, g, n), &chunk.tokens, scratch);
                scratch.correct(&rows, &mut s);
                scratch.corrections.extend_from_slice(&scratch.u);
                scratch.products.extend_from_slice(&scratch.m);
            }
            let mut r = d_state[state_at..][..size].to_vec();
            let mut running = vec![0f64; gate_width];
            if gate_width > 0 {
                state_terms(&mut running, &s, &r, vw);
            }
            let (mut corrected, mut multiplied) = (scratch.corrections.len(), scratch.products.len());
            for (c, chunk) in chunks.iter().enumerate().rev() {
                let rows = views.enter((b, g, n), &chunk.tokens, scratch);
                let Rows { k, v: _, len } = rows;
                corrected -= len * vw;
                multiplied -= len * len;
                scratch.u.clear();
                scratch.u.extend_from_slice(&scratch.corrections[corrected..][..len * vw]);
                scratch.weigh_corrections(vw);
                s.copy_from_slice(&scratch.states[c * size..][..size]);
                let Scratch { decay, a, products, x, beta, u, y, dq, dk_read, dk_write, dy, inclusive, .. } =
                    &mut *scratch;
                zeroed(inclusive, len * gate_width);
                dq.resize(len * kw, 0.0);
                dk_read.resize(len * kw, 0.0);
                dk_write.resize(len * kw, 0.0);
                dy.resize(len * vw, 0.0);
                let (s, y) = (Mat::new(&s, kw, vw), Mat::new(y, len, vw));
                let r_mat = Mat::new(&r, kw, vw);
                MatMut::new(dk_write, len, kw).product(1.0, y, r_mat.t(), 0.0);
                decay.scale_end(dk_write, kw);
                let k_end = decay.to_end(k, x);
                MatMut::new(dy, len, vw).product(1.0, k_end, r_mat, 0.0);
                decay.decay_state(&mut r, vw);
                for h in sharing.queries_of(n) {
                    let q = views.q.head(b, h, chunk.tokens.clone());
                    let d_out = d_out.head(b, h, chunk.tokens.clone());
                    MatMut::new(dq, len, kw).product(1.0, d_out, s.t(), 0.0);
                    decay.scale_start(Read::After, dq, kw);
                    let q_start = decay.from_start(Read::After, q, x);
                    MatMut::new(&mut r, kw, vw).product(1.0, q_start.t(), d_out, 1.0);
                    decay.product(Read::After, q, k, a);
                    MatMut::new(dy, len, vw).product(1.0, Mat::new(a, len, len).t(), d_out, 1.0);
                    MatMut::new(a, len, len).product(1.0, d_out, y.t(), 0.0);
                    decay.product_backward(Read::After, a, q, k, dq, dk_write);
                    decay.gate_terms(inclusive, 1.0, q, Mat::new(dq, len, kw));
                    add_rows(head_rows(0, heads, h, &chunk.tokens, kw), dq);
                }
                let m = &mut products[multiplied..][..len * len];
                simd!(|| {
                    let rows = m.chunks_exact_mut(len).zip(beta.iter());
                    rows.for_each(|(row, beta)| row.iter_mut().for_each(|m| *m *= beta));
                });
                solve_transposed(Mat::new(m, len, len), dy, vw);
                let mut d_beta = head_rows(3, sharing.states, n, &chunk.tokens, 1);
                simd!(|| {
                    for (i, ((w, u), beta)) in dy.chunks_exact_mut(vw).zip(u.chunks_exact(vw)).zip(&*beta).enumerate() {
                        d_beta.row(i)[0] = dot(w, u);
                        w.iter_mut().for_each(|w| *w *= beta);
                    }
                });
                let e = Mat::new(dy, len, vw);
                add_rows(head_rows(2, sharing.kv_heads, g, &chunk.tokens, vw), dy);
                MatMut::new(dk_read, len, kw).product(-1.0, e, s.t(), 0.0);
                decay.scale_start(Read::Decayed, dk_read, kw);
                let k_start = decay.from_start(Read::Decayed, k, x);
                MatMut::new(&mut r, kw, vw).product(-1.0, k_start.t(), e, 1.0);
                MatMut::new(a, len, len).product(-1.0, e, y.t(), 0.0);
                decay.product_backward(Read::Decayed, a, k, k, dk_read, dk_write);
                if gate_width > 0 {
                    decay.gate_terms(inclusive, 1.0, k, Mat::new(dk_read, len, kw));
                    decay.gate_terms(inclusive, -1.0, k, Mat::new(dk_write, len, kw));
                    let out = head_rows(GATE, sharing.states, n, &chunk.tokens, gate_width);
                    gate_gradient(&mut running, inclusive, &[], out);
                }
                add_rows(head_rows(1, sharing.kv_heads, g, &chunk.tokens, kw), dk_read);
                add_rows(head_rows(1, sharing.kv_heads, g, &chunk.tokens, kw), dk_write);
                if chunk.fresh {
                    r.fill(0.0);
                    running.fill(0.0);
                }
            }
            unsafe { at[4].slice(state_at, size) }.copy_from_slice(&r);
        }
    });
    let keep = |(want, d): (&bool, Output)| if *want { d.tensor().map(Some) } else { Ok(None) };
    wanted.iter().zip(grads).map(keep).collect()
}
