//! The kernels of the CPU.

use super::{ShortConvolution, Source};
use crate::Result;
use crate::ops::cpu::simd::{axpy, sigmoid, simd};
use crate::ops::cpu::{Output, OutputPointer, Slice, gradients_of};
use candle_core::Tensor;
use rayon::prelude::*;
use std::ops::Range;

/// Tokens of one task.
const BLOCK: usize = 64;

/// Tokens of one document that one task handles.
struct Block {
    row: usize,
    tokens: Range<usize>,
    document: Range<usize>,
    /// The document goes on from the inputs before the call.
    continues: bool,
}

impl ShortConvolution {
    fn blocks(&self) -> Vec<Block> {
        let of_row = |row: usize| {
            let documents = self.documents.row(row).iter().enumerate();
            documents.flat_map(move |(i, document)| {
                document.clone().step_by(BLOCK).map(move |from| Block {
                    row,
                    tokens: from..(from + BLOCK).min(document.end),
                    document: document.clone(),
                    continues: i == 0,
                })
            })
        };
        (0..self.batch).flat_map(of_row).collect()
    }

    /// Elements of a token's row in a `[B, T, N]` buffer.
    fn at(&self, row: usize, token: usize) -> Range<usize> {
        let start = (row * self.tokens + token) * self.channels;
        start..start + self.channels
    }

    /// The same of input `slot` in a `[B, W - 1, N]` buffer.
    fn slot_at(&self, row: usize, slot: usize) -> Range<usize> {
        let start = (row * (self.taps - 1) + slot) * self.channels;
        start..start + self.channels
    }
}

/// The values of one call.
struct Inputs<'a> {
    x: Slice<'a>,
    /// `[W, N]`: a tap's weights side by side.
    weight: Vec<f32>,
    bias: Option<Slice<'a>>,
    before: Option<Slice<'a>>,
}

impl<'a> Inputs<'a> {
    fn of(call: &ShortConvolution, values: &'a [Tensor]) -> Result<Self> {
        let weight = Slice::of(&values[1])?;
        let (taps, channels) = (call.taps, call.channels);
        let weight = (0..taps * channels).map(|i| weight[i % channels * taps + i / channels]).collect();
        let bias = call.bias.map(|i| Slice::of(&values[i])).transpose()?;
        let before = call.before.map(|i| Slice::of(&values[i])).transpose()?;
        Ok(Inputs { x: Slice::of(&values[0])?, weight, bias, before })
    }

    fn row(&self, call: &ShortConvolution, row: usize, source: Source) -> Option<&[f32]> {
        match source {
            Source::Token(token) => Some(&self.x[call.at(row, token)]),
            Source::Before(slot) => self.before.as_ref().map(|before| &before[call.slot_at(row, slot)]),
            Source::Zero => None,
        }
    }

    fn weights(&self, call: &ShortConvolution, hook: usize) -> &[f32] {
        &self.weight[hook * call.channels..][..call.channels]
    }

    /// The sum before the activation.
    #[inline(always)]
    fn sum(&self, call: &ShortConvolution, block: &Block, token: usize, to: &mut [f32]) {
        match &self.bias {
            Some(bias) => to.copy_from_slice(bias),
            None => to.fill(0.0),
        }
        for hook in 0..call.taps {
            if let Some(x) = self.row(call, block.row, call.source(token, block.document.start, block.continues, hook))
            {
                multiply_add(to, self.weights(call, hook), x);
            }
        }
    }
}

/// to += a * b, element by element.
#[inline(always)]
fn multiply_add(to: &mut [f32], a: &[f32], b: &[f32]) {
    for ((to, a), b) in to.iter_mut().zip(a).zip(b) {
        *to += a * b;
    }
}

impl ShortConvolution {
    pub(super) fn forward(&self, x: &[Tensor], _keep: bool) -> Result<(Vec<Tensor>, ())> {
        let inputs = Inputs::of(self, x)?;
        let mut y = Output::padded(&[self.batch, self.tokens, self.channels], &self.documents);
        let y_at = y.pointer();
        self.blocks().into_par_iter().for_each(|block| {
            simd(|| {
                for token in block.tokens.clone() {
                    // SAFETY: each token lies in one block.
                    let y = unsafe { y_at.slice(self.at(block.row, token).start, self.channels) };
                    inputs.sum(self, &block, token, y);
                    if self.silu {
                        y.iter_mut().for_each(|y| *y *= sigmoid(*y));
                    }
                }
            });
        });
        let mut tail = Output::zeros(&[self.batch, self.taps - 1, self.channels]);
        for row in 0..self.batch {
            for slot in 0..self.taps - 1 {
                if let Some(x) = inputs.row(self, row, self.tail(row, slot)) {
                    tail.data()[self.slot_at(row, slot)].copy_from_slice(x);
                }
            }
        }
        Ok((vec![y.tensor()?, tail.tensor()?], ()))
    }

    /// With u the sum before the activation and du = dy f'(u): dweight_nj = sum_t du_tn x_{t-(W-1)+j, n},
    /// dbias_n = sum_t du_tn, dx_sn = sum_j weight_nj du_{s+(W-1)-j, n}, and the tail's gradient where an input is kept.
    pub(super) fn backward(&self, x: &[Tensor], (): (), wanted: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        let inputs = Inputs::of(self, x)?;
        let (channels, taps) = (self.channels, self.taps);
        let (dy, dtail) = (Slice::of(&up[0])?, Slice::of(&up[1])?);
        let mut du = Output::unwritten(x[0].dims());
        let du_at = du.pointer();
        let blocks = self.blocks();
        // A block's share of dweight and dbias, [W + 1, N]; added up in the order of the blocks.
        let shares: Vec<Vec<f32>> = blocks
            .par_iter()
            .map(|block| {
                let mut share = vec![0.0; (taps + 1) * channels];
                simd(|| {
                    for token in block.tokens.clone() {
                        let at = self.at(block.row, token);
                        // SAFETY: each token lies in one block.
                        let du = unsafe { du_at.slice(at.start, channels) };
                        if self.silu {
                            inputs.sum(self, block, token, du);
                            for (u, dy) in du.iter_mut().zip(&dy[at]) {
                                let s = sigmoid(*u);
                                *u = dy * s * (1.0 + *u * (1.0 - s));
                            }
                        } else {
                            du.copy_from_slice(&dy[at]);
                        }
                        for hook in 0..taps {
                            if let Some(x) = inputs.row(
                                self,
                                block.row,
                                self.source(token, block.document.start, block.continues, hook),
                            ) {
                                multiply_add(&mut share[hook * channels..][..channels], du, x);
                            }
                        }
                        axpy(&mut share[taps * channels..], 1.0, du);
                    }
                });
                share
            })
            .collect();
        let mut sums = vec![0.0; (taps + 1) * channels];
        shares.iter().for_each(|share| axpy(&mut sums, 1.0, share));
        let (mut dweight, mut dbias) = (Output::unwritten(&[channels, taps]), Output::unwritten(&[channels]));
        for (i, d) in dweight.data().iter_mut().enumerate() {
            *d = sums[i % taps * channels + i / taps];
        }
        dbias.data().copy_from_slice(&sums[taps * channels..]);

        let mut dx = Output::padded(x[0].dims(), &self.documents);
        let (du, dx_at) = (&*du.data(), dx.pointer());
        blocks.par_iter().for_each(|block| simd(|| input_gradient(self, &inputs, block, du, dx_at)));
        let mut dbefore = Output::zeros(&[self.batch, taps - 1, channels]);
        let firsts = blocks.iter().filter(|block| block.continues && block.tokens.start == block.document.start);
        for block in firsts {
            for token in block.document.clone().take(taps - 1) {
                for hook in 0..taps - 1 {
                    if let Source::Before(slot) = self.source(token, block.document.start, block.continues, hook) {
                        let to = &mut dbefore.data()[self.slot_at(block.row, slot)];
                        multiply_add(to, inputs.weights(self, hook), &du[self.at(block.row, token)]);
                    }
                }
            }
        }
        for row in 0..self.batch {
            for slot in 0..taps - 1 {
                let to = match self.tail(row, slot) {
                    Source::Token(token) => &mut dx.data()[self.at(row, token)],
                    Source::Before(slot) => &mut dbefore.data()[self.slot_at(row, slot)],
                    Source::Zero => continue,
                };
                axpy(to, 1.0, &dtail[self.slot_at(row, slot)]);
            }
        }
        let mut grads = vec![dx, dweight];
        grads.extend(self.bias.map(|_| dbias));
        grads.extend(self.before.map(|_| dbefore));
        gradients_of(grads, wanted)
    }
}

/// dx of a block's tokens, gathered from the document's queries that read them.
#[inline(always)]
fn input_gradient(call: &ShortConvolution, inputs: &Inputs, block: &Block, du: &[f32], dx: OutputPointer) {
    for token in block.tokens.clone() {
        // SAFETY: each token lies in one block.
        let dx = unsafe { dx.slice(call.at(block.row, token).start, call.channels) };
        dx.fill(0.0);
        for query in token..(token + call.taps).min(block.document.end) {
            let hook = call.taps - 1 - (query - token);
            multiply_add(dx, inputs.weights(call, hook), &du[call.at(block.row, query)]);
        }
    }
}
