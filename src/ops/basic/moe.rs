//! A mixture of experts: which experts a router chooses for a token, the tokens of one expert, and their sum.
//!
//! ```text
//! p = softmax(logits);  w_e = p_e of the k largest, over their sum where normalised;  y = sum_e w_e expert_e(x)
//! ```
//!
//! The choice itself has no gradient; weights and chosen experts have.

use crate::ops::cpu::simd::{axpy, dot, exp_minus, max, simd};
use crate::ops::cpu::{Output, Slice};
use crate::ops::tape::{Var, record1};
use crate::{Error, Result};
use candle_core::Tensor;
use std::sync::Arc;

/// The tokens that chose an expert: row of the input, and which of its choices it is.
pub type Tokens = Arc<Vec<(usize, usize)>>;

/// `logits` [N, E] -> the choices of `k` experts for each token, and their weights [N, k]. Of equals the first.
pub fn route(logits: &Var, k: usize, normalised: bool) -> Result<(Vec<Tokens>, Var)> {
    let (n, experts) = logits.value().dims2()?;
    if k == 0 || k > experts {
        return Err(Error::Internal(format!("{k} of {experts} experts")));
    }
    let mut chosen = vec![vec![]; experts];
    let mut picks = vec![0; n * k];
    let mut probabilities = Slice::of(logits.value())?.to_vec();
    let mut weights = Output::unwritten(&[n, k]);
    for (row, p) in probabilities.chunks_exact_mut(experts).enumerate() {
        let m = max(p);
        let total = exp_minus(p, m);
        p.iter_mut().for_each(|p| *p /= total);
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|&i, &j| p[j].total_cmp(&p[i]).then(i.cmp(&j)));
        let sum: f32 = if normalised { order[..k].iter().map(|&e| p[e]).sum() } else { 1.0 };
        for (slot, &expert) in order[..k].iter().enumerate() {
            chosen[expert].push((row, slot));
            picks[row * k + slot] = expert;
            weights.data()[row * k + slot] = p[expert] / sum;
        }
    }
    let weights = weights.tensor()?;
    let chosen = chosen.into_iter().map(Arc::new).collect();
    let kept = weights.clone();
    let weights = record1(&[logits], weights, move |g| {
        // Softmax over the chosen alone, or over all of which the others get no gradient from above.
        let (ws, gs) = (Slice::of(&kept)?, Slice::of(&g)?);
        let mut d = Output::zeros(&[n, experts]);
        for (row, d) in d.data().chunks_exact_mut(experts).enumerate() {
            let (w, g) = (&ws[row * k..][..k], &gs[row * k..][..k]);
            let along = dot(w, g);
            if !normalised {
                d.iter_mut().zip(&probabilities[row * experts..]).for_each(|(d, p)| *d = -p * along);
            }
            for (slot, &expert) in picks[row * k..][..k].iter().enumerate() {
                d[expert] += w[slot] * if normalised { g[slot] - along } else { g[slot] };
            }
        }
        Ok(vec![Some(d.tensor()?)])
    })?;
    Ok((chosen, weights))
}

/// The rows of `x` [N, D] that `tokens` names: [R, D].
pub fn gather(x: &Var, tokens: &Tokens) -> Result<Var> {
    let (n, d) = x.value().dims2()?;
    let mut y = Output::unwritten(&[tokens.len(), d]);
    let xs = Slice::of(x.value())?;
    for (y, &(row, _)) in y.data().chunks_exact_mut(d).zip(&**tokens) {
        y.copy_from_slice(&xs[row * d..][..d]);
    }
    let (y, tokens) = (y.tensor()?, tokens.clone());
    record1(&[x], y, move |g| {
        let gs = Slice::of(&g)?;
        let mut dx = Output::zeros(&[n, d]);
        for (g, &(row, _)) in gs.chunks_exact(d).zip(&*tokens) {
            simd(|| axpy(&mut dx.data()[row * d..][..d], 1.0, g));
        }
        Ok(vec![Some(dx.tensor()?)])
    })
}

/// Sums over experts of `outputs` [R, D] at the tokens that chose them, times `weights` [N, k]: [N, D].
pub fn combine(outputs: &[(Var, Tokens)], weights: &Var, width: usize) -> Result<Var> {
    let (n, k) = weights.value().dims2()?;
    let ws = Slice::of(weights.value())?.to_vec();
    let mut y = Output::zeros(&[n, width]);
    for (output, tokens) in outputs {
        let values = Slice::of(output.value())?;
        for (value, &(row, slot)) in values.chunks_exact(width).zip(&**tokens) {
            simd(|| axpy(&mut y.data()[row * width..][..width], ws[row * k + slot], value));
        }
    }
    let kept: Vec<(Tensor, Tokens)> =
        outputs.iter().map(|(output, tokens)| (output.value().clone(), tokens.clone())).collect();
    let inputs: Vec<&Var> = std::iter::once(weights).chain(outputs.iter().map(|(output, _)| output)).collect();
    record1(&inputs, y.tensor()?, move |g| {
        let gs = Slice::of(&g)?;
        let mut dw = Output::zeros(&[n, k]);
        let mut gradients = vec![];
        for (value, tokens) in &kept {
            let values = Slice::of(value)?;
            let mut d = Output::zeros(value.dims());
            let rows = d.data().chunks_exact_mut(width).zip(values.chunks_exact(width)).zip(&**tokens);
            for ((d, value), &(row, slot)) in rows {
                let (g, at) = (&gs[row * width..][..width], row * k + slot);
                simd(|| {
                    axpy(d, ws[at], g);
                    dw.data()[at] = dot(g, value);
                });
            }
            gradients.push(Some(d.tensor()?));
        }
        Ok(std::iter::once(Some(dw.tensor()?)).chain(gradients).collect())
    })
}
