//! The update of AdamW (arXiv 1711.05101), elementwise, in f32:
//! m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p = p (1 - lr wd) - lr m^ / (sqrt(v^) + eps), hats bias-corrected.

use crate::Result;
use crate::ops::cpu::simd::simd;
use crate::ops::cpu::{Output, Slice};
use candle_core::Tensor;

/// Numbers of one update.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    pub lr: f64,
    pub betas: [f64; 2],
    pub eps: f64,
    pub weight_decay: f64,
    /// Counted from 1.
    pub step: u64,
    /// Multiplies the gradient first (clipping).
    pub scale: f64,
}

/// New parameter, first and second moment.
pub fn adamw(p: &Tensor, g: &Tensor, m: &Tensor, v: &Tensor, update: Update) -> Result<[Tensor; 3]> {
    let [b1, b2] = update.betas;
    let power = |b: f64| 1.0 - b.powi(i32::try_from(update.step).unwrap_or(i32::MAX));
    let rate = (update.lr / power(b1)) as f32;
    let root = (1.0 / power(b2).sqrt()) as f32;
    let (keep, eps, scale) = ((1.0 - update.lr * update.weight_decay) as f32, update.eps as f32, update.scale as f32);
    let (b1, b2, c1, c2) = (b1 as f32, b2 as f32, (1.0 - b1) as f32, (1.0 - b2) as f32);
    let (ps, gs, ms, vs) = (Slice::of(p)?, Slice::of(g)?, Slice::of(m)?, Slice::of(v)?);
    let mut out = [p, m, v].map(|x| Output::unwritten(x.dims()));
    let [np, nm, nv] = out.each_mut().map(Output::data);
    simd(|| {
        for i in 0..np.len() {
            let g = gs[i] * scale;
            nm[i] = b1 * ms[i] + c1 * g;
            nv[i] = b2 * vs[i] + c2 * g * g;
            np[i] = keep * ps[i] - rate * nm[i] / (nv[i].sqrt() * root + eps);
        }
    });
    let [np, nm, nv] = out.map(Output::tensor);
    Ok([np?, nm?, nv?])
}

/// Sum of squares in f64; not finite when any element is not.
pub fn square_sum(x: &Tensor) -> Result<f64> {
    Ok(Slice::of(x)?.iter().map(|&v| f64::from(v) * f64::from(v)).sum())
}
