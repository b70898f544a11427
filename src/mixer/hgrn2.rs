//! HGRN2 (arXiv 2404.07904), as in flash-linear-attention's layer.
//!
//! g = ln(lb + (1 - lb) sigmoid(f)), k = 1 - e^g, q through SiLU; S_t = diag(e^g_t) S_{t-1} + k_t v_t^T;
//! o_t = (q_t / sqrt K)^T S_t; RMSNorm over all heads. No RoPE.
//!
//! f is the teacher's key projection, whose place it takes, plus a bias per channel that is ours and sets the decay. The
//! lower bound lb is none in the first layer. The paper makes it rise with depth by a cumulative softmax over layers, which
//! starts at l / L in layer l of L; here each layer learns its own, as a logit, from that start.

use super::carry::Carry;
use super::recurrent::{self, Recurrent};
use super::{
    Bound, Combine, Heads, How, Initial, Knob, NewTensor, OptionKind, OptionSpec, Per, Registration, Scale, Site,
};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::{add, mul, scale};
use crate::ops::map::{Map, map};
use crate::ops::norm::rms_norm_over;

/// sigmoid(3) = 0.95 a token, without a lower bound.
const BIAS: f32 = 3.0;
const EPS: f64 = 1e-5;
const NORM: &str = "norm_weight";

pub const REGISTRATION: Registration = Registration {
    name: "hgrn2",
    summary: "linear RNN whose keys are one minus their decay",
    formula: "S_t = diag(e^g_t) S_{t-1} + (1 - e^g_t) v_t^T;  o_t = norm(silu(q_t)^T S_t / sqrt K);  e^g = lb + (1 - lb) sigmoid(k + b)",
    paper: "HGRN2 (arXiv 2404.07904)",
    rope: false,
    seeding: "forget gate <- k, input <- v; q through SiLU",
    options: &[OptionSpec {
        name: "lower_bound",
        kind: OptionKind::Flag,
        default: "true",
        help: "a learned lower bound of the decay in every layer but the first, l / L at the start",
    }],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, site, window| {
        let hgrn2 = Hgrn2 { site, bounded: options.flag("lower_bound") && site.layer > 0 };
        Ok(recurrent::mixer(hgrn2, site, window))
    },
};

struct Hgrn2 {
    site: Site,
    bounded: bool,
}

impl Hgrn2 {
    /// The log gate and the key of `f`.
    fn gate(&self, f: &Var, bound: &Bound) -> Result<(Var, Var)> {
        let rest = map(&scale(f, -1.0, 0.0)?, Map::Sigmoid)?;
        if !self.bounded {
            return Ok((map(f, Map::LogSigmoid)?, rest));
        }
        let logit = bound.get("lower_bound_logit")?;
        let (lowest, free) = (map(logit, Map::Sigmoid)?, map(&scale(logit, -1.0, 0.0)?, Map::Sigmoid)?);
        let decay = add(&mul(&map(f, Map::Sigmoid)?, &free)?, &lowest)?;
        Ok((map(&decay, Map::Ln)?, mul(&rest, &free)?))
    }
}

impl Recurrent for Hgrn2 {
    fn tensors(&self) -> Vec<NewTensor> {
        let Site { heads, kv_heads, width, layer, layers, .. } = self.site;
        let mut all = vec![
            NewTensor { name: "forget_bias", shape: vec![kv_heads, width], initial: Initial::Constant(BIAS) },
            NewTensor { name: NORM, shape: vec![heads, width], initial: Initial::Constant(1.0) },
        ];
        if self.bounded {
            let start = (layer as f32 / (layers - layer) as f32).ln();
            let initial = Initial::Constant(start);
            all.push(NewTensor { name: "lower_bound_logit", shape: vec![kv_heads, width], initial });
        }
        all
    }

    fn mix(&self, heads: &Heads, bound: &Bound, carry: &mut Carry) -> Result<Var> {
        let f = add(&heads.k, bound.get("forget_bias")?)?;
        let (gate, k) = self.gate(&f, bound)?;
        let q = scale(&map(&heads.q, Map::Silu)?, 1.0 / (self.site.width as f32).sqrt(), 0.0)?;
        let o = carry.gated("s", (&q, &k, &heads.v), Some(&gate), None)?;
        rms_norm_over(&o, 2, Some(bound.get(NORM)?), EPS)
    }

    fn knobs(&self) -> Vec<Knob> {
        // Decays of 0.5 to 0.9998 a token at k = 0, without a lower bound.
        let values = &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.5];
        vec![Knob { tensor: "forget_bias", per: Per::KvHead, values, how: How::Set }]
    }

    fn scale(&self) -> Scale {
        Scale::Own(NORM)
    }

    fn state_size(&self) -> usize {
        self.site.kv_heads * self.site.width * self.site.width
    }
}
