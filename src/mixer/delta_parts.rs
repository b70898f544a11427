//! Parts that mechanisms with the delta rule share: writes between 0 and 1 or 2, unit vectors, decays of a step size.

use super::parts::{gate, gate_tensors};
use super::{Bound, Heads, How, Initial, Knob, NewTensor, OptionKind, OptionSpec, Options, Per, Site};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::{mul, scale};
use crate::ops::map::{Map, map};
use crate::ops::norm::l2_norm;

/// A decay of 0.99 a token at the start, e^A softplus(b) = 0.01: in the range that the papers draw from.
const LOG_A: f32 = 0.0;
pub const DT_BIAS: f32 = -4.600_166;
/// sigmoid(0) = 1/2
const BETA_BIAS: f32 = 0.0;
/// flash-linear-attention's l2norm.
const EPS: f64 = 1e-6;

/// The option that doubles beta; [`reach`] reads it.
pub const NEGATIVE_EIGENVALUES: OptionSpec = OptionSpec {
    name: "negative_eigenvalues",
    kind: OptionKind::Flag,
    default: "false",
    help: "double beta, so that a state can be reflected (arXiv 2411.12537)",
};

/// Beta of 0.05 to 0.95, times two where doubled.
pub const BETA_KNOB: Knob =
    Knob { tensor: "beta_bias", per: Per::Head, values: &[-3.0, -2.0, -1.0, 0.0, 1.0, 3.0], how: How::Set };

/// Decays of 0.5 to 0.9998 a token.
pub const DECAY_KNOB: Knob =
    Knob { tensor: "dt_bias", per: Per::Head, values: &[-0.02, -1.1, -2.2, -3.0, -4.6, -6.0, -8.5], how: How::Set };

/// The largest beta.
pub fn reach(options: &Options) -> f32 {
    if options.flag(NEGATIVE_EIGENVALUES.name) { 2.0 } else { 1.0 }
}

/// q / |q| sqrt K and k / |k|.
pub fn unit_vectors(q: &Var, k: &Var, width: usize) -> Result<(Var, Var)> {
    Ok((scale(&l2_norm(q, EPS)?, 1.0 / (width as f32).sqrt(), 0.0)?, l2_norm(k, EPS)?))
}

/// Those of [`beta`].
pub fn beta_tensors(site: &Site) -> [NewTensor; 2] {
    gate_tensors("beta_weight", "beta_bias", site, site.heads, BETA_BIAS)
}

/// beta [B, T, H, 1], at most `reach`.
pub fn beta(heads: &Heads, bound: &Bound, states: usize, reach: f32) -> Result<Var> {
    let logits = gate(heads, bound, "beta_weight", "beta_bias", states)?;
    scale(&map(&logits, Map::Sigmoid)?, reach, 0.0)
}

/// A, one per head.
pub fn log_rate(site: &Site) -> NewTensor {
    NewTensor { name: "a_log", shape: vec![site.heads, 1], initial: Initial::Constant(LOG_A) }
}

/// softplus(W x + b) [B, T, H, 1], W being `weight`.
pub fn step_size(heads: &Heads, bound: &Bound, weight: &str, states: usize) -> Result<Var> {
    map(&gate(heads, bound, weight, "dt_bias", states)?, Map::Softplus)
}

/// The log decay -e^A dt.
pub fn decay(step_size: &Var, bound: &Bound) -> Result<Var> {
    scale(&mul(step_size, &map(bound.get("a_log")?, Map::Exp)?)?, -1.0, 0.0)
}
