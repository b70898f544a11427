//! Titans' neural memory (arXiv 2501.00663) in its linear form: the memory is a matrix, and a token is one step of gradient
//! descent on |S^T k - v|^2 with weight decay, without momentum.
//!
//! theta = sigmoid(W_theta x + b), alpha = sigmoid(W_alpha x + b), one of each per head;
//! S_t = (1 - alpha_t) S_{t-1} - 2 theta_t k_t (S_{t-1}^T k_t - v_t)^T; o_t = q_t^T S_t; q and k of unit length, as in the
//! paper's section 4.4. The gradient is taken before the decay, unlike the gated delta rule's: diagonal plus low rank with
//! a = k, b = -2 theta k. No RoPE.

use super::parts::{gate, gate_tensors};
use super::recurrent::{self, Recurrent};
use super::stateful_ops::StatefulOps;
use super::{
    CalibrationParam, CalibrationUpdate, Combine, Granularity, LayerDims, LayerInputs, NewTensor, OptionKind,
    OptionSpec, OutputScale, Params, Registration,
};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::{mul, scale};
use crate::ops::norm::l2_norm;
use crate::ops::shape::repeat_heads;
use crate::ops::unary::{Unary, unary};

/// theta = 0.25: half of an error is corrected.
const THETA_BIAS: f32 = -1.098_612_3;
/// 1 - alpha = 0.99.
const ALPHA_BIAS: f32 = -4.595_12;
/// flash-linear-attention's l2norm.
const EPS: f64 = 1e-6;

pub const REGISTRATION: Registration = Registration {
    name: "titans",
    summary: "linear neural memory: a step of gradient descent a token, with weight decay",
    formula: "S_t = (1 - a_t) S_{t-1} - 2 theta_t k_t (S_{t-1}^T k_t - v_t)^T;  o_t = q_t^T S_t;  |q| = |k| = 1",
    paper: "Titans (arXiv 2501.00663), without momentum",
    rope: false,
    inherits: "q and k at unit length, v as it is",
    options: &[
        OptionSpec {
            name: "unit_length",
            kind: OptionKind::Flag,
            default: "true",
            help: "q and k of unit length (the paper); false: as they come, and a state grows without bound where \
                   theta |k|^2 > 1",
        },
        OptionSpec {
            name: "mean_loss",
            kind: OptionKind::Flag,
            default: "false",
            help: "the inner loss is the mean over a value's channels (the code titans-pytorch), not their sum (the paper)",
        },
        OutputScale::OPTION,
    ],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, layer_dims, window| {
        let mixer = Titans {
            layer_dims,
            unit: options.flag("unit_length"),
            rate: if options.flag("mean_loss") { 2.0 / layer_dims.width as f32 } else { 2.0 },
            scale: OutputScale::added(options.flag("output_scale")),
        };
        Ok(recurrent::mixer(mixer, layer_dims, window))
    },
};

struct Titans {
    layer_dims: LayerDims,
    /// Whether q and k have unit length.
    unit: bool,
    /// The gradient's factor.
    rate: f32,
    scale: OutputScale,
}

impl Recurrent for Titans {
    fn tensors(&self) -> Vec<NewTensor> {
        let heads = self.layer_dims.heads;
        let mut all = gate_tensors("theta_weight", "theta_bias", &self.layer_dims, heads, THETA_BIAS).to_vec();
        all.extend(gate_tensors("alpha_weight", "alpha_bias", &self.layer_dims, heads, ALPHA_BIAS));
        all
    }

    fn mix(&self, heads: &LayerInputs, params: &Params, ops: &mut StatefulOps) -> Result<Var> {
        let h = self.layer_dims.heads;
        let length = |x: &Var| if self.unit { l2_norm(x, EPS) } else { Ok(x.clone()) };
        // Steps differ from query head to query head, and so do writes.
        let (q, k, v) = (length(&heads.q)?, repeat_heads(&length(&heads.k)?, h)?, repeat_heads(&heads.v, h)?);
        let theta = unary(&gate(heads, params, "theta_weight", "theta_bias", h)?, Unary::Sigmoid)?;
        let write = mul(&k, &scale(&theta, self.rate, 0.0)?)?;
        // ln(1 - sigmoid(x)) = ln sigmoid(-x)
        let alpha = gate(heads, params, "alpha_weight", "alpha_bias", h)?;
        let decay = unary(&scale(&alpha, -1.0, 0.0)?, Unary::LogSigmoid)?;
        ops.dplr("s", (&q, &write, &v), (&k, &scale(&write, -1.0, 0.0)?), Some(&decay))
    }

    fn calibration_params(&self) -> Vec<CalibrationParam> {
        // Decays of 0.5 to 0.9998 a token; corrections of 0.05 to 0.95 of an error.
        let alpha = &[0.0, -0.85, -2.2, -3.0, -4.6, -6.0, -8.5];
        let theta = &[-3.66, -2.6, -1.8, -1.1, -0.5, -0.1];
        let calibration_param = |tensor, values| CalibrationParam {
            tensor,
            granularity: Granularity::Head,
            values,
            update: CalibrationUpdate::Set,
        };
        vec![calibration_param("alpha_bias", alpha), calibration_param("theta_bias", theta)]
    }

    fn scale(&self) -> OutputScale {
        self.scale
    }

    fn state_size(&self) -> usize {
        self.layer_dims.heads * self.layer_dims.width * self.layer_dims.width
    }
}
