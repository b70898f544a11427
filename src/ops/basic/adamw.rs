//! The update of AdamW (arXiv 1711.05101), elementwise, in f32:
//! m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p = p (1 - lr wd) - lr m^ / (sqrt(v^) + eps), hats bias-corrected.

use crate::Result;
use crate::ops::cpu::simd::simd;
use crate::ops::cpu::{Output, Slice};
use crate::ops::operator::{as_f32, on_device};
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
    let factors = Factors::of(update);
    let [p, g, m, v] = [p, g, m, v].map(as_f32);
    let (p, g, m, v) = (&p?, &g?, &m?, &v?);
    on_device(p, || factors.by_kernel(p, g, m, v), || factors.by_formula(p, g, m, v))
}

/// What multiplies what in one update.
#[derive(Clone, Copy)]
struct Factors {
    /// b1, b2 and what is left of 1.
    moments: [f32; 4],
    rate: f32,
    /// Of sqrt(v), so that its bias is corrected.
    root: f32,
    /// What decay leaves of the parameter.
    keep: f32,
    eps: f32,
    scale: f32,
}

impl Factors {
    fn of(update: Update) -> Self {
        let [b1, b2] = update.betas;
        let power = |b: f64| 1.0 - b.powi(i32::try_from(update.step).unwrap_or(i32::MAX));
        let rate = (update.lr / power(b1)) as f32;
        let root = (1.0 / power(b2).sqrt()) as f32;
        let keep = (1.0 - update.lr * update.weight_decay) as f32;
        let moments = [b1 as f32, b2 as f32, (1.0 - b1) as f32, (1.0 - b2) as f32];
        Factors { moments, rate, root, keep, eps: update.eps as f32, scale: update.scale as f32 }
    }

    fn by_kernel(self, p: &Tensor, g: &Tensor, m: &Tensor, v: &Tensor) -> Result<[Tensor; 3]> {
        let Factors { moments: [b1, b2, c1, c2], rate, root, keep, eps, scale } = self;
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

    fn by_formula(self, p: &Tensor, g: &Tensor, m: &Tensor, v: &Tensor) -> Result<[Tensor; 3]> {
        let [b1, b2, c1, c2] = self.moments.map(f64::from);
        let [rate, root, keep, eps, scale] = [self.rate, self.root, self.keep, self.eps, self.scale].map(f64::from);
        let g = (g * scale)?;
        let m = ((m * b1)? + (&g * c1)?)?;
        let v = ((v * b2)? + (g.sqr()? * c2)?)?;
        let p = ((p * keep)? - ((&m * rate)? / v.sqrt()?.affine(root, eps)?)?)?;
        Ok([p, m, v])
    }
}
