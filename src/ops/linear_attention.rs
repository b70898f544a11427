//! Causal linear attention, numerator and denominator apart, with a lag.
//!
//! With S_t = S_{t-1} + b_t v_t^T and z_t = z_{t-1} + b_t, query i reads the state after key i - lag:
//!
//! ```text
//! num_i = a_i^T S_{i-lag}      den_i = a_i . z_{i-lag}
//! ```
//!
//! The lag leaves the newest keys to a softmax window of that length; keys are given from the start of that window, so
//! key row j enters at query j + lag. Evaluated in chunks of [`CHUNK`] queries: `num = A S + tril(A B^T) V`, so time and
//! memory are linear in T.

use super::cpu::simd::{axpy, dot, simd, sum};
use super::cpu::{Groups, Heads, Output, Slice, matrix::Mat, matrix::MatMut};
use super::tape::{Var, record};
use crate::Result;
use candle_core::Tensor;
use rayon::prelude::*;
use std::ops::Range;

/// Queries of one chunk. At F = 128, V = 64 the products inside a chunk cost about as much as those with the state.
pub const CHUNK: usize = 64;

#[derive(Clone, Copy)]
struct Shape {
    groups: Groups,
    queries: usize,
    features: usize,
    value_width: usize,
    lag: usize,
}

impl Shape {
    fn chunks(&self) -> impl DoubleEndedIterator<Item = Range<usize>> + ExactSizeIterator + use<> {
        let queries = self.queries;
        (0..queries.div_ceil(CHUNK)).map(move |c| c * CHUNK..((c + 1) * CHUNK).min(queries))
    }

    /// Keys that enter during a chunk of queries.
    fn keys_of(&self, chunk: &Range<usize>) -> Range<usize> {
        chunk.start.saturating_sub(self.lag)..chunk.end.saturating_sub(self.lag)
    }

    /// How many of the chunk's keys its query `i` sees.
    fn seen(&self, i: usize, keys: &Range<usize>) -> usize {
        (i + 1).saturating_sub(self.lag + keys.start)
    }

    fn at(&self, batch: usize, query: usize, head: usize) -> usize {
        (batch * self.queries + query) * self.groups.heads + head
    }

    fn state(&self) -> usize {
        self.features * self.value_width
    }
}

/// What [`linear_attention`] returns.
pub struct LinearAttention {
    /// [B, T, H, V]
    pub num: Var,
    /// [B, T, H]
    pub den: Var,
    /// S after the last key that entered, [B, H, F, V].
    pub state: Var,
    /// z after the last key that entered, [B, H, F].
    pub normaliser: Var,
}

/// `a` [B, T, H, F], `b` [B, Tk, H, F], `v` [B, Tk, G, V] with Tk >= T - lag, and the state before: `state`
/// [B, H, F, V], `normaliser` [B, H, F] (None: zero).
pub fn linear_attention(
    a: &Var,
    b: &Var,
    v: &Var,
    lag: usize,
    before: Option<(&Var, &Var)>,
) -> Result<LinearAttention> {
    let (batch, queries, heads, features) = a.value().dims4()?;
    let (_, keys, kv_heads, value_width) = v.value().dims4()?;
    if keys < queries.saturating_sub(lag) || b.value().dim(1)? < queries.saturating_sub(lag) || heads % kv_heads != 0 {
        let what = format!("linear attention: a {:?}, v {:?}, lag {lag}", a.value().dims(), v.value().dims());
        return Err(candle_core::Error::Msg(what).into());
    }
    let shape = Shape { groups: Groups { batch, heads, kv_heads }, queries, features, value_width, lag };
    let zero = || {
        let state = Output::zeros(&[batch, heads, features, value_width]).tensor()?;
        Ok((Var::constant(state), Var::constant(Output::zeros(&[batch, heads, features]).tensor()?))) as Result<_>
    };
    let (s0, z0) = match before {
        Some((s, z)) => (s.clone(), z.clone()),
        None => zero()?,
    };
    let inputs = [a, b, v, &s0, &z0];
    let outputs = forward(shape, &inputs.map(|x| x.value().clone()))?;
    let wanted = inputs.map(Var::tracked);
    let values = inputs.map(|x| x.value().clone());
    let vars = record(&inputs, outputs, move |g| backward(shape, values, wanted, g))?;
    let [num, den, state, normaliser] = vars.try_into().ok().expect("four outputs");
    Ok(LinearAttention { num, den, state, normaliser })
}

/// One chunk's lower-triangular products `A B^T`: row i keeps the keys that query i sees.
fn masked_product(shape: Shape, a: Mat, b: Mat, chunk: &Range<usize>, keys: &Range<usize>, buffer: &mut Vec<f32>) {
    buffer.resize(a.rows * b.rows, 0.0);
    MatMut::new(buffer, a.rows, b.rows).product(1.0, a, b.t(), 0.0);
    if !keys.is_empty() {
        for (row, i) in buffer.chunks_exact_mut(keys.len()).zip(chunk.clone()) {
            let seen = shape.seen(i, keys).min(row.len());
            row[seen..].fill(0.0);
        }
    }
}

/// S += B^T V, z += sum of rows of B.
fn absorb(s: &mut [f32], z: &mut [f32], b: Mat, v: Mat) {
    MatMut::new(s, b.cols, v.cols).product(1.0, b.t(), v, 1.0);
    simd(|| (0..b.rows).for_each(|r| axpy(z, 1.0, b.row(r))));
}

fn forward(shape: Shape, inputs: &[Tensor; 5]) -> Result<Vec<Tensor>> {
    let [a, b, v] = [Heads::of(&inputs[0])?, Heads::of(&inputs[1])?, Heads::of(&inputs[2])?];
    let (s0, z0) = (Slice::of(&inputs[3])?, Slice::of(&inputs[4])?);
    let Shape { groups: Groups { batch, heads, .. }, queries, features, value_width, .. } = shape;
    let mut num = Output::unwritten(&[batch, queries, heads, value_width]);
    let mut den = Output::unwritten(&[batch, queries, heads]);
    let mut state = Output::unwritten(&[batch, heads, features, value_width]);
    let mut normaliser = Output::unwritten(&[batch, heads, features]);
    let (num_at, den_at) = (num.pointer(), den.pointer());
    let (state_at, normaliser_at) = (state.pointer(), normaliser.pointer());
    shape.groups.tasks().for_each_init(Vec::new, |p, (i, g)| {
        for h in shape.groups.heads_of(g) {
            let row = i * heads + h;
            // SAFETY: state and normaliser of (i, h) belong to this task.
            let (s, z) = unsafe {
                (state_at.slice(row * shape.state(), shape.state()), normaliser_at.slice(row * features, features))
            };
            s.copy_from_slice(&s0[row * shape.state()..][..shape.state()]);
            z.copy_from_slice(&z0[row * features..][..features]);
            for chunk in shape.chunks() {
                let keys = shape.keys_of(&chunk);
                let (a, b) = (a.head(i, h, chunk.clone()), b.head(i, h, keys.clone()));
                let v = v.head(i, g, keys.clone());
                masked_product(shape, a, b, &chunk, &keys, p);
                // SAFETY: rows of head h of batch row i.
                let mut out = unsafe {
                    let start = shape.at(i, chunk.start, h) * value_width;
                    num_at.rows(start, chunk.len(), value_width, heads * value_width)
                };
                out.product(1.0, a, Mat::new(s, features, value_width), 0.0);
                out.product(1.0, Mat::new(p, chunk.len(), keys.len()), v, 1.0);
                simd(|| {
                    for (r, query) in chunk.clone().enumerate() {
                        let inside = sum(&p[r * keys.len()..][..keys.len()]);
                        // SAFETY: (i, query, h) belongs to this task.
                        unsafe { den_at.slice(shape.at(i, query, h), 1)[0] = dot(a.row(r), z) + inside };
                    }
                });
                absorb(s, z, b, v);
            }
        }
    });
    Ok(vec![num.tensor()?, den.tensor()?, state.tensor()?, normaliser.tensor()?])
}

/// With R, r the gradients of the state after a chunk, and dP = tril(dnum V^T + dden 1^T):
/// dA = dnum S^T + dden z^T + dP B; dB = V R^T + 1 r^T + dP^T A; dV = B R + P^T dnum; then R += A^T dnum, r += A^T dden.
/// The state before every chunk is computed once more, forward, and kept for the one head at hand.
fn backward(
    shape: Shape,
    inputs: [Tensor; 5],
    wanted: [bool; 5],
    g: Vec<Option<Tensor>>,
) -> Result<Vec<Option<Tensor>>> {
    let Shape { groups: Groups { batch, heads, kv_heads }, queries, features, value_width, .. } = shape;
    let size = shape.state();
    let dims = [
        vec![batch, queries, heads, value_width],
        vec![batch, queries, heads],
        vec![batch, heads, features, value_width],
        vec![batch, heads, features],
    ];
    let mut grads = Vec::with_capacity(4);
    for (g, dims) in g.into_iter().zip(&dims) {
        grads.push(g.map_or_else(|| Output::zeros(dims).tensor(), Ok)?);
    }
    let (dnum, dden) = (Heads::of(&grads[0])?, Slice::of(&grads[1])?);
    let (ds_end, dz_end) = (Slice::of(&grads[2])?, Slice::of(&grads[3])?);
    let [a, b, v] = [Heads::of(&inputs[0])?, Heads::of(&inputs[1])?, Heads::of(&inputs[2])?];
    let (s0, z0) = (Slice::of(&inputs[3])?, Slice::of(&inputs[4])?);
    let mut out = inputs.each_ref().map(|x| Output::zeros(x.dims()));
    let at = out.each_mut().map(Output::pointer);
    let keys_total = b.tokens;

    shape.groups.tasks().for_each_init(Scratch::default, |scratch, (i, kv)| {
        for h in shape.groups.heads_of(kv) {
            let row = i * heads + h;
            scratch.states.resize(queries.div_ceil(CHUNK) * (size + features), 0.0);
            let (mut s, mut z) = (s0[row * size..][..size].to_vec(), z0[row * features..][..features].to_vec());
            for (chunk, kept) in shape.chunks().zip(scratch.states.chunks_exact_mut(size + features)) {
                kept[..size].copy_from_slice(&s);
                kept[size..].copy_from_slice(&z);
                let keys = shape.keys_of(&chunk);
                absorb(&mut s, &mut z, b.head(i, h, keys.clone()), v.head(i, kv, keys));
            }
            let (mut big_r, mut small_r) = (s, z);
            big_r.copy_from_slice(&ds_end[row * size..][..size]);
            small_r.copy_from_slice(&dz_end[row * features..][..features]);
            for (c, chunk) in shape.chunks().enumerate().rev() {
                let (s, z) = scratch.states[c * (size + features)..][..size + features].split_at(size);
                let keys = shape.keys_of(&chunk);
                let n = keys.len();
                let (a, b) = (a.head(i, h, chunk.clone()), b.head(i, h, keys.clone()));
                let (v, dnum) = (v.head(i, kv, keys.clone()), dnum.head(i, h, chunk.clone()));
                masked_product(shape, dnum, v, &chunk, &keys, &mut scratch.dp);
                simd(|| {
                    for (r, query) in chunk.clone().enumerate() {
                        let seen = shape.seen(query, &keys).min(n);
                        let extra = dden[shape.at(i, query, h)];
                        scratch.dp[r * n..][..seen].iter_mut().for_each(|d| *d += extra);
                    }
                });
                let dp = Mat::new(&scratch.dp, chunk.len(), n);
                // SAFETY: rows of head h (queries, keys) and kv head (values) of batch row i: this task's alone.
                unsafe {
                    if wanted[0] {
                        let start = shape.at(i, chunk.start, h) * features;
                        let mut da = at[0].rows(start, chunk.len(), features, heads * features);
                        da.product(1.0, dnum, Mat::new(s, features, value_width).t(), 0.0);
                        da.product(1.0, dp, b, 1.0);
                        simd(|| {
                            for (r, query) in chunk.clone().enumerate() {
                                axpy(da.row(r), dden[shape.at(i, query, h)], z);
                            }
                        });
                    }
                    if wanted[1] && n > 0 {
                        let start = ((i * keys_total + keys.start) * heads + h) * features;
                        let mut db = at[1].rows(start, n, features, heads * features);
                        db.product(1.0, v, Mat::new(&big_r, features, value_width).t(), 0.0);
                        db.product(1.0, dp.t(), a, 1.0);
                        simd(|| (0..n).for_each(|r| axpy(db.row(r), 1.0, &small_r)));
                    }
                    if wanted[2] && n > 0 {
                        masked_product(shape, a, b, &chunk, &keys, &mut scratch.p);
                        let start = ((i * inputs[2].dims()[1] + keys.start) * kv_heads + kv) * value_width;
                        let mut dv = at[2].rows(start, n, value_width, kv_heads * value_width);
                        dv.product(1.0, b, Mat::new(&big_r, features, value_width), 1.0);
                        dv.product(1.0, Mat::new(&scratch.p, chunk.len(), n).t(), dnum, 1.0);
                    }
                }
                MatMut::new(&mut big_r, features, value_width).product(1.0, a.t(), dnum, 1.0);
                simd(|| {
                    for (r, query) in chunk.clone().enumerate() {
                        axpy(&mut small_r, dden[shape.at(i, query, h)], a.row(r));
                    }
                });
            }
            // SAFETY: the state of (i, h).
            unsafe {
                at[3].slice(row * size, size).copy_from_slice(&big_r);
                at[4].slice(row * features, features).copy_from_slice(&small_r);
            }
        }
    });
    let keep = |(want, d): (bool, Output)| if want { d.tensor().map(Some) } else { Ok(None) };
    wanted.into_iter().zip(out).map(keep).collect()
}

/// Buffers that a thread keeps between heads.
#[derive(Default)]
struct Scratch {
    /// S and z before every chunk of the head at hand.
    states: Vec<f32>,
    p: Vec<f32>,
    dp: Vec<f32>,
}

/// One token: absorbs `b` [B, 1, H, F], `v` [B, 1, G, V] (None: no key enters yet) into the state, then reads it with
/// `a` [B, 1, H, F]. Returns numerator, denominator, state, normaliser.
pub fn linear_attention_step(
    a: &Tensor,
    entering: Option<(&Tensor, &Tensor)>,
    state: &Tensor,
    normaliser: &Tensor,
) -> Result<(Tensor, Tensor, Tensor, Tensor)> {
    let (batch, heads, features, width) = state.dims4()?;
    let (s0, z0, a) = (Slice::of(state)?, Slice::of(normaliser)?, Heads::of(a)?);
    let entering = match entering {
        Some((b, v)) => Some((Heads::of(b)?, Heads::of(v)?)),
        None => None,
    };
    let (mut s, mut z) = (Output::unwritten(state.dims()), Output::unwritten(normaliser.dims()));
    let mut num = Output::zeros(&[batch, 1, heads, width]);
    let mut den = Output::zeros(&[batch, 1, heads]);
    let size = features * width;
    s.data().copy_from_slice(&s0);
    z.data().copy_from_slice(&z0);
    let states = s.data().par_chunks_mut(size).zip(z.data().par_chunks_mut(features));
    let outputs = num.data().par_chunks_mut(width).zip(den.data().par_iter_mut());
    states.zip(outputs).enumerate().for_each(|(i, ((s, z), (num, den)))| {
        let (row, h) = (i / heads, i % heads);
        let query = a.head(row, h, 0..1).row(0);
        simd(|| {
            if let Some((b, v)) = &entering {
                let (b, v) = (b.head(row, h, 0..1).row(0), v.head(row, h / (heads / v.heads), 0..1).row(0));
                for (s, b) in s.chunks_exact_mut(width).zip(b) {
                    axpy(s, *b, v);
                }
                axpy(z, 1.0, b);
            }
            for (s, a) in s.chunks_exact(width).zip(query) {
                axpy(num, *a, s);
            }
            *den = dot(query, z);
        });
    });
    Ok((num.tensor()?, den.tensor()?, s.tensor()?, z.tensor()?))
}
