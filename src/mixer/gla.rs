//! Gated linear attention (arXiv 2312.06635), as in flash-linear-attention's layer.
//!
//! g = ln sigmoid(W2 W1 x + b) / 16 per key channel, low rank 16; S_t = diag(e^g_t) S_{t-1} + k_t v_t^T;
//! o_t = (q_t / sqrt K)^T S_t; RMSNorm per head times swish(W_g x). No RoPE.

use super::carry::Carry;
use super::parts::{Convolutions, Finish};
use super::recurrent::{self, Recurrent};
use super::{
    Bound, Combine, Heads, How, Initial, Knob, NewTensor, OptionKind, OptionSpec, Per, Registration, Scale, Site,
};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::{add, scale};
use crate::ops::linear::linear;
use crate::ops::map::{Map, map};

/// What the log gate is divided by.
const NORMALIZER: f32 = 16.0;
/// sigmoid(3.2)^(1/16) = 0.9975: a half-life of 280 tokens.
const BIAS: f32 = 3.2;

pub const REGISTRATION: Registration = Registration {
    name: "gla",
    summary: "gated linear attention, a decay per key channel",
    formula: "S_t = diag(e^g_t) S_{t-1} + k_t v_t^T;  o_t = norm(q_t^T S_t / sqrt K) swish(W_g x_t);  g = ln sigmoid(W2 W1 x + b) / 16",
    paper: "Gated Linear Attention (arXiv 2312.06635)",
    rope: false,
    seeding: "q, k and v as they are",
    options: &[
        OptionSpec {
            name: "gate_rank",
            kind: OptionKind::Integer { min: 1, max: 1024 },
            default: "16",
            help: "rank of the gate's projection (flash-linear-attention: 16)",
        },
        Convolutions::option("false"),
        Finish::GATE,
    ],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, site, window| {
        let gla = Gla {
            site,
            rank: options.integer("gate_rank", 16),
            convolutions: Convolutions::new(site, options.flag("convolution")),
            finish: Finish::new(site, options.flag("output_gate"), 1e-5),
        };
        Ok(recurrent::mixer(gla, site, window))
    },
};

struct Gla {
    site: Site,
    rank: usize,
    convolutions: Convolutions,
    finish: Finish,
}

impl Recurrent for Gla {
    fn tensors(&self) -> Vec<NewTensor> {
        let Site { kv_heads, width, model_width, .. } = self.site;
        let gates = kv_heads * width;
        let down = Initial::Kaiming { fan_in: model_width };
        let mut all = vec![
            NewTensor { name: "gate_down", shape: vec![self.rank, model_width], initial: down },
            NewTensor { name: "gate_up", shape: vec![gates, self.rank], initial: Initial::Constant(0.0) },
            NewTensor { name: "gate_bias", shape: vec![gates], initial: Initial::Constant(BIAS) },
        ];
        all.extend(self.convolutions.tensors());
        all.extend(self.finish.tensors());
        all
    }

    fn mix(&self, heads: &Heads, bound: &Bound, carry: &mut Carry) -> Result<Var> {
        let (q, k, v) = self.convolutions.run(heads, bound, carry)?;
        let (batch, tokens) = heads.size()?;
        let low = linear(heads.input()?, bound.get("gate_down")?)?;
        let logits = add(&linear(&low, bound.get("gate_up")?)?, bound.get("gate_bias")?)?;
        let gate = scale(&map(&logits, Map::LogSigmoid)?, 1.0 / NORMALIZER, 0.0)?;
        let gate = gate.reshape(&[batch, tokens, self.site.kv_heads, self.site.width])?;
        let q = scale(&q, 1.0 / (self.site.width as f32).sqrt(), 0.0)?;
        let o = carry.gated("s", (&q, &k, &v), Some(&gate), None)?;
        self.finish.run(&o, heads, bound)
    }

    fn knobs(&self) -> Vec<Knob> {
        // Decays of 0.51 to 0.9995 a token.
        let values = &[-10.6, -6.0, -3.0, -1.0, 0.0, 1.0, 2.0, 3.2, 4.5, 6.0];
        vec![Knob { tensor: "gate_bias", per: Per::KvHead, values, how: How::Set }]
    }

    fn scale(&self) -> Scale {
        Scale::Own(Finish::SCALE)
    }

    fn state_size(&self) -> usize {
        self.site.kv_heads * self.site.width * self.site.width + self.convolutions.state_size()
    }
}
