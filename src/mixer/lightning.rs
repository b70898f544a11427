//! Lightning attention (TransNormerLLM, arXiv 2307.14995; Lightning Attention-2, arXiv 2401.04658; MiniMax-01,
//! arXiv 2501.08313).
//!
//! S_t = e^(-s_h) S_{t-1} + k_t v_t^T with a slope per head and layer that no training changes; o_t = (q_t / sqrt K)^T S_t;
//! RMSNorm over all heads times sigmoid(W_g x). Slopes of layer l of L, h from 0:
//!
//! ```text
//! linear     s_h = (8 h / H) (1 - l / L)                               flash-linear-attention, TransNormerLLM
//! geometric  s_h = 2^(-8 (h+1) / H) (1 - l / (L - 1 + 1e-5) + 1e-5)    MiniMax-01
//! ```
//!
//! Norm and gate are MiniMax's, which also applies SiLU to q, k and v. No RoPE.

use super::carry::Carry;
use super::parts::{ConstantGate, sigmoid_gate, sigmoid_gate_tensors};
use super::recurrent::{self, Recurrent};
use super::{Bound, Combine, Heads, Initial, Knob, NewTensor, OptionKind, OptionSpec, Registration, Scale, Site};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::scale;
use crate::ops::map::{Map, map};
use crate::ops::norm::rms_norm_over;

/// MiniMax's RMSNorm.
const EPS: f64 = 1e-6;
const NORM: &str = "norm_weight";

pub const REGISTRATION: Registration = Registration {
    name: "lightning",
    summary: "a fixed decay per head and layer (Lightning attention)",
    formula: "S_t = e^(-s_h) S_{t-1} + k_t v_t^T;  o_t = norm(q_t^T S_t / sqrt K) sigmoid(W_g x_t);  s_h = (8 h / H) (1 - l / L)",
    paper: "Lightning Attention-2 (arXiv 2401.04658), MiniMax-01 (arXiv 2501.08313)",
    rope: false,
    seeding: "q, k and v as they are",
    options: &[
        OptionSpec {
            name: "slopes",
            kind: OptionKind::Choice(&["linear", "geometric"]),
            default: "\"linear\"",
            help: "log decays of heads: 8 h / H, the first head without decay (TransNormerLLM), or 2^(-8 (h+1) / H) \
                   (MiniMax-01)",
        },
        OptionSpec {
            name: "activation",
            kind: OptionKind::Flag,
            default: "false",
            help: "SiLU over q, k and v (MiniMax-01)",
        },
        OptionSpec {
            name: "output_norm",
            kind: OptionKind::Flag,
            default: "true",
            help: "RMSNorm over all heads times an output gate sigmoid(W x + b), nearly open at the start (MiniMax-01)",
        },
        Scale::OPTION,
    ],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, site, window| {
        let lightning = Lightning {
            site,
            decay: ConstantGate::new(site.heads, |h| -slope(&site, h, options.word("slopes") == "geometric")),
            activation: options.flag("activation"),
            norm: options.flag("output_norm"),
            scale: Scale::added(options.flag("output_scale")),
        };
        Ok(recurrent::mixer(lightning, site, window))
    },
};

struct Lightning {
    site: Site,
    decay: ConstantGate,
    activation: bool,
    norm: bool,
    /// Where there is no norm.
    scale: Scale,
}

fn slope(&Site { heads, layer, layers, .. }: &Site, head: usize, geometric: bool) -> f32 {
    let (head, heads, layer, layers) = (head as f64, heads as f64, layer as f64, layers as f64);
    let slope = match geometric {
        true => (-8.0 * (head + 1.0) / heads).exp2() * (1.0 - layer / (layers - 1.0 + 1e-5) + 1e-5),
        false => 8.0 * head / heads * (1.0 - layer / layers),
    };
    slope as f32
}

impl Recurrent for Lightning {
    fn tensors(&self) -> Vec<NewTensor> {
        let Site { heads, width, .. } = self.site;
        let mut all = vec![self.decay.tensor()];
        if self.norm {
            all.push(NewTensor { name: NORM, shape: vec![heads, width], initial: Initial::Constant(1.0) });
            all.extend(sigmoid_gate_tensors(&self.site));
        }
        all
    }

    fn mix(&self, heads: &Heads, bound: &Bound, carry: &mut Carry) -> Result<Var> {
        let active = |x: &Var| if self.activation { map(x, Map::Silu) } else { Ok(x.clone()) };
        let (q, k, v) = (active(&heads.q)?, active(&heads.k)?, active(&heads.v)?);
        let q = scale(&q, 1.0 / (self.site.width as f32).sqrt(), 0.0)?;
        let o = carry.gated("s", (&q, &k, &v), Some(&self.decay.run(heads, bound)?), None)?;
        if !self.norm {
            return Ok(o);
        }
        sigmoid_gate(&rms_norm_over(&o, 2, Some(bound.get(NORM)?), EPS)?, heads, bound)
    }

    fn knobs(&self) -> Vec<Knob> {
        vec![self.decay.knob()]
    }

    fn scale(&self) -> Scale {
        if self.norm { Scale::Own(NORM) } else { self.scale }
    }

    fn state_size(&self) -> usize {
        self.site.heads * self.site.width * self.site.width
    }
}
