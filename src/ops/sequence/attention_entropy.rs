//! Cross-entropy between attention weights: mean over queries and heads of -sum_j p_ij log a_ij, with p the teacher's
//! softmax row and a the student's row (LoLCATs' optional attention-transfer loss, arXiv 2410.10254).
//!
//! The student's rows are those of a window (or none) and normalised features under one normaliser:
//! a_ij = (gamma e^(s_ij - m_i) [j in window] + phi_ij [j <= i - w]) / (the same summed over j), phi_ij = a_i . b_j.
//! Keys are those of the query's document, the mean is over the tokens of documents. Rows are made, used and dropped a
//! tile at a time; loss and gradient come from the same pass.

use crate::Result;
use crate::ops::Documents;
use crate::ops::attention::Scores;
use crate::ops::cpu::simd::{exp, exp_minus, max, simd, sum};
use crate::ops::cpu::{HeadsView, Output, Slice, matrix::Mat, matrix::MatMut};
use crate::ops::tape::{Var, record1};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use std::ops::Range;

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
    documents: &Documents,
    scores: impl Into<Scores>,
) -> Result<Var> {
    let scores = scores.into();
    let (batch, tokens, heads, features) = a.value().dims4()?;
    let (qs, ks) = (HeadsView::of(q)?, HeadsView::of(k)?);
    let (av, bv) = (a.value().clone(), b.value().clone());
    let (a_heads, b_heads) = (HeadsView::of(&av)?, HeadsView::of(&bv)?);
    let none = Var::constant(Tensor::zeros(heads, candle_core::DType::F32, &Device::Cpu)?);
    let (length, weight) = window.unwrap_or((0, &none));
    let gamma = Slice::of(weight.value())?;
    let group = heads / ks.heads;
    let (mut da, mut db) = (Output::zeros(av.dims()), Output::zeros(bv.dims()));
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

    let counted: usize = (0..batch).flat_map(|i| documents.row(i)).map(|d| d.len()).sum();
    let n = (counted * heads).max(1) as f64;
    let total: f64 = parts.iter().map(|p| p.0).sum();
    let d_gamma: Vec<f32> =
        (0..heads).map(|h| (0..batch).map(|i| parts[i * heads + h].1).sum::<f64>() as f32).collect();
    let loss = Tensor::new((total / n) as f32, &Device::Cpu)?;
    let grads = [da.tensor()?, db.tensor()?, Tensor::from_vec(d_gamma, heads, &Device::Cpu)?];
    record1(&[a, b, weight], loss, move |g| {
        let scale = f64::from(g.to_scalar::<f32>()?) / n;
        grads.into_iter().map(|d| Ok(Some((d * scale)?))).collect()
    })
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
