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

use super::carry::Carry;
use super::parts::gate;
use super::recurrent::{self, Recurrent};
use super::{
    Bound, Combine, Heads, How, Initial, Knob, NewTensor, OptionKind, OptionSpec, Per, Registration, Scale, Site,
};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::scale;
use crate::ops::map::{Map, map};
use crate::ops::norm::rms_norm_over;
use crate::ops::softmax::softmax;

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
    seeding: "q, k and v through SiLU",
    options: &[OptionSpec {
        name: "slots",
        kind: OptionKind::Integer { min: 2, max: 1024 },
        default: "null",
        help: "slots of each kv head (default: the head width, as flash-linear-attention; the paper: 64)",
    }],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, site, window| {
        let gsa = SlotAttention { site, slots: options.integer("slots", site.width) };
        Ok(recurrent::mixer(gsa, site, window))
    },
};

struct SlotAttention {
    site: Site,
    slots: usize,
}

/// Both passes: `q` [B, T, H, K], `k` [B, T, G, K], `v` [B, T, G, V] and log gates [B, T, G, M].
pub(super) fn passes(carry: &mut Carry, q: &Var, k: &Var, v: &Var, gate: &Var) -> Result<Var> {
    let s = map(gate, Map::OneMinusExp)?;
    let p = softmax(&carry.value_gated("slot_keys", (q, k, &s), gate)?, None)?;
    carry.gated("slot_values", (&p, &s, v), Some(gate), None)
}

/// Numbers in the states of [`passes`].
pub(super) fn state_size(site: &Site, slots: usize) -> usize {
    2 * site.kv_heads * site.width * slots
}

impl Recurrent for SlotAttention {
    fn tensors(&self) -> Vec<NewTensor> {
        let Site { heads, kv_heads, width, model_width, .. } = self.site;
        let gates = kv_heads * self.slots;
        let random = Initial::Kaiming { fan_in: model_width };
        vec![
            NewTensor { name: "gate_weight", shape: vec![gates, model_width], initial: random },
            NewTensor { name: "gate_bias", shape: vec![gates], initial: Initial::Constant(BIAS) },
            NewTensor { name: NORM, shape: vec![heads, width], initial: Initial::Constant(1.0) },
        ]
    }

    fn mix(&self, heads: &Heads, bound: &Bound, carry: &mut Carry) -> Result<Var> {
        let active = |x: &Var| map(x, Map::Silu);
        let (q, k, v) = (active(&heads.q)?, active(&heads.k)?, active(&heads.v)?);
        let logits = gate(heads, bound, "gate_weight", "gate_bias", self.site.kv_heads)?;
        let gate = scale(&map(&logits, Map::LogSigmoid)?, 1.0 / NORMALIZER, 0.0)?;
        let o = active(&passes(carry, &q, &k, &v, &gate)?)?;
        rms_norm_over(&o, 2, Some(bound.get(NORM)?), EPS)
    }

    fn knobs(&self) -> Vec<Knob> {
        // Decays of 0.5 to 0.9998 a token.
        let values = &[-5.5, -3.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.5, 6.4];
        vec![Knob { tensor: "gate_bias", per: Per::KvHead, values, how: How::Set }]
    }

    fn scale(&self) -> Scale {
        Scale::Own(NORM)
    }

    fn state_size(&self) -> usize {
        state_size(&self.site, self.slots)
    }
}
