//! Diagonal plus low rank: the superset of the gated recurrences (RWKV-7, linear Titans).
//!
//! ```text
//! S_t = diag(e^(g_t)) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T      o_t = q_t^T S_t
//! ```
//!
//! a reads the state before the decay. In a chunk, with A_xy of [`super::cpu::decay`] ([`Read::Before`] for a) and
//! y_t = a_t^T S_{t-1},
//!
//! ```text
//! (I - A_ab) y = A_ak v + (a e^Gx) S      o = (q e^G) S + A_qk v + A_qb y
//! S = e^(G_C) S + (k e^(G_C - G))^T v + (b e^(G_C - G))^T y
//! ```
//!
//! where Gx is the cumulative sum without a token's own gate.

use super::cpu::decay::{Decay, Read, add_rows, gate_gradient, state_terms, write};
use super::cpu::simd::simd;
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

/// Sizes of one call. Its inputs are q, k, v, a, b, state, and the gate if there is one.
struct Call {
    sharing: Sharing,
    tokens: usize,
    key_width: usize,
    value_width: usize,
    gate_width: usize,
    documents: Arc<Documents>,
}

const STATE: usize = 5;
const GATE: usize = 6;

/// `q` [B, T, H, K], `k` [B, T, G, K], `v` [B, T, G, V], the transition's `a` and `b` [B, T, N, K], log gates `gate`
/// [B, T, N, 1 or K] (<= 0), and the state before, `before` [B, N, K, V] (None: zero). Returns o [B, T, H, V] and the
/// state after.
pub fn dplr(
    (q, k, v): (&Var, &Var, &Var),
    (a, b): (&Var, &Var),
    gate: Option<&Var>,
    before: Option<&Var>,
    documents: &Arc<Documents>,
) -> Result<(Var, Var)> {
    let (batch, tokens, heads, key_width) = q.value().dims4()?;
    let (_, _, kv_heads, value_width) = v.value().dims4()?;
    let states = a.value().dim(2)?;
    let state = match before {
        Some(state) => state.clone(),
        None => Var::constant(Output::zeros(&[batch, states, key_width, value_width]).tensor()?),
    };
    let mut inputs = vec![q, k, v, a, b, &state];
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
        && x[3..STATE].iter().all(|x| x.dims() == [batch, tokens, states, key_width])
        && x[STATE].dims() == [batch, states, key_width, value_width]
        && x.get(GATE).is_none_or(|g| g.dims() == [batch, tokens, states, gate_width])
        && [0, 1, key_width].contains(&gate_width)
        && sharing.fits()
        && (call.documents.batch(), call.documents.tokens()) == (batch, tokens);
    match fits {
        true => Ok(()),
        false => {
            let shapes: Vec<_> = x.iter().map(Tensor::dims).collect();
            Err(candle_core::Error::Msg(format!("diagonal plus low rank of {shapes:?}, {:?}", call.documents)).into())
        }
    }
}

/// Buffers that a thread keeps between heads.
#[derive(Default)]
struct Scratch {
    decay: Decay,
    product: Vec<f32>,
    transition: Vec<f32>,
    x: Vec<f32>,
    y: Vec<f32>,
    /// The state before every chunk of the head at hand, and y of its tokens.
    states: Vec<f32>,
    reads: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
    da: Vec<f32>,
    db: Vec<f32>,
    dy: Vec<f32>,
    inclusive: Vec<f32>,
    exclusive: Vec<f32>,
}

/// Views of the inputs.
struct Views<'a> {
    heads: [Heads<'a>; STATE],
    state: Slice<'a>,
    gate: Option<Heads<'a>>,
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
        let heads = x[..STATE].iter().map(Heads::of).collect::<Result<Vec<_>>>()?;
        Ok(Views {
            heads: heads.try_into().ok().expect("five tensors"),
            state: Slice::of(&x[STATE])?,
            gate: x.get(GATE).map(Heads::of).transpose()?,
        })
    }

    /// Takes in a chunk's gates.
    fn enter(&self, (b, g, n): (usize, usize, usize), rows: &Range<usize>, decay: &mut Decay) -> Rows<'_> {
        decay.prepare(self.gate.as_ref().map(|x| x.head(b, n, rows.clone())), rows.len());
        let at = |i: usize, head: usize| self.heads[i].head(b, head, rows.clone());
        Rows { k: at(1, g), v: at(2, g), a: at(3, n), b: at(4, n), len: rows.len() }
    }
}

impl Scratch {
    /// y of a chunk from the state before it, which then moves on to the state after.
    fn advance(&mut self, Rows { k, v, a, b, len }: Rows, s: &mut [f32]) {
        self.y.resize(len * v.cols, 0.0);
        self.decay.product(Read::Before, a, k, &mut self.product);
        let mut y = MatMut::new(&mut self.y, len, v.cols);
        y.product(1.0, Mat::new(&self.product, len, len), v, 0.0);
        y.product(1.0, self.decay.from_start(Read::Before, a, &mut self.x), Mat::new(s, k.cols, v.cols), 1.0);
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

fn forward(call: &Call, x: &[Tensor]) -> Result<Vec<Tensor>> {
    let &Call { sharing, tokens, key_width, value_width, ref documents, .. } = call;
    let views = Views::of(x)?;
    let (size, heads) = (key_width * value_width, sharing.heads);
    let mut out = Output::padded(&[sharing.batch, tokens, heads, value_width], documents);
    let mut state = Output::unwritten(x[STATE].dims());
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
                let rows = views.enter((b, g, n), &chunk.tokens, &mut scratch.decay);
                scratch.advance(rows, s);
                let y = Mat::new(&scratch.y, rows.len, value_width);
                for h in sharing.queries_of(n) {
                    let q = views.heads[0].head(b, h, chunk.tokens.clone());
                    // SAFETY: rows of head h of batch row b belong to this task.
                    let mut o = unsafe {
                        let start = ((b * tokens + chunk.tokens.start) * heads + h) * value_width;
                        out_at.rows(start, rows.len, value_width, heads * value_width)
                    };
                    for (read, written, beta) in [(rows.k, rows.v, 0.0), (rows.b, y, 1.0)] {
                        scratch.decay.product(Read::After, q, read, &mut scratch.product);
                        o.product(1.0, Mat::new(&scratch.product, rows.len, rows.len), written, beta);
                    }
                    let q = scratch.decay.from_start(Read::After, q, &mut scratch.x);
                    o.product(1.0, q, Mat::new(&before, key_width, value_width), 1.0);
                }
            }
        }
    });
    Ok(vec![out.tensor()?, state.tensor()?])
}

/// With R the gradient of the state after a chunk: dy = A_qb^T do + (b e^(G_C - G)) R and w = (I - A_ab)^-T dy is the
/// gradient of the right-hand side; dv = A_qk^T do + (k e^(G_C - G)) R + A_ak^T w, dA_ab = w y^T, dA_ak = w v^T, and
/// R = e^(G_C) R + (q e^G)^T do + (a e^Gx)^T w. dG = q dq - k dk - b db, and a da for Gx.
fn backward(call: &Call, x: &[Tensor], wanted: &[bool], g: Vec<Option<Tensor>>) -> Result<Vec<Option<Tensor>>> {
    let &Call { sharing, tokens, key_width: kw, value_width: vw, gate_width, ref documents } = call;
    let (size, heads) = (kw * vw, sharing.heads);
    let views = Views::of(x)?;
    let mut g = g.into_iter();
    let mut next = |dims: &[usize]| g.next().flatten().map_or_else(|| Output::zeros(dims).tensor(), Ok);
    let d_out = next(&[sharing.batch, tokens, heads, vw])?;
    let d_state = next(x[STATE].dims())?;
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
            scratch.reads.clear();
            for chunk in &chunks {
                if chunk.fresh {
                    s.fill(0.0);
                }
                scratch.states.extend_from_slice(&s);
                let rows = views.enter((b, g, n), &chunk.tokens, &mut scratch.decay);
                scratch.advance(rows, &mut s);
                scratch.reads.extend_from_slice(&scratch.y);
            }
            let mut r = d_state[state_at..][..size].to_vec();
            let mut running = vec![0f64; gate_width];
            if gate_width > 0 {
                state_terms(&mut running, &s, &r, vw);
            }
            let mut read_so_far = scratch.reads.len();
            let Scratch {
                decay,
                product,
                transition,
                x,
                y: _,
                states,
                reads,
                dq,
                dk,
                dv,
                da,
                db,
                dy,
                inclusive,
                exclusive,
            } = &mut *scratch;
            for (chunk, s) in chunks.iter().zip(states.chunks_exact(size)).rev() {
                let Rows { k, v, a, b: low, len } = views.enter((b, g, n), &chunk.tokens, decay);
                read_so_far -= len * vw;
                let y = Mat::new(&reads[read_so_far..][..len * vw], len, vw);
                zeroed(inclusive, len * gate_width);
                zeroed(exclusive, len * gate_width);
                for (buffer, width) in
                    [(&mut *dq, kw), (&mut *dk, kw), (&mut *da, kw), (&mut *db, kw), (&mut *dv, vw), (&mut *dy, vw)]
                {
                    buffer.resize(len * width, 0.0);
                }
                let (s, r_mat) = (Mat::new(s, kw, vw), Mat::new(&r, kw, vw));
                for (written, value, d_written, d_value) in [(k, v, &mut *dk, &mut *dv), (low, y, &mut *db, &mut *dy)] {
                    MatMut::new(d_written, len, kw).product(1.0, value, r_mat.t(), 0.0);
                    decay.scale_end(d_written, kw);
                    MatMut::new(d_value, len, vw).product(1.0, decay.to_end(written, x), r_mat, 0.0);
                }
                decay.decay_state(&mut r, vw);
                for h in sharing.queries_of(n) {
                    let q = views.heads[0].head(b, h, chunk.tokens.clone());
                    let d_out = d_out.head(b, h, chunk.tokens.clone());
                    MatMut::new(dq, len, kw).product(1.0, d_out, s.t(), 0.0);
                    decay.scale_start(Read::After, dq, kw);
                    let q_start = decay.from_start(Read::After, q, x);
                    MatMut::new(&mut r, kw, vw).product(1.0, q_start.t(), d_out, 1.0);
                    for (written, value, d_written, d_value) in
                        [(k, v, &mut *dk, &mut *dv), (low, y, &mut *db, &mut *dy)]
                    {
                        decay.product(Read::After, q, written, product);
                        MatMut::new(d_value, len, vw).product(1.0, Mat::new(product, len, len).t(), d_out, 1.0);
                        MatMut::new(product, len, len).product(1.0, d_out, value.t(), 0.0);
                        decay.product_backward(Read::After, product, q, written, dq, d_written);
                    }
                    decay.gate_terms(inclusive, 1.0, q, Mat::new(dq, len, kw));
                    add_rows(head_rows(0, heads, h, &chunk.tokens, kw), dq);
                }
                decay.product(Read::Before, a, low, transition);
                negate(transition);
                solve_transposed(Mat::new(transition, len, len), dy, vw);
                let w = Mat::new(dy, len, vw);
                MatMut::new(da, len, kw).product(1.0, w, s.t(), 0.0);
                decay.scale_start(Read::Before, da, kw);
                let a_start = decay.from_start(Read::Before, a, x);
                MatMut::new(&mut r, kw, vw).product(1.0, a_start.t(), w, 1.0);
                decay.product(Read::Before, a, k, product);
                MatMut::new(dv, len, vw).product(1.0, Mat::new(product, len, len).t(), w, 1.0);
                for (written, value, d_written) in [(k, v, &mut *dk), (low, y, &mut *db)] {
                    MatMut::new(product, len, len).product(1.0, w, value.t(), 0.0);
                    decay.product_backward(Read::Before, product, a, written, da, d_written);
                }
                if gate_width > 0 {
                    decay.gate_terms(inclusive, -1.0, k, Mat::new(dk, len, kw));
                    decay.gate_terms(inclusive, -1.0, low, Mat::new(db, len, kw));
                    decay.gate_terms(exclusive, 1.0, a, Mat::new(da, len, kw));
                    let out = head_rows(GATE, sharing.states, n, &chunk.tokens, gate_width);
                    gate_gradient(&mut running, inclusive, exclusive, out);
                }
                add_rows(head_rows(1, sharing.kv_heads, g, &chunk.tokens, kw), dk);
                add_rows(head_rows(2, sharing.kv_heads, g, &chunk.tokens, vw), dv);
                add_rows(head_rows(3, sharing.states, n, &chunk.tokens, kw), da);
                add_rows(head_rows(4, sharing.states, n, &chunk.tokens, kw), db);
                if chunk.fresh {
                    r.fill(0.0);
                    running.fill(0.0);
                }
            }
            unsafe { at[STATE].slice(state_at, size) }.copy_from_slice(&r);
        }
    });
    let keep = |(want, d): (&bool, Output)| if *want { d.tensor().map(Some) } else { Ok(None) };
    wanted.iter().zip(grads).map(keep).collect()
}
