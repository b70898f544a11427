//! Cross-entropy between attention weights: mean over queries and heads of -sum_j p_ij log a_ij, with p the teacher's
//! softmax row and a the student's row (LoLCATs' optional attention-transfer loss, arXiv 2410.10254).
//!
//! The student's rows are those of a window (or none) and normalised features under one normaliser:
//! a_ij = (gamma e^(s_ij - m_i) [j in window] + phi_ij [j <= i - w]) / (the same summed over j), phi_ij = a_i . b_j.
//! Keys are those of the query's document, the mean is over the tokens of documents. Rows are made, used and dropped a
//! tile at a time; loss and gradient come from the same pass.

use crate::Result;
use crate::ops::Documents;
use crate::ops::attention::{QUERIES, Scores, UNSEEN};
use crate::ops::chunked::{flat, per_state};
use crate::ops::cpu::simd::{exp, exp_minus, max, simd, sum};
use crate::ops::cpu::{HeadsView, Output, Slice, matrix::Mat, matrix::MatMut};
use crate::ops::layout::gather::{mask, only};
use crate::ops::operator::{Operator, apply1};
use crate::ops::tape::Var;
use candle_core::{D, DType, Tensor};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

const TILE: usize = 64;
/// Smallest weight whose logarithm is taken, as in LoLCATs.
const FLOOR: f32 = 1e-12;

/// `q` [B, T, H, K], `k` [B, T, G, K] (teacher's, no gradient), features `a`, `b` [B, T, H, F], and `window`: its length
/// and gamma `[H]`. `None`: features alone, over all keys.
pub fn attention_entropy(
    q: &Tensor,
    k: &Tensor,
    a: &Var,
    b: &Var,
    window: Option<(usize, &Var)>,
    documents: &Arc<Documents>,
    scores: impl Into<Scores>,
) -> Result<Var> {
    let none = Var::constant(Tensor::zeros(a.value().dim(2)?, DType::F32, a.value().device())?);
    let (length, gamma) = window.unwrap_or((0, &none));
    let (q, k) = (Var::constant(q.clone()), Var::constant(k.clone()));
    let call = AttentionEntropy { length, documents: documents.clone(), scores: scores.into() };
    apply1(call, &[a, b, gamma, &q, &k])
}

/// One call. Its inputs are a, b, gamma, q, k.
struct AttentionEntropy {
    /// Of the window; 0: none.
    length: usize,
    documents: Arc<Documents>,
    scores: Scores,
}

impl Operator for AttentionEntropy {
    /// The gradients of the first three inputs for a mean that is a sum.
    type Kept = [Tensor; 3];

    const F32_FROM: usize = 0;

    fn formula(&self, x: &[Tensor]) -> Result<Vec<Tensor>> {
        let tokens = self.documents.tokens();
        let mut total = Tensor::zeros((), x[0].dtype(), x[0].device())?;
        for from in (0..tokens).step_by(QUERIES) {
            total = (total + self.block(x, from..(from + QUERIES).min(tokens))?)?;
        }
        Ok(vec![(total / self.rows(x[0].dim(2)?))?])
    }

    fn forward_cpu(&self, x: &[Tensor], _keep: bool) -> Result<(Vec<Tensor>, Self::Kept)> {
        let (loss, gradients) = self.loss_and_gradients(x)?;
        Ok((vec![loss], gradients))
    }

    fn backward_cpu(
        &self,
        x: &[Tensor],
        gradients: Self::Kept,
        _: &[bool],
        up: &[Tensor],
    ) -> Result<Vec<Option<Tensor>>> {
        let scale = f64::from(up[0].to_scalar::<f32>()?) / self.rows(x[0].dim(2)?);
        let scaled = gradients.into_iter().map(|d| Ok(Some((d * scale)?))).chain([Ok(None), Ok(None)]);
        scaled.collect()
    }
}

impl AttentionEntropy {
    /// How many queries and heads the mean counts.
    fn rows(&self, heads: usize) -> f64 {
        let rows = (0..self.documents.batch()).flat_map(|i| self.documents.row(i));
        (rows.map(|d| d.len()).sum::<usize>() * heads).max(1) as f64
    }

    /// The loss of a block of queries, summed, over the keys so far.
    fn block(&self, x: &[Tensor], block: Range<usize>) -> Result<Tensor> {
        let (batch, _, heads, _) = x[0].dims4()?;
        let (n, m, device) = (block.len(), block.end, x[0].device());
        let product = |queries: &Tensor, keys: &Tensor| -> Result<Tensor> {
            let queries = flat(&per_state(&queries.narrow(1, block.start, n)?, heads, 1)?)?;
            let keys = flat(&per_state(&keys.narrow(1, 0, m)?, heads, 1)?)?;
            Ok(queries.matmul(&keys.t()?)?.reshape((batch, heads, n, m))?)
        };
        let mut scores = (product(&x[3], &x[4])?.detach() * f64::from(self.scores.scale))?;
        if let Some(cap) = self.scores.cap.map(f64::from) {
            scores = ((scores / cap)?.tanh()? * cap)?;
        }
        let (windowed, linear) = self.keys(&block);
        let seen = windowed.iter().zip(&linear).map(|(a, b)| *a || *b).collect();
        let of = |yes: Vec<bool>| mask(yes, &[batch, 1, n, m], device);
        let (windowed, linear, seen) = (of(windowed)?, of(linear)?, of(seen)?);
        let p = exponentials(&scores, &seen)?;
        // A row of a document has 1 at least; padding, with nothing, counts nothing.
        let p = p.broadcast_div(&p.sum_keepdim(D::Minus1)?.maximum(1.0)?)?;
        let gamma = x[2].reshape((1, heads, 1, 1))?;
        let window = exponentials(&scores, &windowed)?.broadcast_mul(&gamma)?;
        let weights = (window + only(&linear, &product(&x[0], &x[1])?)?)?;
        let mut den = weights.sum_keepdim(D::Minus1)?;
        if self.length == 0 {
            den = (den + 1e-12)?;
        }
        let live = weights.broadcast_div(&den)?.gt(f64::from(FLOOR))?;
        let counts = only(&live, &p.detach())?.sum_keepdim(D::Minus1)?;
        let some = den.gt(0.0)?;
        let safe = |mask: &Tensor, x: &Tensor| mask.where_cond(x, &x.ones_like()?)?.log();
        let log_den = (safe(&some, &den)? * counts)?.sum_all()?;
        let log_weights = (safe(&live, &weights)? * &p)?.sum_all()?;
        let floored = (p.sum_all()? - only(&live, &p)?.sum_all()?)?;
        Ok(((log_den - log_weights)? - (floored * f64::from(FLOOR.ln()))?)?)
    }

    /// Whether a query of a block sees a key so far in the window, and whether it sees it by its features: [B, n, m].
    fn keys(&self, block: &Range<usize>) -> (Vec<bool>, Vec<bool>) {
        let (batch, m) = (self.documents.batch(), block.end);
        let [mut windowed, mut linear] = [0; 2].map(|_| vec![false; batch * block.len() * m]);
        for row in 0..batch {
            for document in self.documents.row(row) {
                for t in document.start.max(block.start)..document.end.min(block.end) {
                    let at = (row * block.len() + t - block.start) * m;
                    let first = if self.length == 0 { t + 1 } else { (t + 1).saturating_sub(self.length) };
                    let first = first.max(document.start);
                    linear[at + document.start..at + first].fill(true);
                    windowed[at + first..at + t + 1].fill(true);
                }
            }
        }
        (windowed, linear)
    }

    fn loss_and_gradients(&self, x: &[Tensor]) -> Result<(Tensor, [Tensor; 3])> {
        let (batch, tokens, heads, features) = x[0].dims4()?;
        let (a_heads, b_heads, gamma) = (HeadsView::of(&x[0])?, HeadsView::of(&x[1])?, Slice::of(&x[2])?);
        let (qs, ks) = (HeadsView::of(&x[3])?, HeadsView::of(&x[4])?);
        let (length, scores, documents) = (self.length, self.scores, &self.documents);
        let group = heads / ks.heads;
        let (mut da, mut db) = (Output::zeros(x[0].dims()), Output::zeros(x[1].dims()));
        let (da_at, db_at) = (da.pointer(), db.pointer());

        let parts: Vec<(f64, f64)> = (0..batch * heads)
            .into_par_iter()
            .map_init(Default::default, |(p, phi): &mut (Vec<f32>, Vec<f32>), task| {
                let (i, h) = (task / heads, task % heads);
                let (mut loss, mut d_gamma) = (0.0, 0.0);
                for (rows, keys) in documents.row(i).iter().cloned().flat_map(tiles) {
                    let n = keys.len();
                    p.resize(rows.len() * n, 0.0);
                    phi.resize(rows.len() * n, 0.0);
                    let (q, k) = (qs.head(i, h, rows.clone()), ks.head(i, h / group, keys.clone()));
                    let (a, b) = (a_heads.head(i, h, rows.clone()), b_heads.head(i, h, keys.clone()));
                    MatMut::new(p, rows.len(), n).product(scores.scale, q, k.t(), 0.0);
                    MatMut::new(phi, rows.len(), n).product(1.0, a, b.t(), 0.0);
                    simd(|| {
                        scores.limit(p);
                        for (r, t) in (rows.start - keys.start..n).enumerate() {
                            let (p, phi) = (&mut p[r * n..][..n], &mut phi[r * n..][..n]);
                            let first = if length == 0 { t + 1 } else { (t + 1).saturating_sub(length) };
                            let row = row_loss(&mut p[..t + 1], &mut phi[..t + 1], first, gamma[h]);
                            phi[first..].fill(0.0);
                            loss += f64::from(row.0);
                            d_gamma += f64::from(row.1);
                        }
                    });
                    // phi now holds the gradient of the linear weights.
                    let d = Mat::new(phi, rows.len(), n);
                    let width = heads * features;
                    // SAFETY: head h of batch row i belongs to this task.
                    unsafe {
                        let at = ((i * tokens + rows.start) * heads + h) * features;
                        da_at.rows(at, rows.len(), features, width).product(1.0, d, b, 0.0);
                        let at = ((i * tokens + keys.start) * heads + h) * features;
                        db_at.rows(at, n, features, width).product(1.0, d.t(), a, 1.0);
                    }
                }
                (loss, d_gamma)
            })
            .collect();

        let total: f64 = parts.iter().map(|p| p.0).sum();
        let d_gamma: Vec<f32> =
            (0..heads).map(|h| (0..batch).map(|i| parts[i * heads + h].1).sum::<f64>() as f32).collect();
        let d_gamma = Tensor::from_vec(d_gamma, heads, x[0].device())?;
        let loss = Tensor::new((total / self.rows(heads)) as f32, x[0].device())?;
        Ok((loss, [da.tensor()?, db.tensor()?, d_gamma]))
    }
}

/// e^(s - m) of the scores that are `seen`, m the largest of them in a row; zero elsewhere.
fn exponentials(scores: &Tensor, seen: &Tensor) -> Result<Tensor> {
    let seen = seen.broadcast_as(scores.shape())?;
    let scores = seen.where_cond(scores, &(scores.zeros_like()? + UNSEEN)?)?;
    let e = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    Ok(seen.where_cond(&e, &e.zeros_like()?)?)
}

/// Queries of each tile of a document, and the keys so far.
fn tiles(document: Range<usize>) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    document.clone().step_by(TILE).map(move |start| {
        let end = (start + TILE).min(document.end);
        (start..end, document.start..end)
    })
}

/// One query. `p`: teacher's scores of the keys so far; `phi`: feature products; keys from `first` on are in the window.
/// Returns the loss and dloss/dgamma; `phi[..first]` becomes dloss/dphi.
#[inline(always)]
fn row_loss(p: &mut [f32], phi: &mut [f32], first: usize, gamma: f32) -> (f32, f32) {
    let windowed = first < p.len();
    let m_window = if windowed { max(&p[first..]) } else { 0.0 };
    let mut window_sum = 0.0;
    for j in first..p.len() {
        phi[j] = exp(p[j] - m_window);
        window_sum += phi[j];
    }
    let m = max(p);
    let scale = 1.0 / exp_minus(p, m);
    let den = gamma * window_sum + sum(&phi[..first]) + if windowed { 0.0 } else { 1e-12 };
    let inverse = 1.0 / den;
    // loss = -sum p log(n / den), each weight clamped below at FLOOR, where it passes no gradient.
    let (mut loss, mut live, mut d_gamma) = (0.0, 0.0, 0.0);
    for j in 0..p.len() {
        p[j] *= scale;
        let n = if j < first { phi[j] } else { gamma * phi[j] };
        let weight = n * inverse;
        if weight > FLOOR {
            loss -= p[j] * weight.ln();
            live += p[j];
        } else {
            loss -= p[j] * FLOOR.ln();
            p[j] = 0.0;
        }
    }
    for j in 0..first {
        phi[j] = live * inverse - if p[j] > 0.0 { p[j] / phi[j] } else { 0.0 };
    }
    for j in first..p.len() {
        d_gamma += live * inverse * phi[j] - p[j] / gamma;
    }
    (loss, d_gamma)
}
