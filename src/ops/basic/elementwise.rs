//! Sums, products by a constant, SwiGLU, mean squared error.

use crate::Result;
use crate::ops::cpu::simd::{sigmoid, simd};
use crate::ops::cpu::{Output, Slice, blocks, gradients_of};
use crate::ops::operator::{Operator, apply1};
use crate::ops::tape::{Var, record1};
use candle_core::Tensor;
use rayon::prelude::*;

const BLOCK: usize = 1 << 14;

/// x + y, equal shapes.
pub fn add(x: &Var, y: &Var) -> Result<Var> {
    let sum = map2(x.value(), y.value(), |a, b| a + b)?;
    record1(&[x, y], sum, |g| Ok(vec![Some(g.clone()), Some(g)]))
}

/// x + alpha y, equal shapes.
pub fn add_scaled(x: &Var, alpha: f32, y: &Var) -> Result<Var> {
    let sum = map2(x.value(), y.value(), move |a, b| a + alpha * b)?;
    let want = y.tracked();
    record1(&[x, y], sum, move |g| {
        let dy = if want { Some(map2(&g, &g, move |a, _| alpha * a)?) } else { None };
        Ok(vec![Some(g), dy])
    })
}

struct SwiGlu;

/// silu(gate) * up, equal shapes.
pub fn swiglu(gate: &Var, up: &Var) -> Result<Var> {
    apply1(SwiGlu, &[gate, up])
}

impl Operator for SwiGlu {
    type Kept = ();

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![(inputs[0].silu()? * &inputs[1])?])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, ())> {
        Ok((vec![map2(&inputs[0], &inputs[1], |g, u| g * sigmoid(g) * u)?], ()))
    }

    fn backward_cpu(&self, inputs: &[Tensor], _: (), wanted: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        let (gs, us, ds) = (Slice::of(&inputs[0])?, Slice::of(&inputs[1])?, Slice::of(&up[0])?);
        let (mut dg, mut du) = (Output::unwritten(up[0].dims()), Output::unwritten(up[0].dims()));
        let (pg, pu) = (dg.pointer(), du.pointer());
        blocks(gs.len(), BLOCK).for_each(|r| {
            // SAFETY: blocks are disjoint.
            let (dg, du) = unsafe { (pg.slice(r.start, r.len()), pu.slice(r.start, r.len())) };
            let (g, u, d) = (&gs[r.clone()], &us[r.clone()], &ds[r]);
            simd(|| {
                for i in 0..dg.len() {
                    let s = sigmoid(g[i]);
                    dg[i] = d[i] * u[i] * s * (1.0 + g[i] * (1.0 - s));
                    du[i] = d[i] * g[i] * s;
                }
            });
        });
        gradients_of(vec![dg, du], wanted)
    }
}

/// Mean of (x - target)^2 over all elements; `target` gets no gradient.
pub fn mean_squared_error(x: &Var, target: &Tensor) -> Result<Var> {
    let n = x.value().elem_count() as f64;
    let total: f64 = {
        let (xs, ts) = (Slice::of(x.value())?, Slice::of(target)?);
        let parts: Vec<f32> = blocks(xs.len(), BLOCK)
            .map(|r| {
                let (a, b) = (&xs[r.clone()], &ts[r]);
                simd(|| {
                    let mut lanes = [0.0f32; 16];
                    for (a, b) in a.chunks(16).zip(b.chunks(16)) {
                        for i in 0..a.len() {
                            lanes[i] += (a[i] - b[i]) * (a[i] - b[i]);
                        }
                    }
                    lanes.iter().sum()
                })
            })
            .collect();
        parts.iter().map(|&p| f64::from(p)).sum()
    };
    let loss = Tensor::new((total / n) as f32, x.value().device())?;
    let (value, target) = (x.value().clone(), target.clone());
    record1(&[x], loss, move |g| {
        let scale = (2.0 * f64::from(g.to_scalar::<f32>()?) / n) as f32;
        Ok(vec![Some(map2(&value, &target, move |a, b| scale * (a - b))?)])
    })
}

/// Elementwise function of two tensors of equal shape.
fn map2(x: &Tensor, y: &Tensor, f: impl Fn(f32, f32) -> f32 + Sync + Copy) -> Result<Tensor> {
    if x.dims() != y.dims() {
        return Err(candle_core::Error::Msg(format!("elementwise: {:?} and {:?}", x.dims(), y.dims())).into());
    }
    let (xs, ys) = (Slice::of(x)?, Slice::of(y)?);
    let mut out = Output::unwritten(x.dims());
    out.data().par_chunks_mut(BLOCK).enumerate().for_each(|(i, out)| {
        let (x, y) = (&xs[i * BLOCK..][..out.len()], &ys[i * BLOCK..][..out.len()]);
        simd(|| {
            for i in 0..out.len() {
                out[i] = f(x[i], y[i]);
            }
        });
    });
    out.tensor()
}
