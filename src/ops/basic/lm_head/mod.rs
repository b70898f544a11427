//! The vocabulary head in slices of tokens: logits of all tokens never exist at once.

use crate::Result;
use crate::ops::attention::Scores;
use crate::ops::cpu::simd::{exp, max, simd};
use crate::ops::cpu::{Output, Slice, blocks, matrix::Mat, matrix::MatMut};
use crate::ops::tape::{Var, record1};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

/// Marks a token without a target.
pub const IGNORE: u32 = u32::MAX;

/// What makes logits of hidden states.
#[derive(Debug, Clone)]
pub struct Head {
    /// [vocab, D]
    pub weight: Tensor,
    /// Logits are c tanh(l / c) (Gemma 2).
    pub cap: Option<f32>,
}

impl Head {
    #[inline(always)]
    fn limit(cap: Option<f32>, logits: &mut [f32]) {
        Scores { scale: 1.0, cap }.limit(logits);
    }
}

impl From<Tensor> for Head {
    fn from(weight: Tensor) -> Self {
        Head { weight, cap: None }
    }
}

/// Tokens of one slice: about a million logits.
fn slice_rows(vocab: usize) -> usize {
    ((1 << 20) / vocab.max(1)).clamp(16, 256)
}

/// Targets of windows of `sequence` tokens: each token predicts the next of its window, the last none.
pub fn next_tokens(ids: &[u32], sequence: usize) -> Vec<u32> {
    let next = |w: &[u32]| w[1..].iter().copied().chain([IGNORE]).collect::<Vec<_>>();
    ids.chunks(sequence).flat_map(next).collect()
}

/// Mean cross-entropy, in nats, of `hidden` [B, T, D] through the frozen `head` against B*T `targets`.
/// The gradient is made in the same pass, so that no logits are kept or computed twice.
pub fn cross_entropy(hidden: &Var, head: &Head, targets: &[u32]) -> Result<Var> {
    let (cap, head) = (head.cap, &head.weight);
    let (vocab, d) = head.dims2()?;
    let counted = targets.iter().filter(|&&t| t != IGNORE).count().max(1);
    let want = hidden.tracked();
    let (hs, ws) = (Slice::of(hidden.value())?, Slice::of(head)?);
    let head_matrix = Mat::new(&ws, vocab, d);
    let mut grad = Output::unwritten(if want { hidden.value().dims() } else { &[0] });
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
    drop((hs, ws));
    let loss = Tensor::new((losses.iter().sum::<f64>() / counted as f64) as f32, &Device::Cpu)?;
    let grad = if want { Some(grad.tensor()?) } else { None };
    record1(&[hidden], loss, move |g| {
        let scale = f64::from(g.to_scalar::<f32>()?);
        Ok(vec![grad.map(|d| if scale == 1.0 { Ok(d) } else { d * scale }).transpose()?])
    })
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
    let Some((_, first)) = models.first() else { return Ok(vec![]) };
    let (vocab, _) = first.weight.dims2()?;
    let slices = models
        .iter()
        .map(|(h, head)| Ok((Slice::of(h)?, Slice::of(&head.weight)?, head.weight.dim(1)?, head.cap)))
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

/// Logits of every token: `hidden` [N, D] -> [N, vocab]; for one position of generation, and for tests.
pub fn logits(hidden: &Tensor, head: &Head) -> Result<Tensor> {
    let logits = crate::ops::linear::linear(&hidden.clone().into(), &head.weight.clone().into())?.value().clone();
    let Some(cap) = head.cap else { return Ok(logits) };
    let mut out = Output::unwritten(logits.dims());
    out.data().copy_from_slice(&Slice::of(&logits)?);
    simd(|| Head::limit(Some(cap), out.data()));
    out.tensor()
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

/// Rows of an embedding: `ids` -> [1, N, D] as f32.
pub fn embed(table: &Tensor, ids: &[u32], batch: usize) -> Result<Tensor> {
    let (vocab, d) = table.dims2()?;
    if let Some(bad) = ids.iter().find(|&&i| i as usize >= vocab) {
        return Err(crate::Error::Internal(format!("token {bad} is outside the vocabulary of {vocab}")));
    }
    let ws = Slice::of(table)?;
    let mut out = Output::unwritten(&[batch, ids.len() / batch.max(1), d]);
    for (row, &id) in out.data().chunks_exact_mut(d).zip(ids) {
        row.copy_from_slice(&ws[id as usize * d..][..d]);
    }
    out.tensor()
}
