//! Cross-entropy of targets, with its gradient.

use super::{Counted, Head, IGNORE, slice_rows};
use crate::Result;
use crate::ops::cpu::simd::{max, simd};
use crate::ops::cpu::{Output, Slice, blocks, matrix::Mat, matrix::MatMut};
use crate::ops::formulas;
use crate::ops::operator::{Operator, apply1, by_graph, misfit};
use crate::ops::tape::Var;
use candle_core::Tensor;
use rayon::prelude::*;

/// Mean cross-entropy, in nats, of `hidden` [B, T, D] through the frozen `head` against B*T `targets`.
pub fn cross_entropy(hidden: &Var, head: &Head, targets: &[u32]) -> Result<Var> {
    let (vocab, d) = head.weight.dims2()?;
    let known = targets.iter().all(|&t| t == IGNORE || (t as usize) < vocab);
    if hidden.value().elem_count() != targets.len() * d || !known {
        let (hidden, count) = (hidden.value().dims(), targets.len());
        return misfit(format!("cross-entropy of {hidden:?} by a head of [{vocab}, {d}] and {count} targets"));
    }
    let counted = targets.iter().filter(|&&t| t != IGNORE).count().max(1);
    let operator = CrossEntropy { cap: head.cap, targets: targets.to_vec(), counted };
    apply1(operator, &[hidden, &head.weight.clone().into()])
}

struct CrossEntropy {
    cap: Option<f32>,
    targets: Vec<u32>,
    /// Tokens with a target, 1 without any.
    counted: usize,
}

impl CrossEntropy {
    /// The part of the loss that the `logits` [R, vocab] of a slice make.
    fn of_slice(&self, logits: &Tensor, slice: &Counted) -> Result<Tensor> {
        let p = formulas::log_softmax(&Head::limited(self.cap, logits.clone())?)?;
        Ok((p.gather(&slice.targets, 1)?.sum_all()? * (-1.0 / self.counted as f64))?)
    }

    fn slices(&self, hidden: &Tensor, head: &Tensor) -> Result<impl Iterator<Item = Result<Counted>>> {
        Ok(Counted::slices(&self.targets, slice_rows(head.dim(0)?), hidden))
    }
}

impl Operator for CrossEntropy {
    /// The gradient, made in the same pass, so that no logits are kept or computed twice.
    type Kept = Option<Tensor>;
    const F32_FROM: usize = 0;
    const BACKWARD_READS_INPUTS: bool = false;

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let (hidden, head) = (inputs[0].reshape(((), inputs[1].dim(1)?))?, &inputs[1]);
        let mut loss = Tensor::zeros((), hidden.dtype(), hidden.device())?;
        for slice in self.slices(&hidden, head)? {
            let slice = slice?;
            let logits = hidden.index_select(&slice.rows, 0)?.matmul(&head.t()?)?;
            loss = (loss + self.of_slice(&logits, &slice)?)?;
        }
        Ok(vec![loss])
    }

    /// Slice by slice, as the formula: one graph over all would hold the logits of all tokens, and make a gradient of the
    /// head.
    fn formula_gradients(&self, inputs: &[Tensor], _: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        let (hidden, head) = (inputs[0].reshape(((), inputs[1].dim(1)?))?, &inputs[1]);
        let (mut rows, mut gradients) = (vec![], vec![]);
        for slice in self.slices(&hidden, head)? {
            let slice = slice?;
            let logits = hidden.index_select(&slice.rows, 0)?.matmul(&head.t()?)?;
            let formula = |logits: &[Tensor]| Ok(vec![self.of_slice(&logits[0], &slice)?]);
            for d in by_graph(formula, &[logits], &[true], up)?.into_iter().flatten() {
                gradients.push(d.matmul(head)?);
            }
            rows.push(slice.rows);
        }
        let sum = hidden.zeros_like()?;
        let sum = if gradients.is_empty() {
            sum
        } else {
            sum.index_add(&Tensor::cat(&rows, 0)?, &Tensor::cat(&gradients, 0)?, 0)?
        };
        Ok(vec![Some(sum.reshape(inputs[0].shape())?), None])
    }

    fn forward_cpu(&self, inputs: &[Tensor], keep: bool) -> Result<(Vec<Tensor>, Option<Tensor>)> {
        let (cap, want, counted, targets) = (self.cap, keep, self.counted, &self.targets);
        let (hidden, head) = (&inputs[0], &inputs[1]);
        let (vocab, d) = head.dims2()?;
        let (hs, ws) = (Slice::of(hidden)?, Slice::of(head)?);
        let head_matrix = Mat::new(&ws, vocab, d);
        let mut grad = Output::unwritten(if want { hidden.dims() } else { &[0] });
        let at = grad.pointer();
        let losses: Vec<f64> = blocks(targets.len(), slice_rows(vocab))
            .map_init(Default::default, |(logits, slopes): &mut (Vec<f32>, Vec<f32>), rows| {
                logits.resize(rows.len() * vocab, 0.0);
                let h = Mat::new(&hs[rows.start * d..rows.end * d], rows.len(), d);
                MatMut::new(logits, rows.len(), vocab).product(1.0, h, head_matrix.t(), 0.0);
                simd(|| Head::limit(cap, logits));
                slopes.clear();
                if let Some(cap) = cap.filter(|_| want) {
                    slopes.extend(logits.iter().map(|l| 1.0 - (l / cap) * (l / cap)));
                }
                let mut loss = 0.0;
                for (row, &target) in logits.chunks_exact_mut(vocab).zip(&targets[rows.clone()]) {
                    if target == IGNORE {
                        row.fill(0.0);
                        continue;
                    }
                    let target = target as usize;
                    let truth = row[target];
                    let log_sum = softmax_in_place(row);
                    loss += f64::from(log_sum - truth);
                    row[target] -= 1.0;
                }
                if want {
                    logits.iter_mut().zip(slopes.iter()).for_each(|(d, slope)| *d *= slope);
                    // SAFETY: rows of this slice alone.
                    let mut dh = unsafe { at.rows(rows.start * d, rows.len(), d, d) };
                    dh.product(1.0 / counted as f32, Mat::new(logits, rows.len(), vocab), head_matrix, 0.0);
                }
                loss
            })
            .collect();
        let loss = Tensor::new((losses.iter().sum::<f64>() / counted as f64) as f32, hidden.device())?;
        Ok((vec![loss], if want { Some(grad.tensor()?) } else { None }))
    }

    fn backward_cpu(
        &self,
        _: &[Tensor],
        kept: Option<Tensor>,
        _: &[bool],
        up: &[Tensor],
    ) -> Result<Vec<Option<Tensor>>> {
        let scale = f64::from(up[0].to_scalar::<f32>()?);
        let scaled = |d: Tensor| if scale == 1.0 { Ok(d) } else { d * scale };
        Ok(vec![kept.map(scaled).transpose()?, None])
    }
}

/// logits -> probabilities; returns log sum exp of the logits.
fn softmax_in_place(row: &mut [f32]) -> f32 {
    simd(|| {
        let m = max(row);
        let total = crate::ops::cpu::simd::exp_minus(row, m);
        let scale = 1.0 / total;
        row.iter_mut().for_each(|p| *p *= scale);
        m + total.ln()
    })
}
