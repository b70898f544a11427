//! What models say of the same tokens: likelihoods, and divergence from the first, a teacher.

use super::{Counted, Head, IGNORE, slice_rows};
use crate::Result;
use crate::ops::cpu::simd::{exp, max, simd};
use crate::ops::cpu::{Slice, blocks, matrix::Mat, matrix::MatMut};
use crate::ops::formulas;
use crate::ops::operator::{as_f32, misfit, on_device};
use candle_core::{D, DType, Tensor};
use rayon::prelude::*;

/// Sums over tokens with a target, for one model.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sums {
    pub tokens: u64,
    /// Negative log-likelihood, nats.
    pub nll: f64,
    /// KL(teacher || model), nats.
    pub kl: f64,
    /// Tokens whose most likely successor is the teacher's.
    pub agree: u64,
}

impl std::ops::AddAssign<&Sums> for Sums {
    fn add_assign(&mut self, other: &Sums) {
        self.tokens += other.tokens;
        self.nll += other.nll;
        self.kl += other.kl;
        self.agree += other.agree;
    }
}

/// Scores the first of `models` (hidden states [B, T, D] and head) as the teacher and all against it.
pub fn compare(models: &[(&Tensor, &Head)], targets: &[u32]) -> Result<Vec<Sums>> {
    let Some((hidden, first)) = models.first() else { return Ok(vec![]) };
    let (vocab, _) = first.weight.dims2()?;
    for (hidden, head) in models {
        let (words, width) = head.weight.dims2()?;
        if words != vocab || hidden.elem_count() != targets.len() * width {
            let (hidden, weight) = (hidden.dims(), head.weight.dims());
            return misfit(format!("{hidden:?} by {weight:?} for {} targets of {vocab}", targets.len()));
        }
    }
    let of = |(hidden, head): &(&Tensor, &Head)| Ok((as_f32(hidden)?, as_f32(&head.weight)?, head.cap));
    let models = models.iter().map(of).collect::<Result<Vec<Scored>>>()?;
    on_device(hidden, || by_kernel(&models, targets, vocab), || by_formula(&models, targets, vocab))
}

/// Hidden states, weight of the head, and cap of the logits, of one model.
type Scored = (Tensor, Tensor, Option<f32>);

/// Log-probabilities of one slice of tokens at a time, of the teacher and one other model.
fn by_formula(models: &[Scored], targets: &[u32], vocab: usize) -> Result<Vec<Sums>> {
    let mut sums = vec![Sums::default(); models.len()];
    for slice in Counted::slices(targets, slice_rows(vocab), &models[0].0) {
        let slice = slice?;
        let mut teacher = None;
        for (sums, (hidden, head, cap)) in sums.iter_mut().zip(models) {
            let rows = hidden.reshape(((), head.dim(1)?))?.index_select(&slice.rows, 0)?;
            let q = formulas::log_softmax(&Head::limited(*cap, rows.matmul(&head.t()?)?)?)?;
            let p = teacher.get_or_insert_with(|| q.clone());
            let best = |x: &Tensor| x.argmax(D::Minus1);
            let total = |x: &Tensor| Ok::<_, crate::Error>(f64::from(x.sum_all()?.to_scalar::<f32>()?));
            *sums += &Sums {
                tokens: slice.rows.elem_count() as u64,
                nll: -total(&q.gather(&slice.targets, 1)?)?,
                kl: total(&(p.exp()? * (&*p - &q)?)?)?,
                agree: total(&best(p)?.eq(&best(&q)?)?.to_dtype(DType::F32)?)? as u64,
            };
        }
    }
    Ok(sums)
}

fn by_kernel(models: &[Scored], targets: &[u32], vocab: usize) -> Result<Vec<Sums>> {
    let slices = models
        .iter()
        .map(|(h, head, cap)| Ok((Slice::of(h)?, Slice::of(head)?, head.dim(1)?, *cap)))
        .collect::<Result<Vec<_>>>()?;
    // Locks of tensors stay on this thread; tasks see plain slices.
    let slices: Vec<(&[f32], Mat, usize, Option<f32>)> =
        slices.iter().map(|(h, w, d, cap)| (&**h, Mat::new(w, vocab, *d), *d, *cap)).collect();
    let parts: Vec<Vec<Sums>> = blocks(targets.len(), slice_rows(vocab))
        .map_init(Default::default, |(teacher, logits): &mut (Vec<f32>, Vec<f32>), rows| {
            let score = |index: usize, logits: &mut Vec<f32>, teacher: Option<&[f32]>| {
                logits.resize(rows.len() * vocab, 0.0);
                let (hidden, head, d, cap) = slices[index];
                let h = Mat::new(&hidden[rows.start * d..rows.end * d], rows.len(), d);
                MatMut::new(logits, rows.len(), vocab).product(1.0, h, head.t(), 0.0);
                simd(|| Head::limit(cap, logits));
                let mut sums = Sums::default();
                for (i, &target) in targets[rows.clone()].iter().enumerate() {
                    if target == IGNORE {
                        continue;
                    }
                    let row = &mut logits[i * vocab..][..vocab];
                    log_softmax_in_place(row);
                    sums.tokens += 1;
                    sums.nll -= f64::from(row[target as usize]);
                    let (kl, agree) = match teacher {
                        Some(t) => divergence(&t[i * vocab..][..vocab], row),
                        None => (0.0, true),
                    };
                    sums.kl += kl;
                    sums.agree += u64::from(agree);
                }
                sums
            };
            let mut all = vec![score(0, teacher, None)];
            all.extend((1..slices.len()).map(|i| score(i, logits, Some(teacher))));
            all
        })
        .collect();
    let mut sums = vec![Sums::default(); models.len()];
    for part in parts {
        sums.iter_mut().zip(&part).for_each(|(sum, part)| *sum += part);
    }
    Ok(sums)
}

fn log_softmax_in_place(row: &mut [f32]) {
    simd(|| {
        let m = max(row);
        let mut lanes = [0.0f32; 16];
        for c in row.chunks(16) {
            for (sum, x) in lanes.iter_mut().zip(c) {
                *sum += exp(*x - m);
            }
        }
        let log_sum = m + lanes.iter().sum::<f32>().ln();
        row.iter_mut().for_each(|x| *x -= log_sum);
    });
}

/// KL(p || q) of two rows of log-probabilities, and whether their largest entries coincide.
fn divergence(p: &[f32], q: &[f32]) -> (f64, bool) {
    simd(|| {
        let mut lanes = [0.0f32; 16];
        for (p, q) in p.chunks(16).zip(q.chunks(16)) {
            for i in 0..p.len() {
                lanes[i] += exp(p[i]) * (p[i] - q[i]);
            }
        }
        let (mp, mq) = (max(p), max(q));
        let at = |x: &[f32], m: f32| x.iter().position(|&v| v == m);
        (f64::from(lanes.iter().sum::<f32>()), at(p, mp) == at(q, mq))
    })
}
