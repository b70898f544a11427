//! RWKV-6 (Finch, arXiv 2404.05892), as in flash-linear-attention's layer, seeded r <- q, k <- k, v <- v.
//!
//! With d_t = x_{t-1} - x_t, decay and output gate are made of mixtures of a token with the one before,
//!
//! ```text
//! m_c  = x + d (b_c + U_c tanh(W_c (x + d mu)))     c: decay, gate; U_c W_c of low rank
//! g    = -e^(W2 tanh(W1 m_decay) + b)               per channel
//! o_t  = q_t^T (S_{t-1} + diag(u) k_t v_t^T)        S_t = diag(e^g_t) S_{t-1} + k_t v_t^T
//! y_t  = groupnorm(o_t) swish(W_g m_gate)           a group is a head; no RoPE, scale 1
//! ```
//!
//! The published layer mixes the inputs of r, k and v in the same way. A projection does not commute with a mixture per
//! channel of x that depends on the data, and the teacher's projections are made of x alone. It does commute with the
//! shift, so q, k and v are mixed with their own predecessors by a learned constant per channel of a head, none at the
//! start: the published form where its mixture is one constant, no more. u starts at 1, which reads the token's own value
//! in full; the published 0 leaves it out.

use super::parts::gate_tensors;
use super::recurrent::{self, Recurrent};
use super::stateful_ops::StatefulOps;
use super::{
    CalibrationParam, CalibrationUpdate, Combine, Granularity, Initial, LayerDims, LayerInputs, NewTensor, OptionKind,
    OptionSpec, OutputScale, Params, Registration,
};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::{add, mul, scale};
use crate::ops::linear::linear;
use crate::ops::norm::layer_norm;
use crate::ops::token_shift::lerp;
use crate::ops::unary::{Unary, unary};

/// e^-e^-4.6 = 0.99 a token.
const DECAY_BIAS: f32 = -4.6;
/// silu(1.2785) = 1.
const OPEN: f32 = 1.278_464_5;
const EPS: f64 = 1e-5;
const NORM: &str = "norm_weight";

pub const REGISTRATION: Registration = Registration {
    name: "rwkv6",
    summary: "a decay per key channel from token-shifted inputs, and a bonus for the token itself (RWKV-6)",
    formula: "o_t = norm(q_t^T (S_{t-1} + diag(u) k_t v_t^T)) swish(W_g m_t);  S_t = diag(e^g_t) S_{t-1} + k_t v_t^T;  g = -e^w(m)",
    paper: "RWKV-6 (arXiv 2404.05892)",
    rope: false,
    inherits: "r <- q, k and v, each mixed with its predecessor by a share that starts at zero",
    options: &[
        OptionSpec {
            name: "mix_rank",
            kind: OptionKind::Integer { min: 1, max: 1024 },
            default: "32",
            help: "rank of the mixtures with the token before (flash-linear-attention: 32)",
        },
        OptionSpec {
            name: "decay_rank",
            kind: OptionKind::Integer { min: 1, max: 1024 },
            default: "64",
            help: "rank of the decay's projection (flash-linear-attention: 64)",
        },
    ],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, layer_dims, window| {
        let mixer = Rwkv6 {
            layer_dims,
            mix_rank: options.integer("mix_rank", 32),
            decay_rank: options.integer("decay_rank", 64),
        };
        Ok(recurrent::mixer(mixer, layer_dims, window))
    },
};

struct Rwkv6 {
    layer_dims: LayerDims,
    mix_rank: usize,
    decay_rank: usize,
}

/// The tensors of one mixture.
struct Mixture {
    down: &'static str,
    up: &'static str,
    bias: &'static str,
}

const OF_DECAY: Mixture = Mixture { down: "decay_mix_down", up: "decay_mix_up", bias: "decay_mix_bias" };
const OF_GATE: Mixture = Mixture { down: "gate_mix_down", up: "gate_mix_up", bias: "gate_mix_bias" };

impl Mixture {
    /// m_c of x, x_{t-1} and x + d mu.
    fn of(&self, x: &Var, shifted: &Var, mixed: &Var, params: &Params) -> Result<Var> {
        let low = unary(&linear(mixed, params.get(self.down)?)?, Unary::Tanh)?;
        let share = add(&linear(&low, params.get(self.up)?)?, params.get(self.bias)?)?;
        lerp(x, shifted, &share)
    }
}

impl Recurrent for Rwkv6 {
    fn tensors(&self) -> Vec<NewTensor> {
        let LayerDims { heads, kv_heads, width, model_width, .. } = self.layer_dims;
        let constant = |name, shape, value| NewTensor { name, shape, initial: Initial::Constant(value) };
        let random = |name, rank| {
            let initial = Initial::Kaiming { fan_in: model_width };
            NewTensor { name, shape: vec![rank, model_width], initial }
        };
        let mut all = vec![constant("mix_base", vec![model_width], 0.0)];
        for mixture in [OF_DECAY, OF_GATE] {
            all.push(random(mixture.down, self.mix_rank));
            all.push(constant(mixture.up, vec![model_width, self.mix_rank], 0.0));
            all.push(constant(mixture.bias, vec![model_width], 0.0));
        }
        all.push(random("decay_down", self.decay_rank));
        all.push(constant("decay_up", vec![heads * width, self.decay_rank], 0.0));
        all.push(constant("decay_bias", vec![heads * width], DECAY_BIAS));
        all.push(constant("bonus", vec![heads, width], 1.0));
        all.push(constant("q_shift", vec![heads, width], 0.0));
        all.push(constant("k_shift", vec![kv_heads, width], 0.0));
        all.push(constant("v_shift", vec![kv_heads, width], 0.0));
        all.push(constant(NORM, vec![heads, width], 1.0));
        all.push(constant("norm_bias", vec![heads, width], 0.0));
        all.extend(gate_tensors("output_gate_weight", "output_gate_bias", &self.layer_dims, heads * width, OPEN));
        all
    }

    fn mix(&self, heads: &LayerInputs, params: &Params, ops: &mut StatefulOps) -> Result<Var> {
        let (batch, tokens) = heads.size()?;
        let split = |x: Var| x.reshape(&[batch, tokens, self.layer_dims.heads, self.layer_dims.width]);
        let x = heads.input()?;
        let shifted = ops.token_shift("last_input", x)?;
        let mixed = lerp(x, &shifted, params.get("mix_base")?)?;
        let low = linear(&OF_DECAY.of(x, &shifted, &mixed, params)?, params.get("decay_down")?)?;
        let w = linear(&unary(&low, Unary::Tanh)?, params.get("decay_up")?)?;
        let decay = scale(&unary(&add(&w, params.get("decay_bias")?)?, Unary::Exp)?, -1.0, 0.0)?;
        let mut shift = |last: &'static str, x: &Var, mu: &str| lerp(x, &ops.token_shift(last, x)?, params.get(mu)?);
        let q = shift("last_q", &heads.q, "q_shift")?;
        let k = shift("last_k", &heads.k, "k_shift")?;
        let v = shift("last_v", &heads.v, "v_shift")?;
        let o = ops.gated("s", (&q, &k, &v), Some(&split(decay)?), Some(params.get("bonus")?))?;
        let o = layer_norm(&o, 1, Some(params.get(NORM)?), Some(params.get("norm_bias")?), EPS)?;
        let gate = linear(&OF_GATE.of(x, &shifted, &mixed, params)?, params.get("output_gate_weight")?)?;
        let gate = unary(&add(&gate, params.get("output_gate_bias")?)?, Unary::Silu)?;
        ops.without_padding(&mul(&o, &split(gate)?)?)
    }

    fn calibration_params(&self) -> Vec<CalibrationParam> {
        // Decays of 0.5 to 0.9998 a token; the token's own share.
        let calibration_param = |tensor, values| CalibrationParam {
            tensor,
            granularity: Granularity::Head,
            values,
            update: CalibrationUpdate::Set,
        };
        vec![
            calibration_param("decay_bias", &[-0.37, -1.5, -2.3, -3.0, -4.6, -6.0, -7.0, -8.5]),
            calibration_param("bonus", &[0.0, 0.5, 1.0, 2.0]),
        ]
    }

    fn scale(&self) -> OutputScale {
        OutputScale::Existing(NORM)
    }

    fn state_size(&self) -> usize {
        let LayerDims { heads, kv_heads, width, model_width, .. } = self.layer_dims;
        heads * width * width + model_width + (heads + 2 * kv_heads) * width
    }
}
