//! Kimi delta attention (arXiv 2510.26692), as in flash-linear-attention's layer.
//!
//! g = -e^A softplus(W2 W1 x + b_dt) per key channel, low rank V, A per head; beta = sigmoid(W_b x) per head; q and k of
//! unit length after their convolutions; S~ = diag(e^g_t) S_{t-1}, S_t = S~ + beta_t k_t (v_t - S~^T k_t)^T,
//! o_t = (q_t / sqrt K)^T S_t; RMSNorm per head times sigmoid of a gate of low rank V. The safe gate is
//! g = -5 sigmoid(e^A (W2 W1 x + b_dt)), bounded below. No RoPE.

use super::carry::Carry;
use super::delta_parts::{self as delta, Beta};
use super::parts::{Convolutions, Finish, low_rank_gate, low_rank_tensors};
use super::recurrent::{self, Recurrent};
use super::{Bound, Combine, Heads, Knob, NewTensor, OptionKind, OptionSpec, Registration, Scale, Site};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::{mul, scale};
use crate::ops::map::{Map, map};

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
    seeding: "q, k and v through short convolutions; q and k at unit length",
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
            ..Finish::GATE
        },
    ],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, site, window| {
        let rank = options.integer("gate_rank", site.width);
        let mixer = Kda {
            site,
            rank,
            safe: options.flag("safe_gate"),
            beta: Beta::new(options),
            convolutions: Convolutions::new(site, options.flag("convolution")),
            finish: match options.flag("output_gate") {
                true => Finish::low_rank(site, rank, 1e-5),
                false => Finish::new(site, false, 1e-5),
            },
        };
        Ok(recurrent::mixer(mixer, site, window))
    },
};

struct Kda {
    site: Site,
    rank: usize,
    safe: bool,
    beta: Beta,
    convolutions: Convolutions,
    finish: Finish,
}

impl Kda {
    /// g [B, T, H, K].
    fn decay(&self, heads: &Heads, bound: &Bound) -> Result<Var> {
        let logits = low_rank_gate(heads.input()?, bound, GATE, self.site.heads)?;
        let rate = map(bound.get("a_log")?, Map::Exp)?;
        if self.safe {
            return scale(&map(&mul(&logits, &rate)?, Map::Sigmoid)?, FLOOR, 0.0);
        }
        scale(&mul(&map(&logits, Map::Softplus)?, &rate)?, -1.0, 0.0)
    }
}

impl Recurrent for Kda {
    fn tensors(&self) -> Vec<NewTensor> {
        let Site { heads, width, .. } = self.site;
        let start = if self.safe { SAFE_BIAS } else { delta::DT_BIAS };
        let mut all = vec![delta::log_rate(&self.site)];
        all.extend(low_rank_tensors(GATE, &self.site, self.rank, heads * width, start));
        all.extend(self.beta.tensors(Beta::NAMES, &self.site, heads, 0.0));
        all.extend(self.convolutions.tensors());
        all.extend(self.finish.tensors());
        all
    }

    fn mix(&self, heads: &Heads, bound: &Bound, carry: &mut Carry) -> Result<Var> {
        let (q, k, v) = self.convolutions.run(heads, bound, carry)?;
        let (q, k) = delta::unit_vectors(&q, &k, self.site.width)?;
        let beta = self.beta.run(heads, bound)?;
        let o = carry.delta("s", (&q, &k, &v), &beta, Some(&self.decay(heads, bound)?), 1)?;
        self.finish.run(&o, heads, bound)
    }

    fn knobs(&self) -> Vec<Knob> {
        // The same decays, 0.5 to 0.9998 a token, by either gate.
        let decay = match self.safe {
            true => Knob { values: &[-1.83, -3.0, -4.0, -5.0, -6.2, -7.5, -10.1], ..delta::DECAY_KNOB },
            false => delta::DECAY_KNOB,
        };
        std::iter::once(decay).chain(self.beta.knob(Beta::USUAL)).collect()
    }

    fn scale(&self) -> Scale {
        Scale::Own(Finish::SCALE)
    }

    fn state_size(&self) -> usize {
        self.site.heads * self.site.width * self.site.width + self.convolutions.state_size()
    }
}
