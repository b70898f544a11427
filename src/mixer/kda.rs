//! Kimi delta attention (arXiv 2510.26692), as in flash-linear-attention's layer.
//!
//! g = -e^A softplus(W2 W1 x + b_dt) per key channel, low rank V, A per head; beta = sigmoid(W_b x) per head; q and k of
//! unit length after their convolutions; S~ = diag(e^g_t) S_{t-1}, S_t = S~ + beta_t k_t (v_t - S~^T k_t)^T,
//! o_t = (q_t / sqrt K)^T S_t; RMSNorm per head times sigmoid of a gate of low rank V. The safe gate is
//! g = -5 sigmoid(e^A (W2 W1 x + b_dt)), bounded below. No RoPE.

use super::delta_parts::{self as delta, Beta};
use super::parts::{Convolutions, GatedNorm, low_rank_gate, low_rank_tensors};
use super::recurrent::{self, Recurrent};
use super::stateful_ops::StatefulOps;
use super::{
    CalibrationParam, Combine, LayerDims, LayerInputs, NewTensor, OptionKind, OptionSpec, OutputScale, Params,
    Registration,
};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::{mul, scale};
use crate::ops::unary::{Unary, unary};

/// The safe gate's start: 5 sigmoid(b) = 0.01.
const SAFE_BIAS: f32 = -6.212_606;
/// The safe gate's lower bound on a log decay, the paper's and flash-linear-attention's.
const FLOOR: f32 = -5.0;
const GATE: [&str; 3] = ["gate_down", "gate_up", "dt_bias"];

pub const REGISTRATION: Registration = Registration {
    name: "kda",
    summary: "Kimi delta attention: delta rule with a decay per key channel",
    formula: "S~ = diag(e^g_t) S_{t-1};  S_t = S~ + b_t k_t (v_t - S~^T k_t)^T;  o_t = norm(q_t^T S_t / sqrt K) sigmoid(W4 W3 x_t)",
    paper: "Kimi Linear (arXiv 2510.26692)",
    rope: false,
    inherits: "q, k and v through short convolutions; q and k at unit length",
    options: &[
        OptionSpec {
            name: "safe_gate",
            kind: OptionKind::Flag,
            default: "false",
            help: "bound log decays below by -5 (flash-linear-attention's safe_gate)",
        },
        OptionSpec {
            name: "gate_rank",
            kind: OptionKind::Integer { min: 1, max: 1024 },
            default: "null",
            help: "rank of the decay's and the output gate's projections (the paper's: the width of a head)",
        },
        delta::NEGATIVE_EIGENVALUES,
        delta::BETA_BIAS,
        Convolutions::option("true"),
        OptionSpec {
            help: "multiply the normalised output by sigmoid(W2 W1 x + b), 1/2 at the start under a norm weight of 2",
            ..GatedNorm::GATE
        },
    ],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, layer_dims, window| {
        let rank = options.integer("gate_rank", layer_dims.width);
        let mixer = Kda {
            layer_dims,
            rank,
            safe: options.flag("safe_gate"),
            beta: Beta::new(options),
            convolutions: Convolutions::new(layer_dims, options.flag("convolution")),
            finish: match options.flag("output_gate") {
                true => GatedNorm::low_rank(layer_dims, rank, 1e-5),
                false => GatedNorm::new(layer_dims, false, 1e-5),
            },
        };
        Ok(recurrent::mixer(mixer, layer_dims, window))
    },
};

struct Kda {
    layer_dims: LayerDims,
    rank: usize,
    safe: bool,
    beta: Beta,
    convolutions: Convolutions,
    finish: GatedNorm,
}

impl Kda {
    /// g [B, T, H, K].
    fn decay(&self, heads: &LayerInputs, params: &Params) -> Result<Var> {
        let logits = low_rank_gate(heads.input()?, params, GATE, self.layer_dims.heads)?;
        let rate = unary(params.get("a_log")?, Unary::Exp)?;
        if self.safe {
            return scale(&unary(&mul(&logits, &rate)?, Unary::Sigmoid)?, FLOOR, 0.0);
        }
        scale(&mul(&unary(&logits, Unary::Softplus)?, &rate)?, -1.0, 0.0)
    }
}

impl Recurrent for Kda {
    fn tensors(&self) -> Vec<NewTensor> {
        let LayerDims { heads, width, .. } = self.layer_dims;
        let start = if self.safe { SAFE_BIAS } else { delta::DT_BIAS };
        let mut all = vec![delta::log_rate(&self.layer_dims)];
        all.extend(low_rank_tensors(GATE, &self.layer_dims, self.rank, heads * width, start));
        all.extend(self.beta.tensors(Beta::NAMES, &self.layer_dims, heads, 0.0));
        all.extend(self.convolutions.tensors());
        all.extend(self.finish.tensors());
        all
    }

    fn mix(&self, heads: &LayerInputs, params: &Params, ops: &mut StatefulOps) -> Result<Var> {
        let (q, k, v) = self.convolutions.run(heads, params, ops)?;
        let (q, k) = delta::unit_vectors(&q, &k, self.layer_dims.width)?;
        let beta = self.beta.run(heads, params)?;
        let o = ops.delta("s", (&q, &k, &v), &beta, Some(&self.decay(heads, params)?), 1)?;
        self.finish.run(&o, heads, params)
    }

    fn calibration_params(&self) -> Vec<CalibrationParam> {
        // The same decays, 0.5 to 0.9998 a token, by either gate.
        let decay = match self.safe {
            true => CalibrationParam { values: &[-1.83, -3.0, -4.0, -5.0, -6.2, -7.5, -10.1], ..delta::DECAY_KNOB },
            false => delta::DECAY_KNOB,
        };
        std::iter::once(decay).chain(self.beta.calibration_param(Beta::USUAL)).collect()
    }

    fn scale(&self) -> OutputScale {
        OutputScale::Existing(GatedNorm::SCALE)
    }

    fn state_size(&self) -> usize {
        self.layer_dims.heads * self.layer_dims.width * self.layer_dims.width + self.convolutions.state_size()
    }
}
