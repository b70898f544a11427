//! Parts that mechanisms with the delta rule share: writes between 0 and 1 or 2, unit vectors, decays of a step size.

use super::parts::{gate, gate_tensors};
use super::{
    CalibrationParam, CalibrationUpdate, Granularity, Initial, LayerDims, LayerInputs, NewTensor, OptionKind,
    OptionSpec, Options, Params,
};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::{add, mul, scale};
use crate::ops::linear::linear;
use crate::ops::norm::l2_norm;
use crate::ops::unary::{Unary, unary};

/// A decay of 0.99 a token at the start, e^A softplus(b) = 0.01: in the range that the papers draw from.
const LOG_A: f32 = 0.0;
pub const DT_BIAS: f32 = -4.600_166;
/// flash-linear-attention's l2norm.
const EPS: f64 = 1e-6;

/// The option that doubles beta.
pub const NEGATIVE_EIGENVALUES: OptionSpec = OptionSpec {
    name: "negative_eigenvalues",
    kind: OptionKind::Flag,
    default: "false",
    help: "double beta, so that a state can be reflected (arXiv 2411.12537)",
};

/// The option that leaves out beta's bias.
pub const BETA_BIAS: OptionSpec = OptionSpec {
    name: "beta_bias",
    kind: OptionKind::Flag,
    default: "true",
    help: "add a bias to W_b x; without one, flash-linear-attention's own layer holds this mixer (`export --format fla`)",
};

/// Decays of 0.5 to 0.9998 a token.
pub const DECAY_KNOB: CalibrationParam = CalibrationParam {
    tensor: "dt_bias",
    granularity: Granularity::Head,
    values: &[-0.02, -1.1, -2.2, -3.0, -4.6, -6.0, -8.5],
    update: CalibrationUpdate::Set,
};

/// q / |q| sqrt K and k / |k|.
pub fn unit_vectors(q: &Var, k: &Var, width: usize) -> Result<(Var, Var)> {
    Ok((scale(&l2_norm(q, EPS)?, 1.0 / (width as f32).sqrt(), 0.0)?, l2_norm(k, EPS)?))
}

/// How much of a value is written: r sigmoid(W_b x + b), one per head and write.
pub struct Beta {
    /// The largest, r.
    reach: f32,
    biased: bool,
}

impl Beta {
    /// Of 0.05 to 0.95, times two where doubled.
    pub const USUAL: &'static [f32] = &[-3.0, -2.0, -1.0, 0.0, 1.0, 3.0];
    /// The names of the weight and bias.
    pub const NAMES: [&'static str; 2] = ["beta_weight", "beta_bias"];

    /// By [`NEGATIVE_EIGENVALUES`] and [`BETA_BIAS`].
    pub fn new(options: &Options) -> Beta {
        let reach = if options.flag(NEGATIVE_EIGENVALUES.name) { 2.0 } else { 1.0 };
        Beta { reach, biased: options.flag(BETA_BIAS.name) }
    }

    /// Those of `n` logits, the bias starting at `start`.
    pub fn tensors(
        &self,
        [weight, bias]: [&'static str; 2],
        layer_dims: &LayerDims,
        n: usize,
        start: f32,
    ) -> Vec<NewTensor> {
        let all = gate_tensors(weight, bias, layer_dims, n, start);
        all.into_iter().take(if self.biased { 2 } else { 1 }).collect()
    }

    /// [B, T, n]
    pub fn logits(&self, [weight, bias]: [&str; 2], heads: &LayerInputs, params: &Params) -> Result<Var> {
        let logits = linear(heads.input()?, params.get(weight)?)?;
        if self.biased { add(&logits, params.get(bias)?) } else { Ok(logits) }
    }

    /// beta of logits.
    pub fn of(&self, logits: &Var) -> Result<Var> {
        scale(&unary(logits, Unary::Sigmoid)?, self.reach, 0.0)
    }

    /// beta [B, T, H, 1] of one write a token.
    pub fn run(&self, heads: &LayerInputs, params: &Params) -> Result<Var> {
        let logits = self.logits(Self::NAMES, heads, params)?;
        let (b, t, h) = logits.value().dims3()?;
        self.of(&logits.reshape(&[b, t, h, 1])?)
    }

    pub fn calibration_param(&self, values: &'static [f32]) -> Option<CalibrationParam> {
        self.biased.then_some(CalibrationParam {
            tensor: Self::NAMES[1],
            granularity: Granularity::Head,
            values,
            update: CalibrationUpdate::Set,
        })
    }
}

/// A, one per head.
pub fn log_rate(layer_dims: &LayerDims) -> NewTensor {
    NewTensor { name: "a_log", shape: vec![layer_dims.heads, 1], initial: Initial::Constant(LOG_A) }
}

/// softplus(W x + b) [B, T, H, 1], W being `weight`.
pub fn step_size(heads: &LayerInputs, params: &Params, weight: &str, states: usize) -> Result<Var> {
    unary(&gate(heads, params, weight, "dt_bias", states)?, Unary::Softplus)
}

/// The log decay -e^A dt.
pub fn decay(step_size: &Var, params: &Params) -> Result<Var> {
    scale(&mul(step_size, &unary(params.get("a_log")?, Unary::Exp)?)?, -1.0, 0.0)
}
