//! Rotary positions (arXiv 2104.09864) in the half-split layout of Hugging Face's Llama:
//! (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), x1 and x2 the halves of the channels that turn, which are the first
//! of a head; the others stay.

use crate::Result;
use crate::ops::Documents;
use crate::ops::cpu::simd::simd;
use crate::ops::cpu::{Output, Slice};
use crate::ops::operator::{Operator, apply1, misfit};
use crate::ops::tape::Var;
use candle_core::Tensor;
use rayon::prelude::*;
use std::sync::Arc;

/// Sines and cosines of the positions of a call, the same for all rows or row by row.
pub struct Angles {
    /// [T, half] or [B, T, half] each.
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Angles {
    fn rows(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }
}

/// The inverse frequencies of a model.
#[derive(Debug, Clone)]
pub struct Rotary {
    inverse_frequencies: Vec<f32>,
    /// Multiplies sines and cosines.
    scale: f32,
}

impl Rotary {
    /// theta^(-2i/K) for i < K/2.
    pub fn new(head_width: usize, theta: f64) -> Self {
        let inverse = |i: usize| 1.0 / theta.powf(2.0 * i as f64 / head_width as f64);
        Rotary::of((0..head_width / 2).map(inverse), 1.0)
    }

    /// With these inverse frequencies, one for each pair of channels.
    pub fn of(inverse_frequencies: impl Iterator<Item = f64>, scale: f64) -> Self {
        Rotary { inverse_frequencies: inverse_frequencies.map(|f| f as f32).collect(), scale: scale as f32 }
    }

    /// Angles for `tokens` positions from `first`, in f32 as transformers computes them.
    pub fn angles(&self, first: usize, tokens: usize) -> Arc<Angles> {
        self.at(first..first + tokens)
    }

    /// Angles for the tokens of documents, whose first begins after `seen` tokens in each row. Padding has none.
    pub fn angles_in(&self, documents: &Documents, seen: &[usize]) -> Arc<Angles> {
        self.at((0..documents.batch()).flat_map(|row| documents.positions(row, seen[row])))
    }

    fn at(&self, positions: impl Iterator<Item = usize>) -> Arc<Angles> {
        let angles: Vec<f32> =
            positions.flat_map(|p| self.inverse_frequencies.iter().map(move |f| p as f32 * f)).collect();
        Arc::new(Angles {
            cos: angles.iter().map(|a| a.cos() * self.scale).collect(),
            sin: angles.iter().map(|a| a.sin() * self.scale).collect(),
            half: self.inverse_frequencies.len(),
        })
    }
}

/// `x` [B, T, H, K] rotated by its positions.
pub fn rope(x: &Var, angles: &Arc<Angles>) -> Result<Var> {
    let (b, t, _, k) = x.value().dims4()?;
    let (half, rows) = (angles.half, angles.rows());
    if k < 2 * half || ![t, b * t].contains(&rows) {
        return misfit(format!("rope: {:?} against {rows} positions of {half}", x.value().dims()));
    }
    apply1(Rope(angles.clone()), &[x])
}

struct Rope(Arc<Angles>);

impl Operator for Rope {
    type Kept = ();
    const BACKWARD_READS_INPUTS: bool = false;

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let (x, half) = (&inputs[0], self.0.half);
        let (_, tokens, _, width) = x.dims4()?;
        let of_positions = |values: &[f32]| {
            let all = Tensor::from_slice(values, ((), tokens, 1, half), x.device())?;
            all.to_dtype(x.dtype())
        };
        let (cos, sin) = (of_positions(&self.0.cos)?, of_positions(&self.0.sin)?);
        let (a, b) = (x.narrow(3, 0, half)?, x.narrow(3, half, half)?);
        let turned_a = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let turned_b = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        let rest = x.narrow(3, 2 * half, width - 2 * half)?;
        Ok(vec![Tensor::cat(&[turned_a, turned_b, rest], 3)?])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, ())> {
        Ok((vec![rotate(&inputs[0], &self.0, 1.0)?], ()))
    }

    fn backward_cpu(&self, _: &[Tensor], _: (), _: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(rotate(&up[0], &self.0, -1.0)?)])
    }
}

fn rotate(x: &Tensor, angles: &Angles, sign: f32) -> Result<Tensor> {
    let (_, _, h, k) = x.dims4()?;
    let (half, rows) = (angles.half, angles.rows());
    let xs = Slice::of(x)?;
    let mut y = Output::unwritten(x.dims());
    y.data().par_chunks_mut(h * k).zip(xs.par_chunks(h * k)).enumerate().for_each(|(row, (y, x))| {
        let position = row % rows * half;
        let (cos, sin) = (&angles.cos[position..][..half], &angles.sin[position..][..half]);
        simd(|| {
            for (y, x) in y.chunks_exact_mut(k).zip(x.chunks_exact(k)) {
                y[2 * half..].copy_from_slice(&x[2 * half..]);
                let ((y1, y2), (x1, x2)) = (y[..2 * half].split_at_mut(half), x[..2 * half].split_at(half));
                for i in 0..half {
                    y1[i] = x1[i] * cos[i] - sign * x2[i] * sin[i];
                    y2[i] = x2[i] * cos[i] + sign * x1[i] * sin[i];
                }
            }
        });
    });
    y.tensor()
}
