//! A mixture of experts: which experts a router chooses for a token, the tokens of one expert, and their sum.
//!
//! ```text
//! p = softmax(logits);  w_e = p_e of the k largest, over their sum where normalised;  y = sum_e w_e expert_e(x)
//! ```
//!
//! The choice itself has no gradient; weights and chosen experts have.

use crate::ops::cpu::simd::{axpy, dot, exp_minus, max, simd};
use crate::ops::cpu::{Output, Slice};
use crate::ops::formulas;
use crate::ops::operator::{Operator, apply1, misfit, on_device};
use crate::ops::tape::Var;
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use std::sync::Arc;

/// The tokens that chose an expert: row of the input, and which of its choices it is.
pub type Tokens = Arc<Vec<(usize, usize)>>;

/// `logits` [N, E] -> the choices of `k` experts for each token, and their weights [N, k]. Of equals the first.
pub fn route(logits: &Var, k: usize, normalised: bool) -> Result<(Vec<Tokens>, Var)> {
    let (n, experts) = logits.value().dims2()?;
    if k == 0 || k > experts {
        return Err(Error::Internal(format!("{k} of {experts} experts")));
    }
    let picks = choose(&probabilities(logits.value())?, experts, k);
    let mut chosen = vec![vec![]; experts];
    for (i, &expert) in picks.iter().enumerate() {
        chosen[expert].push((i / k, i % k));
    }
    debug_assert_eq!(picks.len(), n * k);
    let weights = apply1(Weights { picks, k, normalised }, &[logits])?;
    Ok((chosen.into_iter().map(Arc::new).collect(), weights))
}

/// Softmax of the rows of `logits` on the host, where experts are chosen and called one by one.
fn probabilities(logits: &Tensor) -> Result<Vec<f32>> {
    let logits = logits.to_dtype(DType::F32)?;
    let formula = || Ok(formulas::softmax(&logits)?.flatten_all()?.to_vec1()?);
    on_device(&logits, || softmax_rows(&logits), formula)
}

fn softmax_rows(logits: &Tensor) -> Result<Vec<f32>> {
    let mut probabilities = Slice::of(logits)?.to_vec();
    for p in probabilities.chunks_exact_mut(logits.dim(1)?) {
        let m = max(p);
        let total = exp_minus(p, m);
        p.iter_mut().for_each(|p| *p /= total);
    }
    Ok(probabilities)
}

/// The experts with the `k` largest probabilities of every row, the largest first.
fn choose(probabilities: &[f32], experts: usize, k: usize) -> Vec<usize> {
    let best = |p: &[f32]| {
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|&i, &j| p[j].total_cmp(&p[i]).then(i.cmp(&j)));
        order.truncate(k);
        order
    };
    probabilities.chunks_exact(experts).flat_map(best).collect()
}

/// Weights of the experts that were chosen.
struct Weights {
    /// [N, k]
    picks: Vec<usize>,
    k: usize,
    normalised: bool,
}

impl Operator for Weights {
    /// Weights, and the probabilities of all experts.
    type Kept = (Tensor, Vec<f32>);

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let picks: Vec<u32> = self.picks.iter().map(|&expert| expert as u32).collect();
        let picks = Tensor::from_vec(picks, ((), self.k), inputs[0].device())?;
        let weights = formulas::softmax(&inputs[0])?.gather(&picks, 1)?;
        let sum = weights.sum_keepdim(1)?;
        Ok(vec![if self.normalised { weights.broadcast_div(&sum)? } else { weights }])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, Self::Kept)> {
        let ((n, experts), k) = (inputs[0].dims2()?, self.k);
        let probabilities = softmax_rows(&inputs[0])?;
        let mut weights = Output::unwritten(&[n, k]);
        let rows = probabilities.chunks_exact(experts).zip(self.picks.chunks_exact(k));
        for ((p, picks), weights) in rows.zip(weights.data().chunks_exact_mut(k)) {
            let sum: f32 = if self.normalised { picks.iter().map(|&e| p[e]).sum() } else { 1.0 };
            weights.iter_mut().zip(picks).for_each(|(w, &expert)| *w = p[expert] / sum);
        }
        let weights = weights.tensor()?;
        Ok((vec![weights.clone()], (weights, probabilities)))
    }

    fn backward_cpu(
        &self,
        inputs: &[Tensor],
        (weights, probabilities): Self::Kept,
        _: &[bool],
        up: &[Tensor],
    ) -> Result<Vec<Option<Tensor>>> {
        // Softmax over the chosen alone, or over all of which the others get no gradient from above.
        let ((n, experts), k) = (inputs[0].dims2()?, self.k);
        let (ws, gs) = (Slice::of(&weights)?, Slice::of(&up[0])?);
        let mut d = Output::zeros(&[n, experts]);
        for (row, d) in d.data().chunks_exact_mut(experts).enumerate() {
            let (w, g) = (&ws[row * k..][..k], &gs[row * k..][..k]);
            let along = dot(w, g);
            if !self.normalised {
                d.iter_mut().zip(&probabilities[row * experts..]).for_each(|(d, p)| *d = -p * along);
            }
            for (slot, &expert) in self.picks[row * k..][..k].iter().enumerate() {
                d[expert] += w[slot] * if self.normalised { g[slot] - along } else { g[slot] };
            }
        }
        Ok(vec![Some(d.tensor()?)])
    }
}

/// Numbers that `f` makes of the tokens of an expert, as indices on the device of `x`.
fn indices(tokens: &[(usize, usize)], x: &Tensor, f: impl Fn(usize, usize) -> usize) -> Result<Tensor> {
    let all: Vec<u32> = tokens.iter().map(|&(row, slot)| f(row, slot) as u32).collect();
    Ok(Tensor::new(all, x.device())?)
}

/// The rows of `x` [N, D] that `tokens` names: [R, D].
pub fn gather(x: &Var, tokens: &Tokens) -> Result<Var> {
    let (rows, _) = x.value().dims2()?;
    if tokens.iter().any(|&(row, _)| row >= rows) {
        return misfit(format!("rows of experts beyond those of {:?}", x.value().dims()));
    }
    apply1(Gather { rows, tokens: tokens.clone() }, &[x])
}

struct Gather {
    /// N
    rows: usize,
    tokens: Tokens,
}

impl Operator for Gather {
    type Kept = ();
    const MOVES_ONLY: bool = true;
    const BACKWARD_READS_INPUTS: bool = false;

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![inputs[0].index_select(&indices(&self.tokens, &inputs[0], |row, _| row)?, 0)?])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, ())> {
        let d = inputs[0].dim(1)?;
        let mut y = Output::unwritten(&[self.tokens.len(), d]);
        let xs = Slice::of(&inputs[0])?;
        for (y, &(row, _)) in y.data().chunks_exact_mut(d).zip(&*self.tokens) {
            y.copy_from_slice(&xs[row * d..][..d]);
        }
        Ok((vec![y.tensor()?], ()))
    }

    fn backward_cpu(&self, _: &[Tensor], _: (), _: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        let d = up[0].dim(1)?;
        let gs = Slice::of(&up[0])?;
        let mut dx = Output::zeros(&[self.rows, d]);
        for (g, &(row, _)) in gs.chunks_exact(d).zip(&*self.tokens) {
            simd(|| axpy(&mut dx.data()[row * d..][..d], 1.0, g));
        }
        Ok(vec![Some(dx.tensor()?)])
    }
}

/// Sums over experts of `outputs` [R, D] at the tokens that chose them, times `weights` [N, k]: [N, D].
pub fn combine(outputs: &[(Var, Tokens)], weights: &Var, width: usize) -> Result<Var> {
    let (n, k) = weights.value().dims2()?;
    for (output, tokens) in outputs {
        let known = tokens.iter().all(|&(row, slot)| row < n && slot < k);
        if output.value().dims() != [tokens.len(), width] || !known {
            let (dims, count) = (output.value().dims(), tokens.len());
            return misfit(format!(
                "output {dims:?} of an expert for {count} tokens, width {width}, weights [{n}, {k}]"
            ));
        }
    }
    let inputs: Vec<&Var> = std::iter::once(weights).chain(outputs.iter().map(|(output, _)| output)).collect();
    let tokens = outputs.iter().map(|(_, tokens)| tokens.clone()).collect();
    apply1(Combine { tokens, width }, &inputs)
}

struct Combine {
    /// Of each expert.
    tokens: Vec<Tokens>,
    width: usize,
}

impl Operator for Combine {
    type Kept = ();

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let (weights, outputs) = (&inputs[0], &inputs[1..]);
        let (n, k) = weights.dims2()?;
        let flat = weights.reshape((n * k, 1))?;
        let mut y = Tensor::zeros((n, self.width), weights.dtype(), weights.device())?;
        for (output, tokens) in outputs.iter().zip(&self.tokens).filter(|(_, tokens)| !tokens.is_empty()) {
            let shares = flat.index_select(&indices(tokens, weights, |row, slot| row * k + slot)?, 0)?;
            y = y.index_add(&indices(tokens, weights, |row, _| row)?, &output.broadcast_mul(&shares)?, 0)?;
        }
        Ok(vec![y])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, ())> {
        let ((n, k), width) = (inputs[0].dims2()?, self.width);
        let ws = Slice::of(&inputs[0])?;
        let mut y = Output::zeros(&[n, width]);
        for (output, tokens) in inputs[1..].iter().zip(&self.tokens) {
            let values = Slice::of(output)?;
            for (value, &(row, slot)) in values.chunks_exact(width).zip(&**tokens) {
                simd(|| axpy(&mut y.data()[row * width..][..width], ws[row * k + slot], value));
            }
        }
        Ok((vec![y.tensor()?], ()))
    }

    fn backward_cpu(&self, inputs: &[Tensor], _: (), _: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        let ((n, k), width) = (inputs[0].dims2()?, self.width);
        let (ws, gs) = (Slice::of(&inputs[0])?, Slice::of(&up[0])?);
        let mut dw = Output::zeros(&[n, k]);
        let mut gradients = vec![];
        for (value, tokens) in inputs[1..].iter().zip(&self.tokens) {
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
    }
}
