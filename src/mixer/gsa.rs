//! Gated slot attention (arXiv 2409.07146), as in flash-linear-attention's layer.
//!
//! M slots per kv head with f = ln sigmoid(W x + b) / 8 and s = 1 - e^f; q, k, v through SiLU; two passes,
//!
//! ```text
//! Hk_t = Hk_{t-1} diag(e^f_t) + k_t s_t^T     p_t = softmax(q_t^T Hk_t)
//! Hv_t = diag(e^f_t) Hv_{t-1} + s_t v_t^T     o_t = p_t^T Hv_t
//! ```
//!
//! then SiLU and RMSNorm over all heads. No RoPE. W starts at random, as published: from equal rows all slots would be,
//! and stay, one. b is ours, zero in the published layer: it sets the decay.

use super::parts::gate;
use super::recurrent::{self, Recurrent};
use super::stateful_ops::StatefulOps;
use super::{
    CalibrationParam, CalibrationUpdate, Combine, Granularity, Initial, LayerDims, LayerInputs, NewTensor, OptionKind,
    OptionSpec, OutputScale, Params, Registration,
};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::scale;
use crate::ops::norm::rms_norm_over;
use crate::ops::softmax::softmax;
use crate::ops::unary::{Unary, unary};

/// What the log gate is divided by.
const NORMALIZER: f32 = 8.0;
/// sigmoid(3)^(1/8) = 0.994.
const BIAS: f32 = 3.0;
const EPS: f64 = 1e-5;
const NORM: &str = "norm_weight";

pub const REGISTRATION: Registration = Registration {
    name: "gsa",
    summary: "gated slot attention: softmax over slots that decay",
    formula: "p_t = softmax(q_t^T Hk_t);  o_t = norm(silu(p_t^T Hv_t));  Hk, Hv gated sums of k s^T, s v^T;  s = 1 - e^f",
    paper: "Gated Slot Attention (arXiv 2409.07146)",
    rope: false,
    inherits: "q, k and v through SiLU",
    options: &[OptionSpec {
        name: "slots",
        kind: OptionKind::Integer { min: 2, max: 1024 },
        default: "null",
        help: "slots of each kv head (default: the head width, as flash-linear-attention; the paper: 64)",
    }],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, layer_dims, window| {
        let gsa = SlotAttention { layer_dims, slots: options.integer("slots", layer_dims.width) };
        Ok(recurrent::mixer(gsa, layer_dims, window))
    },
};

struct SlotAttention {
    layer_dims: LayerDims,
    slots: usize,
}

/// Both passes: `q` [B, T, H, K], `k` [B, T, G, K], `v` [B, T, G, V] and log gates [B, T, G, M].
pub(super) fn passes(ops: &mut StatefulOps, q: &Var, k: &Var, v: &Var, gate: &Var) -> Result<Var> {
    let s = unary(gate, Unary::OneMinusExp)?;
    let p = softmax(&ops.value_gated("slot_keys", (q, k, &s), gate)?, None)?;
    ops.gated("slot_values", (&p, &s, v), Some(gate), None)
}

/// Numbers in the states of [`passes`].
pub(super) fn state_size(layer_dims: &LayerDims, slots: usize) -> usize {
    2 * layer_dims.kv_heads * layer_dims.width * slots
}

impl Recurrent for SlotAttention {
    fn tensors(&self) -> Vec<NewTensor> {
        let LayerDims { heads, kv_heads, width, model_width, .. } = self.layer_dims;
        let gates = kv_heads * self.slots;
        let random = Initial::Kaiming { fan_in: model_width };
        vec![
            NewTensor { name: "gate_weight", shape: vec![gates, model_width], initial: random },
            NewTensor { name: "gate_bias", shape: vec![gates], initial: Initial::Constant(BIAS) },
            NewTensor { name: NORM, shape: vec![heads, width], initial: Initial::Constant(1.0) },
        ]
    }

    fn mix(&self, heads: &LayerInputs, params: &Params, ops: &mut StatefulOps) -> Result<Var> {
        let active = |x: &Var| unary(x, Unary::Silu);
        let (q, k, v) = (active(&heads.q)?, active(&heads.k)?, active(&heads.v)?);
        let logits = gate(heads, params, "gate_weight", "gate_bias", self.layer_dims.kv_heads)?;
        let gate = scale(&unary(&logits, Unary::LogSigmoid)?, 1.0 / NORMALIZER, 0.0)?;
        let o = active(&passes(ops, &q, &k, &v, &gate)?)?;
        rms_norm_over(&o, 2, Some(params.get(NORM)?), EPS)
    }

    fn calibration_params(&self) -> Vec<CalibrationParam> {
        // Decays of 0.5 to 0.9998 a token.
        let values = &[-5.5, -3.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.5, 6.4];
        vec![CalibrationParam {
            tensor: "gate_bias",
            granularity: Granularity::KvHead,
            values,
            update: CalibrationUpdate::Set,
        }]
    }

    fn scale(&self) -> OutputScale {
        OutputScale::Existing(NORM)
    }

    fn state_size(&self) -> usize {
        state_size(&self.layer_dims, self.slots)
    }
}
