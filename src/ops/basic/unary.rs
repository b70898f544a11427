//! y = f(x), element by element: the activations of feature maps and gates.

use crate::Result;
use crate::ops::cpu::simd::{Kernel, erf, exp_to_zero, ln, ln_1p, logistic, simd, tanh};
use crate::ops::cpu::{Output, Slice};
use crate::ops::tape::{Var, record1};
use candle_core::Tensor;
use rayon::prelude::*;

const BLOCK: usize = 1 << 14;

/// A function of one number. All are stable for arguments of any size, reach their limits exactly, and pass NaN on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Unary {
    /// 1 / (1 + e^-x)
    Sigmoid,
    /// ln sigmoid(x)
    LogSigmoid,
    /// ln(1 + e^x)
    Softplus,
    /// x sigmoid(x), also called swish
    Silu,
    /// x Phi(x), Phi the normal distribution's
    Gelu,
    /// x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2
    GeluTanh,
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
pub fn unary(x: &Var, f: Unary) -> Result<Var> {
    let y = run(x.value(), None, f)?;
    let value = x.value().clone();
    record1(&[x], y, move |g| Ok(vec![Some(run(&value, Some(&g), f)?)]))
}

/// f(x), or f'(x) g.
fn run(x: &Tensor, g: Option<&Tensor>, f: Unary) -> Result<Tensor> {
    let (xs, gs) = (Slice::of(x)?, g.map(Slice::of).transpose()?);
    let mut out = Output::unwritten(x.dims());
    out.data().par_chunks_mut(BLOCK).enumerate().for_each(|(i, out)| {
        let block = i * BLOCK..i * BLOCK + out.len();
        simd(Block { f, x: &xs[block.clone()], g: gs.as_ref().map(|g| &g[block]), out });
    });
    out.tensor()
}

/// Equally long pieces of x, g and the output.
struct Block<'a> {
    f: Unary,
    x: &'a [f32],
    g: Option<&'a [f32]>,
    out: &'a mut [f32],
}

/// The loop over a function, or over its derivative.
macro_rules! each {
    ($block:ident, |$x:ident| $value:expr, $slope:expr) => {
        match $block.g {
            None => {
                for (out, &$x) in $block.out.iter_mut().zip($block.x) {
                    *out = $value;
                }
            }
            Some(g) => {
                for ((out, &$x), g) in $block.out.iter_mut().zip($block.x).zip(g) {
                    *out = $slope * g;
                }
            }
        }
    };
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        match self.f {
            Unary::Sigmoid => each!(self, |x| logistic(x), sigmoid_slope(x)),
            Unary::LogSigmoid => each!(self, |x| -softplus(-x), logistic(-x)),
            Unary::Softplus => each!(self, |x| softplus(x), logistic(x)),
            Unary::Silu => each!(self, |x| x * logistic(x), silu_slope(x)),
            Unary::Gelu => each!(self, |x| x * normal(x), normal(x) + x * density(x)),
            Unary::GeluTanh => each!(self, |x| x * near_normal(x), near_normal(x) + x * near_density(x)),
            Unary::Relu => each!(self, |x| positive(x), step(x)),
            Unary::ReluSquared => each!(self, |x| positive(x) * positive(x), 2.0 * positive(x)),
            Unary::EluPlusOne => {
                each!(self, |x| positive(x) + exp_to_zero(-positive(-x)), exp_to_zero(-positive(-x)))
            }
            Unary::Exp => each!(self, |x| exp_to_zero(x), exp_to_zero(x)),
            Unary::OneMinusExp => each!(self, |x| one_minus_exp(x), -exp_to_zero(x)),
            Unary::Ln => each!(self, |x| ln(x), 1.0 / x),
            Unary::Tanh => each!(self, |x| tanh(x), 4.0 * sigmoid_slope(2.0 * x)),
            Unary::Square => each!(self, |x| x * x, 2.0 * x),
            Unary::Reciprocal => each!(self, |x| 1.0 / x, -1.0 / (x * x)),
            Unary::Clamp { min, max } => each!(self, |x| clamp(x, min, max), inside(x, min, max)),
        }
    }
}

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
fn step(x: f32) -> f32 {
    if x > 0.0 { 1.0 } else { 0.0 }
}

/// NaN kept.
#[inline(always)]
fn clamp(x: f32, min: f32, max: f32) -> f32 {
    let x = if x < min { min } else { x };
    if x > max { max } else { x }
}

#[inline(always)]
fn inside(x: f32, min: f32, max: f32) -> f32 {
    if x >= min && x <= max { 1.0 } else { 0.0 }
}

#[inline(always)]
fn softplus(x: f32) -> f32 {
    positive(x) + ln_1p(exp_to_zero(-x.abs()))
}

#[inline(always)]
fn silu_slope(x: f32) -> f32 {
    let s = logistic(x);
    s * (1.0 + x * (1.0 - s))
}

/// The normal distribution, and its density.
#[inline(always)]
fn normal(x: f32) -> f32 {
    0.5 + 0.5 * erf(x * std::f32::consts::FRAC_1_SQRT_2)
}

#[inline(always)]
fn density(x: f32) -> f32 {
    0.398_942_3 * exp_to_zero(-0.5 * x * x)
}

/// 2 sqrt(2/pi)
const SLOPE: f32 = 1.595_769;
const CUBE: f32 = 0.044_715;

/// (1 + tanh(u)) / 2 = sigmoid(2u), and its derivative.
#[inline(always)]
fn near_normal(x: f32) -> f32 {
    logistic(SLOPE * x * (1.0 + CUBE * x * x))
}

#[inline(always)]
fn near_density(x: f32) -> f32 {
    // Far out it is 0, and its factors infinite.
    let x = clamp(x, -20.0, 20.0);
    sigmoid_slope(SLOPE * x * (1.0 + CUBE * x * x)) * SLOPE * (1.0 + 3.0 * CUBE * x * x)
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
