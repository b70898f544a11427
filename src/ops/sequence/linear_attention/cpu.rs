//! The kernels of the CPU.

use super::{CausalLinearAttention, Keys};
use crate::Result;
use crate::ops::attention_mask::placed;
use crate::ops::cpu::matrix::{Mat, MatMut, Triangle};
use crate::ops::cpu::simd::{axpy, dot, simd, sum};
use crate::ops::cpu::{Groups, HeadsView, Output, OutputPointer, Slice, gradients_of};
use crate::ops::recurrence::{PerState, keep_next, take_last, take_next};
use candle_core::Tensor;
use rayon::prelude::*;
use std::ops::Range;

impl CausalLinearAttention {
    fn at(&self, batch: usize, query: usize, head: usize) -> usize {
        (batch * self.queries + query) * self.groups.heads + head
    }

    fn state(&self) -> usize {
        self.features * self.value_width
    }
}

impl Keys {
    fn part(&self, triangle: Triangle) -> Triangle {
        if self.triangular { triangle } else { Triangle::None }
    }
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
pub(super) struct Kept {
    /// S and z before every chunk.
    states: PerState,
    /// tril(A B^T) of every chunk.
    products: PerState,
}

impl CausalLinearAttention {
    pub(super) fn forward(&self, inputs: &[Tensor], keep: bool) -> Result<(Vec<Tensor>, Kept)> {
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
    pub(super) fn backward(
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
