//! y = f(x), element by element: the activations of feature maps and gates.

use crate::Result;
use crate::ops::cpu::simd::{Kernel, erf, exp_to_zero, ln, ln_1p, logistic, simd, tanh};
use crate::ops::cpu::{Output, Slice};
use crate::ops::formulas;
use crate::ops::operator::{Operator, apply1};
use crate::ops::tape::Var;
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
    apply1(f, &[x])
}

impl Operator for Unary {
    type Kept = ();

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![by_formula(&inputs[0], *self)?])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, ())> {
        Ok((vec![run(&inputs[0], None, *self)?], ()))
    }

    fn backward_cpu(&self, inputs: &[Tensor], _: (), _: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(run(&inputs[0], Some(&up[0]), *self)?)])
    }
}

fn by_formula(x: &Tensor, f: Unary) -> Result<Tensor> {
    let y = match f {
        Unary::Sigmoid => formulas::sigmoid(x)?,
        Unary::LogSigmoid => softplus_formula(&x.neg()?)?.neg()?,
        Unary::Softplus => softplus_formula(x)?,
        Unary::Silu => formulas::silu(x)?,
        Unary::Gelu => (x * (x * std::f64::consts::FRAC_1_SQRT_2)?.erf()?.affine(0.5, 0.5)?)?,
        Unary::GeluTanh => {
            // Far out the sigmoid has reached its limits, and its argument would overflow.
            let near = keep_within(x, -20.0, 20.0)?;
            let cubic = near.sqr()?.affine(f64::from(SLOPE * CUBE), f64::from(SLOPE))?;
            (x * formulas::sigmoid(&(near * cubic)?)?)?
        }
        Unary::Relu => formulas::replace(x, &x.le(0.0)?, 0.0)?,
        Unary::ReluSquared => formulas::replace(x, &x.le(0.0)?, 0.0)?.sqr()?,
        Unary::EluPlusOne => {
            let below = formulas::replace(x, &x.ge(0.0)?, 0.0)?;
            (formulas::replace(x, &x.lt(0.0)?, 0.0)? + below.exp()?)?
        }
        Unary::Exp => {
            let y = formulas::replace(x, &x.gt(MAX_EXPONENT)?, MAX_EXPONENT)?.exp()?;
            formulas::replace(&y, &x.lt(MIN_EXPONENT)?, 0.0)?
        }
        Unary::OneMinusExp => one_minus_exp_formula(x)?,
        Unary::Ln => x.log()?,
        Unary::Tanh => x.tanh()?,
        Unary::Square => x.sqr()?,
        Unary::Reciprocal => x.recip()?,
        Unary::Clamp { min, max } => keep_within(x, f64::from(min), f64::from(max))?,
    };
    Ok(y)
}

/// Between them e^x is a normal f32.
const MIN_EXPONENT: f64 = -87.33654;
const MAX_EXPONENT: f64 = 88.37626;

/// candle's clamp halves the gradient at the bounds.
fn keep_within(x: &Tensor, min: f64, max: f64) -> Result<Tensor> {
    let x = formulas::replace(x, &x.lt(min)?, min)?;
    formulas::replace(&x, &x.gt(max)?, max)
}

/// max(x, 0) + ln(1 + e), e = e^-|x|; the logarithm as the series of 2 artanh(e / (2 + e)), exact however small e is.
fn softplus_formula(x: &Tensor) -> Result<Tensor> {
    let e = x.abs()?.neg()?.exp()?;
    let z = (&e / (&e + 2.0)?)?;
    let square = z.sqr()?;
    let mut series = square.affine(0.0, 2.0 / 17.0)?;
    for odd in [15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        series = ((series * &square)? + 2.0 / odd)?;
    }
    Ok((formulas::replace(x, &x.lt(0.0)?, 0.0)? + (series * z)?)?)
}

/// Near 0 by the Taylor series, as the kernel does.
fn one_minus_exp_formula(x: &Tensor) -> Result<Tensor> {
    let near = x.abs()?.lt(0.5)?;
    let small = formulas::replace(x, &near.eq(0u8)?, 0.0)?;
    let mut p = small.affine(0.0, TAYLOR[0])?;
    for factor in &TAYLOR[1..] {
        p = ((p * &small)? + *factor)?;
    }
    let far = formulas::replace(x, &near, 0.0)?.exp()?.affine(-1.0, 1.0)?;
    Ok(near.where_cond(&(small * p)?.neg()?, &far)?)
}

/// 1 / n! of n from 7 to 1.
const TAYLOR: [f64; 7] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0];

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
