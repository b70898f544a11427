//! Gated DeltaNet (arXiv 2412.06464), as in flash-linear-attention's layer.
//!
//! g = -e^A softplus(W_a x + b_dt), beta = sigmoid(W_b x), one of each per head; q and k of unit length after their
//! convolutions; S~ = e^g_t S_{t-1}, S_t = S~ + beta_t k_t (v_t - S~^T k_t)^T, o_t = (q_t / sqrt K)^T S_t; RMSNorm per head
//! times swish(W_g x). beta is doubled where negative eigenvalues are allowed (arXiv 2411.12537). No RoPE.

use super::carry::Carry;
use super::parts::{Convolutions, Finish, gate, gate_tensors};
use super::recurrent::{self, Recurrent};
use super::{
    Bound, Combine, Heads, How, Initial, Knob, NewTensor, OptionKind, OptionSpec, Per, Registration, Scale, Site,
};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::{mul, scale};
use crate::ops::map::{Map, map};
use crate::ops::norm::l2_norm;

/// A decay of 0.99 a token at the start, e^A softplus(b) = 0.01, in the range that the paper draws from.
const LOG_A: f32 = 0.0;
const DT_BIAS: f32 = -4.600_166;
/// beta = 0.5.
const BETA_BIAS: f32 = 0.0;
/// flash-linear-attention's l2norm.
const EPS: f64 = 1e-6;

pub const REGISTRATION: Registration = Registration {
    name: "gated-deltanet",
    summary: "delta rule with a decay per head",
    formula: "S~ = e^g_t S_{t-1};  S_t = S~ + b_t k_t (v_t - S~^T k_t)^T;  o_t = norm(q_t^T S_t / sqrt K) swish(W_g x_t)",
    paper: "Gated DeltaNet (arXiv 2412.06464)",
    options: &[
        OptionSpec {
            name: "negative_eigenvalues",
            kind: OptionKind::Flag,
            default: "false",
            help: "double beta, so that a state can be reflected (arXiv 2411.12537)",
        },
        Convolutions::option("true"),
        Finish::GATE,
    ],
    combine: &[Combine::Fixed, Combine::Learned],
    build: |options, site, window| {
        let mixer = GatedDeltaNet {
            site,
            reach: if options.flag("negative_eigenvalues") { 2.0 } else { 1.0 },
            convolutions: Convolutions::new(site, options.flag("convolution")),
            finish: Finish::new(site, options.flag("output_gate"), 1e-5),
        };
        Ok(recurrent::mixer(mixer, site, window))
    },
};

struct GatedDeltaNet {
    site: Site,
    /// Largest beta.
    reach: f32,
    convolutions: Convolutions,
    finish: Finish,
}

impl Recurrent for GatedDeltaNet {
    fn tensors(&self) -> Vec<NewTensor> {
        let heads = self.site.heads;
        let mut all = vec![NewTensor { name: "a_log", shape: vec![heads, 1], initial: Initial::Constant(LOG_A) }];
        all.extend(gate_tensors("decay_weight", "dt_bias", &self.site, heads, DT_BIAS));
        all.extend(gate_tensors("beta_weight", "beta_bias", &self.site, heads, BETA_BIAS));
        all.extend(self.convolutions.tensors());
        all.extend(self.finish.tensors());
        all
    }

    fn mix(&self, heads: &Heads, bound: &Bound, carry: &mut Carry) -> Result<Var> {
        let Site { heads: h, width, .. } = self.site;
        let (q, k, v) = self.convolutions.run(heads, bound, carry)?;
        let q = scale(&l2_norm(&q, EPS)?, 1.0 / (width as f32).sqrt(), 0.0)?;
        let k = l2_norm(&k, EPS)?;
        let dt = map(&gate(heads, bound, "decay_weight", "dt_bias", h)?, Map::Softplus)?;
        let decay = scale(&mul(&dt, &map(bound.get("a_log")?, Map::Exp)?)?, -1.0, 0.0)?;
        let beta = map(&gate(heads, bound, "beta_weight", "beta_bias", h)?, Map::Sigmoid)?;
        let beta = scale(&beta, self.reach, 0.0)?;
        let o = carry.delta("s", (&q, &k, &v), &beta, Some(&decay), 1)?;
        self.finish.run(&o, heads, bound)
    }

    fn knobs(&self) -> Vec<Knob> {
        // Decays of 0.5 to 0.9998 a token; beta of 0.05 to 0.95 (times two where doubled).
        let decay = &[-0.02, -1.1, -2.2, -3.0, -4.6, -6.0, -8.5];
        let beta = &[-3.0, -2.0, -1.0, 0.0, 1.0, 3.0];
        let knob = |tensor, values| Knob { tensor, per: Per::Head, values, how: How::Set };
        vec![knob("dt_bias", decay), knob("beta_bias", beta)]
    }

    fn scale(&self) -> Scale {
        Scale::Own(Finish::SCALE)
    }

    fn state_size(&self) -> usize {
        self.site.heads * self.site.width * self.site.width + self.convolutions.state_size()
    }
}
