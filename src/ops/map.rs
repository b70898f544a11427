//! y = f(x), element by element: the activations of feature maps and gates.

use super::cpu::simd::{exp_to_zero, ln, ln_1p, logistic, simd, tanh};
use super::cpu::{Output, Slice};
use super::tape::{Var, record1};
use crate::Result;
use candle_core::Tensor;
use rayon::prelude::*;

const BLOCK: usize = 1 << 14;

/// A function of one number. All are stable for arguments of any size, reach their limits exactly, and pass NaN on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Map {
    /// 1 / (1 + e^-x)
    Sigmoid,
    /// ln sigmoid(x)
    LogSigmoid,
    /// ln(1 + e^x)
    Softplus,
    /// x sigmoid(x), also called swish
    Silu,
    /// max(x, 0); derivative 0 at 0
    Relu,
    /// max(x, 0)^2
    ReluSquared,
    /// x + 1 above 0, e^x below
    EluPlusOne,
    /// e^x; above 88.3 it stays at 2.4e38
    Exp,
    /// 1 - e^x, accurate near 0: a key tied to its log gate (HGRN2, GSA)
    OneMinusExp,
    /// ln x, for x > 0
    Ln,
    Tanh,
    /// x^2
    Square,
    /// 1 / x
    Reciprocal,
    /// x kept within min..=max; no gradient where it is cut off
    Clamp {
        min: f32,
        max: f32,
    },
}

/// f(x), any shape.
pub fn map(x: &Var, f: Map) -> Result<Var> {
    let y = run(x.value(), None, f)?;
    let value = x.value().clone();
    record1(&[x], y, move |g| Ok(vec![Some(run(&value, Some(&g), f)?)]))
}

/// f(x), or f'(x) g.
fn run(x: &Tensor, g: Option<&Tensor>, f: Map) -> Result<Tensor> {
    match f {
        Map::Sigmoid => each(x, g, logistic, sigmoid_slope),
        Map::LogSigmoid => each(x, g, log_sigmoid, |x| logistic(-x)),
        Map::Softplus => each(x, g, softplus, logistic),
        Map::Silu => each(x, g, |x| x * logistic(x), silu_slope),
        Map::Relu => each(x, g, positive, |x| if x > 0.0 { 1.0 } else { 0.0 }),
        Map::ReluSquared => each(x, g, |x| positive(x) * positive(x), |x| 2.0 * positive(x)),
        Map::EluPlusOne => each(x, g, elu_plus_one, elu_slope),
        Map::Exp => each(x, g, exp_to_zero, exp_to_zero),
        Map::OneMinusExp => each(x, g, one_minus_exp, |x| -exp_to_zero(x)),
        Map::Ln => each(x, g, ln, |x| 1.0 / x),
        Map::Tanh => each(x, g, tanh, tanh_slope),
        Map::Square => each(x, g, |x| x * x, |x| 2.0 * x),
        Map::Reciprocal => each(x, g, |x| 1.0 / x, |x| -1.0 / (x * x)),
        Map::Clamp { min, max } => {
            let clamp = move |x| {
                if x < min {
                    min
                } else if x > max {
                    max
                } else {
                    x
                }
            };
            each(x, g, clamp, move |x| if x >= min && x <= max { 1.0 } else { 0.0 })
        }
    }
}

// Functions rather than closures where they are long: only these are inlined for certain, and only what is inlined
// vectorises. Both sides of a choice are computed before it for the same reason.

#[inline(always)]
fn sigmoid_slope(x: f32) -> f32 {
    let e = exp_to_zero(-x.abs());
    e / ((1.0 + e) * (1.0 + e))
}

/// max(x, 0), NaN kept.
#[inline(always)]
fn positive(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

#[inline(always)]
fn softplus(x: f32) -> f32 {
    positive(x) + ln_1p(exp_to_zero(-x.abs()))
}

#[inline(always)]
fn log_sigmoid(x: f32) -> f32 {
    -softplus(-x)
}

#[inline(always)]
fn silu_slope(x: f32) -> f32 {
    let s = logistic(x);
    s * (1.0 + x * (1.0 - s))
}

#[inline(always)]
fn elu_plus_one(x: f32) -> f32 {
    let e = exp_to_zero(x);
    if x > 0.0 { x + 1.0 } else { e }
}

#[inline(always)]
fn elu_slope(x: f32) -> f32 {
    let e = exp_to_zero(x);
    if x > 0.0 { 1.0 } else { e }
}

/// Near 0 by the Taylor series, which does not cancel.
#[inline(always)]
fn one_minus_exp(x: f32) -> f32 {
    let mut p = 1.0 / 5040.0;
    for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0] {
        p = p * x + factor;
    }
    let (near, far) = (-x * p, 1.0 - exp_to_zero(x));
    if x.abs() < 0.5 { near } else { far }
}

#[inline(always)]
fn tanh_slope(x: f32) -> f32 {
    4.0 * sigmoid_slope(2.0 * x)
}

fn each(
    x: &Tensor,
    g: Option<&Tensor>,
    value: impl Fn(f32) -> f32 + Sync,
    slope: impl Fn(f32) -> f32 + Sync,
) -> Result<Tensor> {
    let (xs, gs) = (Slice::of(x)?, g.map(Slice::of).transpose()?);
    let mut out = Output::unwritten(x.dims());
    out.data().par_chunks_mut(BLOCK).enumerate().for_each(|(i, out)| {
        let x = &xs[i * BLOCK..][..out.len()];
        match &gs {
            None => simd(|| {
                for i in 0..out.len() {
                    out[i] = value(x[i]);
                }
            }),
            Some(gs) => {
                let g = &gs[i * BLOCK..][..out.len()];
                simd(|| {
                    for i in 0..out.len() {
                        out[i] = slope(x[i]) * g[i];
                    }
                });
            }
        }
    });
    out.tensor()
}
