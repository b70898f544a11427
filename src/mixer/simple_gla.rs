//! Simple gated linear attention, as in flash-linear-attention's layer: GLA (arXiv 2312.06635) with one decay per head.
//!
//! g = ln sigmoid(W x + b) / 16 per head; S_t = e^g_t S_{t-1} + k_t v_t^T; o_t = (q_t / sqrt K)^T S_t; short convolutions
//! before, RMSNorm per head times swish(W_g x) after. No RoPE.

use super::carry::Carry;
use super::parts::{Convolutions, Finish, gate, gate_tensors};
use super::recurrent::{self, Recurrent};
use super::{Bound, Combine, Heads, How, Knob, NewTensor, Per, Registration, Scale, Site};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::scale;
use crate::ops::map::{Map, map};

/// What the log gate is divided by.
const NORMALIZER: f32 = 16.0;
/// sigmoid(3.2)^(1/16) = 0.9975: a half-life of 280 tokens.
const BIAS: f32 = 3.2;

pub const REGISTRATION: Registration = Registration {
    name: "simple-gla",
    summary: "gated linear attention, a decay per head",
    formula: "S_t = e^g_t S_{t-1} + k_t v_t^T;  o_t = norm(q_t^T S_t / sqrt K) swish(W_g x_t);  g = ln sigmoid(W x + b) / 16",
    paper: "Gated Linear Attention (arXiv 2312.06635), as simplified in flash-linear-attention",
    rope: false,
    seeding: "q, k and v through short convolutions",
    options: &[Convolutions::option("true"), Finish::GATE],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, site, window| {
        let mixer = SimpleGla {
            site,
            convolutions: Convolutions::new(site, options.flag("convolution")),
            finish: Finish::new(site, options.flag("output_gate"), 1e-5),
        };
        Ok(recurrent::mixer(mixer, site, window))
    },
};

struct SimpleGla {
    site: Site,
    convolutions: Convolutions,
    finish: Finish,
}

impl Recurrent for SimpleGla {
    fn tensors(&self) -> Vec<NewTensor> {
        let mut all = gate_tensors("gate_weight", "gate_bias", &self.site, self.site.heads, BIAS).to_vec();
        all.extend(self.convolutions.tensors());
        all.extend(self.finish.tensors());
        all
    }

    fn mix(&self, heads: &Heads, bound: &Bound, carry: &mut Carry) -> Result<Var> {
        let (q, k, v) = self.convolutions.run(heads, bound, carry)?;
        let logits = gate(heads, bound, "gate_weight", "gate_bias", self.site.heads)?;
        let gate = scale(&map(&logits, Map::LogSigmoid)?, 1.0 / NORMALIZER, 0.0)?;
        let q = scale(&q, 1.0 / (self.site.width as f32).sqrt(), 0.0)?;
        let o = carry.gated("s", (&q, &k, &v), Some(&gate), None)?;
        self.finish.run(&o, heads, bound)
    }

    fn knobs(&self) -> Vec<Knob> {
        // Decays of 0.51 to 0.9998 a token.
        let values = &[-10.6, -6.0, -3.0, -1.0, 0.0, 1.0, 2.0, 3.2, 4.5, 6.0];
        vec![Knob { tensor: "gate_bias", per: Per::Head, values, how: How::Set }]
    }

    fn scale(&self) -> Scale {
        Scale::Own(Finish::SCALE)
    }

    fn state_size(&self) -> usize {
        self.site.heads * self.site.width * self.site.width + self.convolutions.state_size()
    }
}
