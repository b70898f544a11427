//! Short causal convolution over tokens, one filter per channel: what gated mixers put before their q, k and v.
//!
//! ```text
//! y_tn = f(bias_n + sum_j weight_nj x_{t-(W-1)+j, n})      f: identity or SiLU
//! ```
//!
//! Taps reach neither into another document nor into padding: a row's first document goes on from the W - 1 inputs
//! before it, later ones from zeros. One call serves a single token as well; the tail that it returns is the next
//! call's `before`. As in flash-linear-attention's `ShortConvolution` (width 4, SiLU, no bias) and Mamba's `conv1d`.

mod cpu;

use crate::ops::Documents;
use crate::ops::layout::gather::{Gather, mask, only};
use crate::ops::operator::{Operator, apply};
use crate::ops::tape::Var;
use crate::{Error, Result};
use candle_core::Tensor;
use std::sync::Arc;

/// One call. Its inputs are x and weight, then bias and the inputs before where there are any.
struct ShortConvolution {
    batch: usize,
    tokens: usize,
    channels: usize,
    taps: usize,
    silu: bool,
    /// Their places among the inputs.
    bias: Option<usize>,
    before: Option<usize>,
    documents: Arc<Documents>,
}

/// Where an input lies.
#[derive(Debug, Clone, Copy)]
enum Source {
    Token(usize),
    /// A slot of the inputs before the call.
    Before(usize),
    Zero,
}

/// `x` [B, T, N], `weight` [N, W], `bias` `[N]`, `before` [B, W-1, N] the last inputs before the call (None: zeros) ->
/// y [B, T, N] and the tail [B, W-1, N]: the last inputs of each row's last document, zeros where it has fewer.
pub fn short_convolution(
    x: &Var,
    weight: &Var,
    bias: Option<&Var>,
    silu: bool,
    before: Option<&Var>,
    documents: &Arc<Documents>,
) -> Result<(Var, Var)> {
    let (batch, tokens, channels) = x.value().dims3()?;
    let (filters, taps) = weight.value().dims2()?;
    let fits = (documents.batch(), documents.tokens()) == (batch, tokens) && filters == channels && taps > 0;
    let bias_fits = bias.is_none_or(|b| b.value().dims() == [channels]);
    let before_fits = before.is_none_or(|b| b.value().dims() == [batch, taps - 1, channels]);
    if !fits || !bias_fits || !before_fits {
        let dims = [Some(x), Some(weight), bias, before].map(|x| x.map(|x| x.value().dims().to_vec()));
        return Err(Error::Internal(format!("short convolution: x, weight, bias, before {dims:?}, {documents:?}")));
    }
    let inputs: Vec<&Var> = [Some(x), Some(weight), bias, before].into_iter().flatten().collect();
    let (bias, before) = (bias.map(|_| 2), before.map(|_| inputs.len() - 1));
    let call = ShortConvolution { batch, tokens, channels, taps, silu, bias, before, documents: documents.clone() };
    let mut vars = apply(call, &inputs)?;
    let tail = vars.pop().expect("two outputs");
    Ok((vars.pop().expect("two outputs"), tail))
}

impl Operator for ShortConvolution {
    type Kept = ();

    /// Tap by tap: the inputs that all tokens read there, times the tap's weights.
    fn formula(&self, x: &[Tensor]) -> Result<Vec<Tensor>> {
        let before = (self.batch, self.taps - 1, self.channels);
        let before = match self.before {
            Some(i) => x[i].clone(),
            None => Tensor::zeros(before, x[0].dtype(), x[0].device())?,
        };
        let inputs = if self.taps == 1 { x[0].clone() } else { Tensor::cat(&[&before, &x[0]], 1)? };
        let mut sum = x[0].zeros_like()?.detach();
        if let Some(i) = self.bias {
            sum = sum.broadcast_add(&x[i])?;
        }
        for hook in 0..self.taps {
            let weight = x[1].narrow(1, hook, 1)?.reshape(self.channels)?;
            sum = (sum + self.read(&inputs, hook)?.broadcast_mul(&weight)?)?;
        }
        let y = if self.silu { sum.silu()? } else { sum };
        let y = if self.documents.are_whole() { y } else { only(&self.inside(x[0].device())?, &y)? };
        if self.taps == 1 {
            return Ok(vec![y, before]);
        }
        let slots = (0..self.batch).flat_map(|row| (0..self.taps - 1).map(move |slot| (row, slot)));
        let tail = self.select(&inputs, slots.map(|(row, slot)| (row, self.tail(row, slot))).collect())?;
        Ok(vec![y, tail.reshape(before.shape())?])
    }

    fn forward_cpu(&self, x: &[Tensor], keep: bool) -> Result<(Vec<Tensor>, Self::Kept)> {
        self.forward(x, keep)
    }

    fn backward_cpu(
        &self,
        x: &[Tensor],
        kept: Self::Kept,
        wanted: &[bool],
        up: &[Tensor],
    ) -> Result<Vec<Option<Tensor>>> {
        self.backward(x, kept, wanted, up)
    }
}

impl ShortConvolution {
    /// What tap `hook` of every token reads, of the `inputs` [B, W - 1 + T, N] from those before the call on: [B, T, N].
    fn read(&self, inputs: &Tensor, hook: usize) -> Result<Tensor> {
        if self.documents.are_whole() {
            return Ok(inputs.narrow(1, hook, self.tokens)?);
        }
        let mut sources: Vec<_> = (0..self.batch).flat_map(|row| vec![(row, Source::Zero); self.tokens]).collect();
        for row in 0..self.batch {
            for (i, document) in self.documents.row(row).iter().enumerate() {
                for token in document.clone() {
                    let source = self.source(token, document.start, i == 0, hook);
                    sources[row * self.tokens + token].1 = source;
                }
            }
        }
        Ok(self.select(inputs, sources)?.reshape((self.batch, self.tokens, self.channels))?)
    }

    /// Inputs by row and source, [n, N].
    fn select(&self, inputs: &Tensor, sources: Vec<(usize, Source)>) -> Result<Tensor> {
        let length = self.taps - 1 + self.tokens;
        let place = |(row, source): &(usize, Source)| match source {
            Source::Before(slot) => Some(row * length + slot),
            Source::Token(token) => Some(row * length + self.taps - 1 + token),
            Source::Zero => None,
        };
        let from: Vec<_> = sources.iter().map(place).collect();
        Gather::new(self.batch * length, &from, inputs.device())?.of(inputs)
    }

    /// The tokens of documents, [B, T, 1].
    fn inside(&self, device: &candle_core::Device) -> Result<Tensor> {
        let mut inside = vec![true; self.batch * self.tokens];
        for row in 0..self.batch {
            self.documents.padding(row).for_each(|gap| inside[row * self.tokens..][gap].fill(false));
        }
        mask(inside, &[self.batch, self.tokens, 1], device)
    }

    /// What tap `hook` of the query at `token` reads, in a document from `start` on that `continues` those before the call.
    fn source(&self, token: usize, start: usize, continues: bool, hook: usize) -> Source {
        let back = self.taps - 1 - hook;
        let position = token - start;
        if back <= position {
            Source::Token(token - back)
        } else if continues {
            Source::Before(self.taps - 1 + position - back)
        } else {
            Source::Zero
        }
    }

    /// What slot `slot` of the row's tail holds.
    fn tail(&self, row: usize, slot: usize) -> Source {
        let documents = self.documents.row(row);
        let Some(document) = documents.last() else { return Source::Before(slot) };
        let back = self.taps - 1 - slot;
        if back <= document.len() {
            Source::Token(document.end - back)
        } else if documents.len() == 1 {
            Source::Before(slot + document.len())
        } else {
            Source::Zero
        }
    }
}
