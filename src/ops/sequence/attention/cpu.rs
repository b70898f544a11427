//! The kernels of the CPU.

use super::{Attention, Keys, Scores};
use crate::Result;
use crate::ops::attention_mask::{SequenceChunk, placed};
use crate::ops::cpu::simd::{axpy, dot, exp_minus, max, simd, sum, tanh};
use crate::ops::cpu::{HeadsView, Output, Slice, gradients_of, matrix::Mat, matrix::MatMut};
use candle_core::Tensor;
use rayon::prelude::*;
use std::ops::Range;

/// Query rows of one tile.
const TILE: usize = 64;

impl Scores {
    /// The caps of scores that are scaled already.
    #[inline(always)]
    pub(crate) fn limit(self, scores: &mut [f32]) {
        if let Some(cap) = self.cap {
            scores.iter_mut().for_each(|s| *s = cap * tanh(*s / cap));
        }
    }

    /// Derivatives of capped scores by what was capped.
    #[inline(always)]
    fn slopes(self, scores: &[f32], slopes: &mut Vec<f32>) {
        slopes.clear();
        if let Some(cap) = self.cap {
            slopes.extend(scores.iter().map(|s| 1.0 - (s / cap) * (s / cap)));
        }
    }
}

impl Attention {
    fn tiles(&self, batch: usize) -> impl Iterator<Item = (SequenceChunk, Keys)> + '_ {
        self.past.tiles(&self.documents, batch, TILE).map(|tile| {
            let keys = Keys::of(self.mask, &tile);
            (tile, keys)
        })
    }

    /// Index of (batch row, query, head) in a `[B, Tq, H]` tensor.
    fn at(&self, batch: usize, query: usize, head: usize) -> usize {
        (batch * self.queries + query) * self.groups.heads + head
    }
}

/// Scores of a tile: row r holds s_ij for the tile's keys, those that it does not see zeroed later.
fn scores(q: Mat, k: &HeadsView, (b, g): (usize, usize), keys: &Keys, scale: f32, buffer: &mut Vec<f32>) {
    buffer.resize(q.rows * keys.count, 0.0);
    for (place, run) in placed(&keys.runs) {
        let mut all = MatMut::new(buffer, q.rows, keys.count);
        all.block(0..q.rows, place).product(scale, q, k.head(b, g, run).t(), 0.0);
    }
}

impl Attention {
    pub(super) fn forward(&self, x: &[Tensor], _keep: bool) -> Result<(Vec<Tensor>, Vec<f32>)> {
        let (q, k, v) = (HeadsView::of(&x[0])?, HeadsView::of(&x[1])?, HeadsView::of(&x[2])?);
        let rows = [self.groups.batch, self.queries, self.groups.heads];
        let width = self.value_width;
        let mut num = Output::padded(&[rows[0], rows[1], rows[2], width], &self.documents);
        let (mut den, mut maxima) = (Output::padded(&rows, &self.documents), Output::padded(&rows, &self.documents));
        let (num_at, den_at, max_at) = (num.pointer(), den.pointer(), maxima.pointer());
        self.groups.tasks().for_each_init(Vec::new, |buffer, (b, g)| {
            for h in self.groups.heads_of(g) {
                for (tile, keys) in self.tiles(b) {
                    scores(q.head(b, h, tile.tokens.clone()), &k, (b, g), &keys, self.scores.scale, buffer);
                    simd(|| {
                        self.scores.limit(buffer);
                        for (r, row) in buffer.chunks_exact_mut(keys.count).enumerate() {
                            let [sinks, span] = keys.seen(r);
                            row[sinks.end..span.start].fill(0.0);
                            row[span.end..].fill(0.0);
                            let (a, b_max) = (max(&row[sinks.clone()]), max(&row[span.clone()]));
                            let m = if a > b_max || a.is_nan() { a } else { b_max };
                            let at = self.at(b, tile.tokens.start + r, h);
                            // SAFETY: (b, query, h) belongs to this task alone.
                            unsafe {
                                max_at.slice(at, 1)[0] = m;
                                den_at.slice(at, 1)[0] = exp_minus(&mut row[sinks], m) + exp_minus(&mut row[span], m);
                            }
                        }
                    });
                    let start = self.at(b, tile.tokens.start, h) * width;
                    // SAFETY: rows of head h of this task's batch row.
                    let mut out = unsafe { num_at.rows(start, tile.tokens.len(), width, self.groups.heads * width) };
                    let weights = Mat::new(buffer, out.rows, keys.count);
                    for (place, run) in placed(&keys.runs) {
                        let beta = if place.start == 0 { 0.0 } else { 1.0 };
                        out.product(1.0, weights.block(0..weights.rows, place), v.head(b, g, run), beta);
                    }
                }
            }
        });
        Ok((vec![num.tensor()?, den.tensor()?], maxima.data().to_vec()))
    }

    /// With P = exp(s - m) and dP_ij = dnum_i.v_j + dden_i: dv_j += P_ij dnum_i, ds_ij = P_ij dP_ij, and the maximum's
    /// own share, minus the sum of that row, goes to the key that attains it.
    pub(super) fn backward(
        &self,
        x: &[Tensor],
        maxima: Vec<f32>,
        wanted: &[bool],
        up: &[Tensor],
    ) -> Result<Vec<Option<Tensor>>> {
        let (q, k, v) = (HeadsView::of(&x[0])?, HeadsView::of(&x[1])?, HeadsView::of(&x[2])?);
        let (dnum, dden) = (HeadsView::of(&up[0])?, Slice::of(&up[1])?);
        let (width, kv) = (q.width, self.groups.kv_heads);
        let mut dq = Output::padded(x[0].dims(), &self.documents);
        let mut dk = Output::zeros(x[1].dims());
        let mut dv = Output::zeros(x[2].dims());
        let (dq_at, dk_at, dv_at) = (dq.pointer(), dk.pointer(), dv.pointer());
        self.groups.tasks().for_each_init(Default::default, |buffers: &mut [Vec<f32>; 3], (b, g)| {
            let [weights, ds, slopes] = buffers;
            for h in self.groups.heads_of(g) {
                for (tile, keys) in self.tiles(b) {
                    let (rows, n) = (tile.tokens.len(), keys.count);
                    let q_rows = q.head(b, h, tile.tokens.clone());
                    let dnum_rows = dnum.head(b, h, tile.tokens.clone());
                    scores(q_rows, &k, (b, g), &keys, self.scores.scale, weights);
                    if wanted[0] || wanted[1] {
                        scores(dnum_rows, &v, (b, g), &keys, 1.0, ds);
                    }
                    simd(|| {
                        self.scores.limit(weights);
                        self.scores.slopes(weights, slopes);
                        for r in 0..rows {
                            let [sinks, span] = keys.seen(r);
                            let at = self.at(b, tile.tokens.start + r, h);
                            let row = &mut weights[r * n..][..n];
                            row[sinks.end..span.start].fill(0.0);
                            row[span.end..].fill(0.0);
                            let m = maxima[at];
                            let peak = |part: &Range<usize>| {
                                Some(part.start + row[part.clone()].iter().position(|&s| s == m)?)
                            };
                            let peak = peak(&sinks).or_else(|| peak(&span)).unwrap_or(span.start);
                            exp_minus(&mut row[sinks.clone()], m);
                            exp_minus(&mut row[span.clone()], m);
                            if wanted[0] || wanted[1] {
                                let d = &mut ds[r * n..][..n];
                                d[sinks.end..span.start].fill(0.0);
                                d[span.end..].fill(0.0);
                                let extra = dden[at];
                                let mut total = 0.0;
                                for part in [sinks, span] {
                                    let d = &mut d[part.clone()];
                                    for (d, p) in d.iter_mut().zip(&row[part]) {
                                        *d = (*d + extra) * p;
                                    }
                                    total += sum(d);
                                }
                                d[peak] -= total;
                            }
                        }
                        ds.iter_mut().zip(slopes.iter()).for_each(|(d, slope)| *d *= slope);
                    });
                    let p = Mat::new(weights, rows, n);
                    for (place, run) in placed(&keys.runs) {
                        let (m, first) = (run.len(), (b * self.keys + run.start) * kv + g);
                        // SAFETY: dq rows of head h, dk and dv rows of kv head g: this task's alone.
                        unsafe {
                            if wanted[2] {
                                let mut dv = dv_at.rows(first * v.width, m, v.width, kv * v.width);
                                dv.product(1.0, p.block(0..rows, place.clone()).t(), dnum_rows, 1.0);
                            }
                            if !(wanted[0] || wanted[1]) {
                                continue;
                            }
                            let d = Mat::new(ds, rows, n).block(0..rows, place.clone());
                            if wanted[0] {
                                let start = self.at(b, tile.tokens.start, h) * width;
                                let mut dq = dq_at.rows(start, rows, width, self.groups.heads * width);
                                let beta = if place.start == 0 { 0.0 } else { 1.0 };
                                dq.product(self.scores.scale, d, k.head(b, g, run), beta);
                            }
                            if wanted[1] {
                                let mut dk = dk_at.rows(first * width, m, width, kv * width);
                                dk.product(self.scores.scale, d.t(), q_rows, 1.0);
                            }
                        }
                    }
                }
            }
        });
        gradients_of(vec![dq, dk, dv], wanted)
    }
}

impl Attention {
    /// [`super::attention_step`].
    pub(super) fn step(&self, x: &[Tensor; 3]) -> Result<(Tensor, Tensor)> {
        let (q, k, v) = (HeadsView::of(&x[0])?, HeadsView::of(&x[1])?, HeadsView::of(&x[2])?);
        let how = self.scores;
        let group = q.heads / k.heads;
        let mut num = Output::zeros(&[q.batch, 1, q.heads, v.width]);
        let mut den = Output::zeros(&[q.batch, 1, q.heads]);
        let tasks = num.data().par_chunks_mut(v.width).zip(den.data().par_iter_mut()).enumerate();
        tasks.for_each_init(Vec::new, |scores, (i, (num, den))| {
            let (b, h) = (i / q.heads, i % q.heads);
            let Some(tile) = self.past.tiles(&self.documents, b, 1).next() else { return };
            let keys = Keys::of(self.mask, &tile);
            let query = q.head(b, h, 0..1).row(0);
            simd(|| {
                scores.clear();
                for run in &keys.runs {
                    let keys = k.head(b, h / group, run.clone());
                    scores.extend((0..run.len()).map(|j| how.scale * dot(query, keys.row(j))));
                }
                how.limit(scores);
                let m = max(scores);
                *den = exp_minus(scores, m);
                for (place, run) in placed(&keys.runs) {
                    let values = v.head(b, h / group, run);
                    for (j, p) in scores[place].iter().enumerate() {
                        axpy(num, *p, values.row(j));
                    }
                }
            });
        });
        Ok((num.tensor()?, den.tensor()?))
    }
}
