//! Softmax attention over the last `w` keys, or over all of them.
//!
//! For query i at key position p = i + past (past = Tk - Tq keys came before the queries), scores s_ij = scale q_i.k_j
//! for p - w < j <= p, and their maximum m_i:
//!
//! ```text
//! num_i = sum_j exp(s_ij - m_i) v_j      den_i = sum_j exp(s_ij - m_i)
//! ```
//!
//! Numerator and denominator come apart so that a linear branch can share the denominator (LoLCATs, arXiv 2410.10254).
//! There m_i changes the function, so its gradient is kept: it flows to the first key that attains the maximum.

use super::cpu::simd::{axpy, dot, exp_minus, max, simd};
use super::cpu::{Groups, Heads, Output, OutputPointer, Slice, matrix::Mat, matrix::MatMut};
use super::tape::{Var, record};
use crate::Result;
use candle_core::Tensor;
use rayon::prelude::*;
use std::ops::Range;

/// Query rows of one tile.
const TILE: usize = 64;

/// Sizes of one call.
#[derive(Clone, Copy)]
struct Shape {
    groups: Groups,
    /// Query tokens and key tokens.
    queries: usize,
    keys: usize,
    value_width: usize,
    window: usize,
    scale: f32,
}

impl Shape {
    fn past(&self) -> usize {
        self.keys - self.queries
    }

    /// Keys that any query of the tile sees.
    fn keys_of(&self, tile: &Range<usize>) -> Range<usize> {
        self.first_key(tile.start)..self.past() + tile.end
    }

    fn first_key(&self, query: usize) -> usize {
        (self.past() + query + 1).saturating_sub(self.window)
    }

    fn tiles(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let queries = self.queries;
        (0..queries).step_by(TILE).map(move |i| i..(i + TILE).min(queries))
    }

    /// Index of (batch row, query, head) in a `[B, Tq, H]` tensor.
    fn at(&self, batch: usize, query: usize, head: usize) -> usize {
        (batch * self.queries + query) * self.groups.heads + head
    }
}

/// `q` [B, Tq, H, K], `k` [B, Tk, G, K], `v` [B, Tk, G, V], Tk >= Tq -> numerator [B, Tq, H, V], denominator [B, Tq, H].
/// `window` counts the query's own key; `None` sees all keys so far.
pub fn attention(q: &Var, k: &Var, v: &Var, window: Option<usize>, scale: f32) -> Result<(Var, Var)> {
    let (batch, queries, heads, _) = q.value().dims4()?;
    let (_, keys, kv_heads, value_width) = v.value().dims4()?;
    if keys < queries || heads % kv_heads != 0 || k.value().dim(1)? != keys {
        let what = format!("attention: q {:?}, k {:?}, v {:?}", q.value().dims(), k.value().dims(), v.value().dims());
        return Err(candle_core::Error::Msg(what).into());
    }
    let window = window.unwrap_or(usize::MAX);
    let shape = Shape { groups: Groups { batch, heads, kv_heads }, queries, keys, value_width, window, scale };
    let (num, den, maxima) = forward(shape, q.value(), k.value(), v.value())?;
    let inputs = (q.value().clone(), k.value().clone(), v.value().clone(), maxima);
    let wanted = [q.tracked(), k.tracked(), v.tracked()];
    let mut outputs = record(&[q, k, v], vec![num, den], move |g| backward(shape, inputs, wanted, g))?;
    let den = outputs.pop().expect("two outputs");
    Ok((outputs.pop().expect("two outputs"), den))
}

/// Scores of a tile: row r holds s_ij for the tile's keys, those outside the row's window zeroed later.
fn scores(shape: Shape, q: Mat, k: Mat, buffer: &mut Vec<f32>) {
    buffer.resize(q.rows * k.rows, 0.0);
    MatMut::new(buffer, q.rows, k.rows).product(shape.scale, q, k.t(), 0.0);
}

/// The keys that row `query` sees, counted from the tile's first key.
fn visible(shape: Shape, query: usize, keys: &Range<usize>) -> Range<usize> {
    shape.first_key(query) - keys.start..shape.past() + query + 1 - keys.start
}

fn forward(shape: Shape, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor, Vec<f32>)> {
    let (q, k, v) = (Heads::of(q)?, Heads::of(k)?, Heads::of(v)?);
    let rows = [shape.groups.batch, shape.queries, shape.groups.heads];
    let mut num = Output::unwritten(&[rows[0], rows[1], rows[2], shape.value_width]);
    let (mut den, mut maxima) = (Output::unwritten(&rows), Output::unwritten(&rows));
    let (num_at, den_at, max_at) = (num.pointer(), den.pointer(), maxima.pointer());
    shape.groups.tasks().for_each_init(Vec::new, |buffer, (b, g)| {
        for h in shape.groups.heads_of(g) {
            for tile in shape.tiles() {
                let keys = shape.keys_of(&tile);
                scores(shape, q.head(b, h, tile.clone()), k.head(b, g, keys.clone()), buffer);
                simd(|| {
                    for (row, i) in buffer.chunks_exact_mut(keys.len()).zip(tile.clone()) {
                        let seen = visible(shape, i, &keys);
                        row[..seen.start].fill(0.0);
                        row[seen.end..].fill(0.0);
                        let row = &mut row[seen];
                        let m = max(row);
                        // SAFETY: (b, i, h) belongs to this task alone.
                        unsafe {
                            max_at.slice(shape.at(b, i, h), 1)[0] = m;
                            den_at.slice(shape.at(b, i, h), 1)[0] = exp_minus(row, m);
                        }
                    }
                });
                let weights = Mat::new(buffer, tile.len(), keys.len());
                // SAFETY: rows of head h of this task's batch row.
                let mut out = unsafe { head_rows(num_at, shape, b, h, &tile) };
                out.product(1.0, weights, v.head(b, g, keys), 0.0);
            }
        }
    });
    Ok((num.tensor()?, den.tensor()?, maxima.data().to_vec()))
}

/// # Safety
/// The caller's task alone owns head `h` of batch row `b`.
unsafe fn head_rows<'a>(to: OutputPointer, shape: Shape, b: usize, h: usize, tile: &Range<usize>) -> MatMut<'a> {
    let width = shape.value_width;
    unsafe { to.rows(shape.at(b, tile.start, h) * width, tile.len(), width, shape.groups.heads * width) }
}

type Inputs = (Tensor, Tensor, Tensor, Vec<f32>);

/// With P = exp(s - m) and dP_ij = dnum_i.v_j + dden_i: dv_j += P_ij dnum_i, ds_ij = P_ij dP_ij, and the maximum's
/// own share, minus the sum of that row, goes to the key that attains it.
fn backward(
    shape: Shape,
    inputs: Inputs,
    wanted: [bool; 3],
    mut g: Vec<Option<Tensor>>,
) -> Result<Vec<Option<Tensor>>> {
    let (q_tensor, k_tensor, v_tensor, maxima) = inputs;
    let (q, k, v) = (Heads::of(&q_tensor)?, Heads::of(&k_tensor)?, Heads::of(&v_tensor)?);
    let zeros = |dims: &[usize]| Ok(Output::zeros(dims).tensor()?) as Result<Tensor>;
    let rows = [shape.groups.batch, shape.queries, shape.groups.heads];
    let dden = g.pop().flatten().map_or_else(|| zeros(&rows), Ok)?;
    let dnum = g.pop().flatten().map_or_else(|| zeros(&[rows[0], rows[1], rows[2], shape.value_width]), Ok)?;
    let (dnum, dden) = (Heads::of(&dnum)?, Slice::of(&dden)?);
    let (width, kv) = (q.width, shape.groups.kv_heads);
    let mut dq = Output::unwritten(q_tensor.dims());
    let mut dk = Output::zeros(k_tensor.dims());
    let mut dv = Output::zeros(v_tensor.dims());
    let (dq_at, dk_at, dv_at) = (dq.pointer(), dk.pointer(), dv.pointer());
    shape.groups.tasks().for_each_init(Default::default, |(weights, ds): &mut (Vec<f32>, Vec<f32>), (b, g)| {
        for h in shape.groups.heads_of(g) {
            for tile in shape.tiles() {
                let keys = shape.keys_of(&tile);
                let n = keys.len();
                let (q_rows, k_rows) = (q.head(b, h, tile.clone()), k.head(b, g, keys.clone()));
                let (v_rows, dnum_rows) = (v.head(b, g, keys.clone()), dnum.head(b, h, tile.clone()));
                scores(shape, q_rows, k_rows, weights);
                if wanted[0] || wanted[1] {
                    ds.resize(weights.len(), 0.0);
                    MatMut::new(ds, tile.len(), n).product(1.0, dnum_rows, v_rows.t(), 0.0);
                }
                simd(|| {
                    for (r, i) in tile.clone().enumerate() {
                        let seen = visible(shape, i, &keys);
                        let row = &mut weights[r * n..][..n];
                        row[..seen.start].fill(0.0);
                        row[seen.end..].fill(0.0);
                        let row = &mut row[seen.clone()];
                        let m = maxima[shape.at(b, i, h)];
                        let peak = row.iter().position(|&s| s == m).unwrap_or(0);
                        exp_minus(row, m);
                        if wanted[0] || wanted[1] {
                            let d = &mut ds[r * n..][..n];
                            d[..seen.start].fill(0.0);
                            d[seen.end..].fill(0.0);
                            let d = &mut d[seen];
                            let extra = dden[shape.at(b, i, h)];
                            for (d, p) in d.iter_mut().zip(row.iter()) {
                                *d = (*d + extra) * p;
                            }
                            d[peak] -= super::cpu::simd::sum(d);
                        }
                    }
                });
                let (p, ds) = (Mat::new(weights, tile.len(), n), ds.as_slice());
                // SAFETY: dq rows of head h, dk and dv rows of kv head g: this task's alone.
                unsafe {
                    if wanted[2] {
                        let start = ((b * shape.keys + keys.start) * kv + g) * shape.value_width;
                        let mut dv = dv_at.rows(start, n, shape.value_width, kv * shape.value_width);
                        dv.product(1.0, p.t(), dnum_rows, 1.0);
                    }
                    if wanted[0] {
                        let start = shape.at(b, tile.start, h) * width;
                        let mut dq = dq_at.rows(start, tile.len(), width, shape.groups.heads * width);
                        dq.product(shape.scale, Mat::new(ds, tile.len(), n), k_rows, 0.0);
                    }
                    if wanted[1] {
                        let start = ((b * shape.keys + keys.start) * kv + g) * width;
                        let mut dk = dk_at.rows(start, n, width, kv * width);
                        dk.product(shape.scale, Mat::new(ds, tile.len(), n).t(), q_rows, 1.0);
                    }
                }
            }
        }
    });
    let keep = |want: bool, d: Output| if want { d.tensor().map(Some) } else { Ok(None) };
    Ok(vec![keep(wanted[0], dq)?, keep(wanted[1], dk)?, keep(wanted[2], dv)?])
}

/// Attention of one query: `q` [B, 1, H, K] over the cached `k`, `v` [B, Tk, G, ..] without a tile's buffers.
pub fn attention_step(q: &Tensor, k: &Tensor, v: &Tensor, scale: f32) -> Result<(Tensor, Tensor)> {
    let (q, k, v) = (Heads::of(q)?, Heads::of(k)?, Heads::of(v)?);
    let group = q.heads / k.heads;
    let mut num = Output::zeros(&[q.batch, 1, q.heads, v.width]);
    let mut den = Output::zeros(&[q.batch, 1, q.heads]);
    let tasks = num.data().par_chunks_mut(v.width).zip(den.data().par_iter_mut()).enumerate();
    tasks.for_each_init(Vec::new, |scores, (i, (num, den))| {
        let (b, h) = (i / q.heads, i % q.heads);
        let query = q.head(b, h, 0..1).row(0);
        let (keys, values) = (k.head(b, h / group, 0..k.tokens), v.head(b, h / group, 0..k.tokens));
        simd(|| {
            scores.clear();
            scores.extend((0..k.tokens).map(|j| scale * dot(query, keys.row(j))));
            let m = max(scores);
            *den = exp_minus(scores, m);
            for (j, p) in scores.iter().enumerate() {
                axpy(num, *p, values.row(j));
            }
        });
    });
    Ok((num.tensor()?, den.tensor()?))
}
