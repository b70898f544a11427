//! Causal linear attention, numerator and denominator apart, beside a softmax window or alone.
//!
//! With S_t = S_{t-1} + b_t v_t^T and z_t = z_{t-1} + b_t over the keys of the query's own document:
//!
//! ```text
//! num_i = a_i^T S_e      den_i = a_i . z_e
//! ```
//!
//! Alone, e = i: every key enters with its own query. Beside a window ([`AttentionMask`]) a key enters when it leaves it, and
//! sinks never do, so that each key is seen by one of the two: a sliding window of w keys is a lag, e = i - w.
//! Evaluated in chunks of [`CHUNK`] queries: `num = A S + tril(A B^T) V`, so time and memory are linear in T.

use crate::ops::Documents;
use crate::ops::attention_mask::{AttentionMask, KvLayout, SequenceChunk, placed};
use crate::ops::cpu::matrix::{Mat, MatMut, Triangle};
use crate::ops::cpu::simd::{axpy, dot, simd, sum};
use crate::ops::cpu::{Groups, HeadsView, Output, OutputPointer, Slice, gradients_of};
use crate::ops::operator::{Operator, apply};
use crate::ops::recurrence::{PerState, keep_next, take_last, take_next};
use crate::ops::tape::Var;
use crate::{Error, Result};
use candle_core::Tensor;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Queries of one chunk. At F = 128, V = 64 the products inside a chunk cost about as much as those with the state.
pub const CHUNK: usize = 64;

/// One call. Its inputs are a, b, v, and S and z of the state before.
struct CausalLinearAttention {
    groups: Groups,
    queries: usize,
    features: usize,
    value_width: usize,
    beside: Option<AttentionMask>,
    documents: Arc<Documents>,
    past: KvLayout,
}

impl CausalLinearAttention {
    fn chunks(&self, batch: usize) -> impl DoubleEndedIterator<Item = (SequenceChunk, Keys)> + '_ {
        self.past.tiles(&self.documents, batch, CHUNK).map(|tile| {
            let keys = self.keys_of(&tile);
            (tile, keys)
        })
    }

    /// How many positions have entered the state, or never do, once `tokens` tokens have been read.
    fn entered(&self, tokens: usize) -> usize {
        self.beside.map_or(tokens, |mask| mask.left(tokens))
    }

    /// Keys that enter during a chunk of queries.
    fn keys_of(&self, chunk: &SequenceChunk) -> Keys {
        let first = self.entered(chunk.position);
        let positions = first..self.entered(chunk.end());
        let seen: Vec<usize> = (chunk.position..chunk.end()).map(|p| self.entered(p + 1) - first).collect();
        let runs: Vec<_> = chunk.columns(positions.clone()).collect();
        let triangular = runs.len() == 1 && seen.iter().enumerate().all(|(i, &seen)| seen == i + 1);
        Keys { count: positions.len(), runs, seen, triangular }
    }

    fn at(&self, batch: usize, query: usize, head: usize) -> usize {
        (batch * self.queries + query) * self.groups.heads + head
    }

    fn state(&self) -> usize {
        self.features * self.value_width
    }
}

/// Keys that enter the state during a chunk.
struct Keys {
    /// Columns of the key tensor.
    runs: Vec<Range<usize>>,
    count: usize,
    /// How many of them each of the chunk's queries reads.
    seen: Vec<usize>,
    /// One run, of which query i reads the first i + 1: half of the products is nothing.
    triangular: bool,
}

impl Keys {
    fn part(&self, triangle: Triangle) -> Triangle {
        if self.triangular { triangle } else { Triangle::None }
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

/// `a` [B, T, H, F], `b` [B, past + T, H, F], `v` [B, past + T, G, V], the window `beside` (None: keys enter with their
/// own query), the queries' `documents`, what the keys before them are, and the state before: `state` [B, H, F, V],
/// `normaliser` [B, H, F] (None: zero). The state returned is that of each row's last document.
pub fn linear_attention(
    a: &Var,
    b: &Var,
    v: &Var,
    beside: Option<AttentionMask>,
    documents: &Arc<Documents>,
    past: &KvLayout,
    before: Option<(&Var, &Var)>,
) -> Result<LinearAttention> {
    let (batch, queries, heads, features) = a.value().dims4()?;
    let (_, keys, kv_heads, value_width) = v.value().dims4()?;
    let fits = (documents.batch(), documents.tokens()) == (batch, queries);
    if !fits || b.value().dim(1)? != keys || heads % kv_heads != 0 {
        let dims = [a, b, v].map(|x| x.value().dims());
        return Err(Error::Internal(format!("linear attention: a, b, v {dims:?}, {documents:?}")));
    }
    let groups = Groups { batch, heads, kv_heads };
    let (documents, past) = (documents.clone(), past.clone());
    let call = CausalLinearAttention { groups, queries, features, value_width, beside, documents, past };
    call.past.check(&call.documents, keys, |seen| call.entered(seen))?;
    let (s0, z0) = match before {
        Some((s, z)) => (s.clone(), z.clone()),
        None => {
            let zeros = |dims: &[usize]| Ok(Var::constant(Output::zeros(dims).tensor()?)) as Result<_>;
            (zeros(&[batch, heads, features, value_width])?, zeros(&[batch, heads, features])?)
        }
    };
    let vars = apply(call, &[a, b, v, &s0, &z0])?;
    let [num, den, state, normaliser] = vars.try_into().ok().expect("four outputs");
    Ok(LinearAttention { num, den, state, normaliser })
}

/// One chunk's lower-triangular products `A B^T`, `b` being head `head` of batch row `batch`: row i keeps the keys that
/// query i reads.
fn masked_product(a: Mat, b: &HeadsView, (batch, head): (usize, usize), keys: &Keys, product: &mut [f32]) {
    let n = keys.count;
    for (place, run) in placed(&keys.runs) {
        let mut all = MatMut::new(product, a.rows, n);
        let triangle = keys.part(Triangle::Output);
        all.block(0..a.rows, place).product_in(triangle, 1.0, a, b.head(batch, head, run).t(), 0.0);
    }
    if n > 0 {
        for (row, &seen) in product.chunks_exact_mut(n).zip(&keys.seen) {
            row[seen..].fill(0.0);
        }
    }
}

/// S += B^T V, z += sum of rows of B.
fn absorb(s: &mut [f32], z: &mut [f32], b: Mat, v: Mat) {
    MatMut::new(s, b.cols, v.cols).product(1.0, b.t(), v, 1.0);
    simd!(|| (0..b.rows).for_each(|r| axpy(z, 1.0, b.row(r))));
}

/// What the forward pass keeps.
struct Kept {
    /// S and z before every chunk.
    states: PerState,
    /// tril(A B^T) of every chunk.
    products: PerState,
}

impl Operator for CausalLinearAttention {
    type Kept = Kept;

    fn forward_cpu(&self, inputs: &[Tensor], keep: bool) -> Result<(Vec<Tensor>, Kept)> {
        let [a, b, v] = [HeadsView::of(&inputs[0])?, HeadsView::of(&inputs[1])?, HeadsView::of(&inputs[2])?];
        let (s0, z0) = (Slice::of(&inputs[3])?, Slice::of(&inputs[4])?);
        let Self { groups: Groups { batch, heads, .. }, queries, features, value_width, .. } = *self;
        let size = self.state();
        let states = PerState::new(batch, heads, keep, |row| self.chunks(row).count() * (size + features));
        let pairs = |row| self.chunks(row).map(|(chunk, keys)| chunk.tokens.len() * keys.count).sum();
        let products = PerState::new(batch, heads, keep, pairs);
        let mut num = Output::padded(&[batch, queries, heads, value_width], &self.documents);
        let mut den = Output::padded(&[batch, queries, heads], &self.documents);
        let mut state = Output::unwritten(&[batch, heads, features, value_width]);
        let mut normaliser = Output::unwritten(&[batch, heads, features]);
        let (num_at, den_at) = (num.pointer(), den.pointer());
        let (state_at, normaliser_at) = (state.pointer(), normaliser.pointer());
        self.groups.tasks().for_each_init(Vec::new, |p, (i, g)| {
            for h in self.groups.heads_of(g) {
                let row = i * heads + h;
                // SAFETY: state and normaliser of (i, h) belong to this task.
                let (s, z) =
                    unsafe { (state_at.slice(row * size, size), normaliser_at.slice(row * features, features)) };
                let (mut states, mut products) = unsafe { (states.of(i, h), products.of(i, h)) };
                s.copy_from_slice(&s0[row * size..][..size]);
                z.copy_from_slice(&z0[row * features..][..features]);
                for (chunk, keys) in self.chunks(i) {
                    if chunk.fresh {
                        s.fill(0.0);
                        z.fill(0.0);
                    }
                    if keep {
                        keep_next(&mut states, s);
                        keep_next(&mut states, z);
                    }
                    let a = a.head(i, h, chunk.tokens.clone());
                    let pairs = a.rows * keys.count;
                    p.resize(pairs, 0.0);
                    let p = if keep { take_next(&mut products, pairs) } else { &mut p[..] };
                    masked_product(a, &b, (i, h), &keys, p);
                    // SAFETY: rows of head h of batch row i.
                    let mut out = unsafe {
                        let start = self.at(i, chunk.tokens.start, h) * value_width;
                        num_at.rows(start, a.rows, value_width, heads * value_width)
                    };
                    out.product(1.0, a, Mat::new(s, features, value_width), 0.0);
                    let inside = Mat::new(p, a.rows, keys.count);
                    for (place, run) in placed(&keys.runs) {
                        let inside = inside.block(0..a.rows, place);
                        out.product_in(keys.part(Triangle::Left), 1.0, inside, v.head(i, g, run), 1.0);
                    }
                    simd!(|| {
                        for (r, query) in chunk.tokens.clone().enumerate() {
                            let inside = sum(&p[r * keys.count..][..keys.seen[r]]);
                            // SAFETY: (i, query, h) belongs to this task.
                            unsafe { den_at.slice(self.at(i, query, h), 1)[0] = dot(a.row(r), z) + inside };
                        }
                    });
                    for run in keys.runs {
                        absorb(s, z, b.head(i, h, run.clone()), v.head(i, g, run));
                    }
                }
            }
        });
        Ok((vec![num.tensor()?, den.tensor()?, state.tensor()?, normaliser.tensor()?], Kept { states, products }))
    }

    /// With R, r the gradients of the state after a chunk, and dP = tril(dnum V^T + dden 1^T):
    /// dA = dnum S^T + dden z^T + dP B; dB = V R^T + 1 r^T + dP^T A; dV = B R + P^T dnum; then R += A^T dnum,
    /// r += A^T dden. Later documents of a row begin with nothing: no gradient passes to the state before them.
    fn backward_cpu(
        &self,
        inputs: &[Tensor],
        kept: Kept,
        wanted: &[bool],
        up: &[Tensor],
    ) -> Result<Vec<Option<Tensor>>> {
        let Self { groups: Groups { heads, .. }, features, value_width, .. } = *self;
        let size = self.state();
        let (dnum, dden) = (HeadsView::of(&up[0])?, Slice::of(&up[1])?);
        let (ds_end, dz_end) = (Slice::of(&up[2])?, Slice::of(&up[3])?);
        let [a, b, v] = [HeadsView::of(&inputs[0])?, HeadsView::of(&inputs[1])?, HeadsView::of(&inputs[2])?];
        // Keys that a window still holds have entered nothing: their gradients stay zero.
        let some = self.beside.is_some() || self.past.columns() > 0;
        let by_keys = |x: &Tensor| match some {
            true => Output::zeros(x.dims()),
            false => Output::padded(x.dims(), &self.documents),
        };
        let da = Output::padded(inputs[0].dims(), &self.documents);
        let mut out = vec![da, by_keys(&inputs[1]), by_keys(&inputs[2])];
        out.extend(inputs[3..].iter().map(|x| Output::unwritten(x.dims())));
        let at: Vec<_> = out.iter_mut().map(Output::pointer).collect();

        self.groups.tasks().for_each_init(Vec::new, |dp, (i, kv)| {
            let chunks: Vec<_> = self.chunks(i).collect();
            for h in self.groups.heads_of(kv) {
                let row = i * heads + h;
                // SAFETY: what was kept of (i, h).
                let (states, mut products) = unsafe { (kept.states.of(i, h), kept.products.of(i, h)) };
                let first = if h == self.groups.heads_of(kv).start { 0.0 } else { 1.0 };
                let mut big_r = ds_end[row * size..][..size].to_vec();
                let mut small_r = dz_end[row * features..][..features].to_vec();
                for ((chunk, keys), before) in chunks.iter().zip(states.chunks_exact(size + features)).rev() {
                    let (s, z) = before.split_at(size);
                    let n = keys.count;
                    let (a, dnum) = (a.head(i, h, chunk.tokens.clone()), dnum.head(i, h, chunk.tokens.clone()));
                    let rows = a.rows;
                    let p = &*take_last(&mut products, rows * n);
                    dp.resize(rows * n, 0.0);
                    masked_product(dnum, &v, (i, kv), keys, dp);
                    simd!(|| {
                        for (r, query) in chunk.tokens.clone().enumerate() {
                            let extra = dden[self.at(i, query, h)];
                            dp[r * n..][..keys.seen[r]].iter_mut().for_each(|d| *d += extra);
                        }
                    });
                    // SAFETY: rows of head h of batch row i: this task's alone.
                    let mut da = unsafe { head_rows(at[0], &inputs[0], i, h, &chunk.tokens) };
                    if wanted[0] {
                        da.product(1.0, dnum, Mat::new(s, features, value_width).t(), 0.0);
                    }
                    let (left, turned) = (keys.part(Triangle::Left), keys.part(Triangle::LeftTransposed));
                    for (place, run) in placed(&keys.runs) {
                        let dp = Mat::new(dp, rows, n).block(0..rows, place.clone());
                        let (b, v) = (b.head(i, h, run.clone()), v.head(i, kv, run.clone()));
                        if wanted[0] {
                            da.product_in(left, 1.0, dp, b, 1.0);
                        }
                        if wanted[1] {
                            // SAFETY: rows of head h of batch row i: this task's alone.
                            let mut db = unsafe { head_rows(at[1], &inputs[1], i, h, &run) };
                            db.product(1.0, v, Mat::new(&big_r, features, value_width).t(), 0.0);
                            db.product_in(turned, 1.0, dp.t(), a, 1.0);
                            simd!(|| (0..run.len()).for_each(|r| axpy(db.row(r), 1.0, &small_r)));
                        }
                        if wanted[2] {
                            // SAFETY: rows of kv head `kv` of batch row i: this task's alone.
                            let mut dv = unsafe { head_rows(at[2], &inputs[2], i, kv, &run) };
                            dv.product(1.0, b, Mat::new(&big_r, features, value_width), first);
                            dv.product_in(turned, 1.0, Mat::new(p, rows, n).block(0..rows, place).t(), dnum, 1.0);
                        }
                    }
                    if wanted[0] {
                        simd!(|| {
                            for (r, query) in chunk.tokens.clone().enumerate() {
                                axpy(da.row(r), dden[self.at(i, query, h)], z);
                            }
                        });
                    }
                    if chunk.fresh {
                        big_r.fill(0.0);
                        small_r.fill(0.0);
                        continue;
                    }
                    MatMut::new(&mut big_r, features, value_width).product(1.0, a.t(), dnum, 1.0);
                    simd!(|| {
                        for (r, query) in chunk.tokens.clone().enumerate() {
                            axpy(&mut small_r, dden[self.at(i, query, h)], a.row(r));
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
        gradients_of(out, wanted)
    }
}

/// Rows `tokens` of head `head` in a buffer of `like`'s shape, [B, T, heads, width].
///
/// # Safety
/// The caller's task alone owns that head of batch row `batch`.
unsafe fn head_rows<'a>(
    to: OutputPointer,
    like: &Tensor,
    batch: usize,
    head: usize,
    tokens: &Range<usize>,
) -> MatMut<'a> {
    let &[_, total, heads, width] = like.dims() else { unreachable!("four dimensions were checked") };
    let start = ((batch * total + tokens.start) * heads + head) * width;
    unsafe { to.rows(start, tokens.len(), width, heads * width) }
}
