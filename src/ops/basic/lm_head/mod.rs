//! The vocabulary head in slices of tokens: logits of all tokens never exist at once.

mod compare;
mod cross_entropy;

pub use compare::{Sums, compare};
pub use cross_entropy::cross_entropy;

use crate::Result;
use crate::ops::attention::Scores;
use crate::ops::cpu::simd::simd;
use crate::ops::cpu::{Output, Slice};
use crate::ops::operator::{as_f32, on_device};
use candle_core::{DType, Tensor};

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

    /// The same of a tensor, by the formula.
    fn limited(cap: Option<f32>, logits: Tensor) -> Result<Tensor> {
        let Some(cap) = cap.map(f64::from) else { return Ok(logits) };
        Ok(((logits / cap)?.tanh()? * cap)?)
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

/// The tokens of a slice that have a target, their targets, and indices of both on the device of `x`.
struct Counted {
    /// [R], rows of all tokens.
    rows: Tensor,
    /// [R, 1]
    targets: Tensor,
}

impl Counted {
    /// Slices of `rows` tokens, without those in which no token has a target.
    fn slices(targets: &[u32], rows: usize, x: &Tensor) -> impl Iterator<Item = Result<Counted>> {
        let numbered = targets.iter().enumerate().map(|(row, &target)| (row as u32, target)).collect::<Vec<_>>();
        let slices: Vec<Vec<(u32, u32)>> = numbered
            .chunks(rows)
            .map(|slice| slice.iter().copied().filter(|(_, target)| *target != IGNORE).collect())
            .filter(|slice: &Vec<_>| !slice.is_empty())
            .collect();
        let device = x.device().clone();
        slices.into_iter().map(move |slice| {
            let (rows, targets): (Vec<u32>, Vec<u32>) = slice.into_iter().unzip();
            let targets = Tensor::from_vec(targets, (rows.len(), 1), &device)?;
            Ok(Counted { rows: Tensor::new(rows, &device)?, targets })
        })
    }
}

/// Logits of every token: `hidden` [N, D] -> [N, vocab]; for one position of generation, and for tests.
pub fn logits(hidden: &Tensor, head: &Head) -> Result<Tensor> {
    let logits = crate::ops::linear::linear(&hidden.clone().into(), &head.weight.clone().into())?.value().clone();
    if head.cap.is_none() {
        return Ok(logits);
    }
    let (dtype, logits) = (logits.dtype(), as_f32(&logits)?);
    let kernel = || {
        let mut out = Output::unwritten(logits.dims());
        out.data().copy_from_slice(&Slice::of(&logits)?);
        simd(|| Head::limit(head.cap, out.data()));
        out.tensor()
    };
    Ok(on_device(&logits, kernel, || Head::limited(head.cap, logits.clone()))?.to_dtype(dtype)?)
}

/// Rows of an embedding: `ids` -> [1, N, D] as f32.
pub fn embed(table: &Tensor, ids: &[u32], batch: usize) -> Result<Tensor> {
    let (vocab, d) = table.dims2()?;
    if let Some(bad) = ids.iter().find(|&&i| i as usize >= vocab) {
        return Err(crate::Error::Internal(format!("token {bad} is outside the vocabulary of {vocab}")));
    }
    let ids = Tensor::new(ids, table.device())?;
    Ok(table.index_select(&ids, 0)?.to_dtype(DType::F32)?.reshape((batch, (), d))?)
}
