//! y = x / sqrt(mean(x^2) + eps) * w  (RMSNorm, arXiv 1910.07467).

use super::cpu::simd::{dot, simd};
use super::cpu::{Output, Slice};
use super::tape::{Var, record1};
use crate::Result;
use candle_core::Tensor;
use rayon::prelude::*;

/// Rows of one task.
const ROWS: usize = 64;

/// `x` `[.., D]`, frozen `weight` `[D]` -> `[.., D]`.
pub fn rms_norm(x: &Var, weight: &Tensor, eps: f64) -> Result<Var> {
    let d = weight.dims1()?;
    let eps = eps as f32;
    let y = {
        let (xs, ws) = (Slice::of(x.value())?, Slice::of(weight)?);
        let mut y = Output::unwritten(x.value().dims());
        y.data().par_chunks_mut(ROWS * d).zip(xs.par_chunks(ROWS * d)).for_each(|(y, x)| {
            simd(|| {
                for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                    let scale = 1.0 / (dot(x, x) / d as f32 + eps).sqrt();
                    for i in 0..d {
                        y[i] = x[i] * scale * ws[i];
                    }
                }
            });
        });
        y.tensor()?
    };
    let (value, weight) = (x.value().clone(), weight.clone());
    record1(&[x], y, move |g| {
        let (xs, ws, gs) = (Slice::of(&value)?, Slice::of(&weight)?, Slice::of(&g)?);
        let mut dx = Output::unwritten(value.dims());
        let tasks = dx.data().par_chunks_mut(ROWS * d).zip(xs.par_chunks(ROWS * d)).zip(gs.par_chunks(ROWS * d));
        tasks.for_each(|((dx, x), g)| {
            simd(|| {
                for ((dx, x), g) in dx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(g.chunks_exact(d)) {
                    let scale = 1.0 / (dot(x, x) / d as f32 + eps).sqrt();
                    for i in 0..d {
                        dx[i] = g[i] * ws[i];
                    }
                    let along = dot(dx, x) * scale * scale / d as f32;
                    for i in 0..d {
                        dx[i] = scale * (dx[i] - along * x[i]);
                    }
                }
            });
        });
        Ok(vec![Some(dx.tensor()?)])
    })
}
