//! DeltaNet (arXiv 2406.06484), as in flash-linear-attention's layer.
//!
//! beta = sigmoid(W_b x), one per head; q and k of unit length after their convolutions;
//! S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T, o_t = (q_t / sqrt K)^T S_t; RMSNorm per head. beta is doubled where
//! negative eigenvalues are allowed (arXiv 2411.12537). No RoPE.

use super::carry::Carry;
use super::parts::{Convolutions, Finish, gate, gate_tensors};
use super::recurrent::{self, Recurrent};
use super::{Bound, Combine, Heads, How, Knob, NewTensor, OptionKind, OptionSpec, Per, Registration, Scale, Site};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::scale;
use crate::ops::map::{Map, map};
use crate::ops::norm::l2_norm;

/// beta = 0.5.
const BETA_BIAS: f32 = 0.0;
/// flash-linear-attention's l2norm.
const EPS: f64 = 1e-6;

pub const REGISTRATION: Registration = Registration {
    name: "deltanet",
    summary: "delta rule: a key's old value is replaced by the new one",
    formula: "S_t = S_{t-1} + b_t k_t (v_t - S_{t-1}^T k_t)^T;  o_t = norm(q_t^T S_t / sqrt K);  |q| = |k| = 1",
    paper: "DeltaNet (arXiv 2406.06484)",
    options: &[
        OptionSpec {
            name: "negative_eigenvalues",
            kind: OptionKind::Flag,
            default: "false",
            help: "double beta, so that a state can be reflected (arXiv 2411.12537)",
        },
        Convolutions::option("true"),
        OptionSpec { default: "false", ..Finish::GATE },
    ],
    combine: &[Combine::Fixed, Combine::Learned],
    build: |options, site, window| {
        let mixer = DeltaNet {
            site,
            reach: if options.flag("negative_eigenvalues") { 2.0 } else { 1.0 },
            convolutions: Convolutions::new(site, options.flag("convolution")),
            finish: Finish::new(site, options.flag("output_gate"), 1e-5),
        };
        Ok(recurrent::mixer(mixer, site, window))
    },
};

struct DeltaNet {
    site: Site,
    /// Largest beta.
    reach: f32,
    convolutions: Convolutions,
    finish: Finish,
}

impl Recurrent for DeltaNet {
    fn tensors(&self) -> Vec<NewTensor> {
        let mut all = gate_tensors("beta_weight", "beta_bias", &self.site, self.site.heads, BETA_BIAS).to_vec();
        all.extend(self.convolutions.tensors());
        all.extend(self.finish.tensors());
        all
    }

    fn mix(&self, heads: &Heads, bound: &Bound, carry: &mut Carry) -> Result<Var> {
        let Site { heads: h, width, .. } = self.site;
        let (q, k, v) = self.convolutions.run(heads, bound, carry)?;
        let q = scale(&l2_norm(&q, EPS)?, 1.0 / (width as f32).sqrt(), 0.0)?;
        let k = l2_norm(&k, EPS)?;
        let beta = map(&gate(heads, bound, "beta_weight", "beta_bias", h)?, Map::Sigmoid)?;
        let beta = scale(&beta, self.reach, 0.0)?;
        let o = carry.delta("s", (&q, &k, &v), &beta, None, 1)?;
        self.finish.run(&o, heads, bound)
    }

    fn knobs(&self) -> Vec<Knob> {
        // beta of 0.01 to 0.95 (times two where doubled): without a decay, small writes are the only long average.
        let values = &[-4.5, -3.0, -2.0, -1.0, 0.0, 1.0, 3.0];
        vec![Knob { tensor: "beta_bias", per: Per::Head, values, how: How::Set }]
    }

    fn scale(&self) -> Scale {
        Scale::Own(Finish::SCALE)
    }

    fn state_size(&self) -> usize {
        self.site.heads * self.site.width * self.site.width + self.convolutions.state_size()
    }
}
