//! TransNormer (arXiv 2210.10340, T2): softmax in blocks in the first half of the layers (DiagAttention), linear attention
//! with a norm for its denominator in the second (NormAttention).
//!
//! DiagAttention: o_t = sum over s <= t in t's block of 64 of softmax(q_t.k_s / sqrt K) v_s. NormAttention, phi(x) = elu(x) + 1:
//! o_t = srms(phi(q_t)^T sum phi(k_s) v_s^T), srms(x) = x / (|x| D^-1/2) over all heads' values side by side, without which it
//! would grow with t. q and k after the teacher's RoPE. The published srms adds 1e-8 to the root; here 1e-16 stands under it,
//! the same to rounding wherever the root is not of that size.

use super::carry::Carry;
use super::recurrent::{self, Recurrent};
use super::{Bound, Combine, Heads, Knob, NewTensor, OptionKind, OptionSpec, Registration, Scale, Site};
use crate::Result;
use crate::ops::Var;
use crate::ops::map::{Map, map};
use crate::ops::norm::rms_norm_over;
use crate::ops::quotient::quotient;
use crate::ops::sight::{Sight, Span};

const EPS: f64 = 1e-16;

pub const REGISTRATION: Registration = Registration {
    name: "transnormer",
    summary: "softmax in blocks, then normalised linear attention, by the depth of the layer",
    formula: "first half: softmax(q_t.k_s / sqrt K) v_s in blocks;  second: o_t = srms(phi(q_t)^T sum phi(k_s) v_s^T), phi = elu + 1",
    paper: "TransNormer (arXiv 2210.10340)",
    rope: true,
    seeding: "q, k and v as they are in the first half of the layers, elu + 1 of q and k in the second",
    options: &[
        OptionSpec {
            name: "block",
            kind: OptionKind::Integer { min: 1, max: 65536 },
            default: "64",
            help: "tokens of a block in the first half of the layers (the paper: 64)",
        },
        Scale::OPTION,
    ],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, site, window| {
        let block = (2 * site.layer < site.layers).then(|| options.integer("block", 64));
        let mixer = TransNormer { site, block, scale: Scale::added(options.flag("output_scale")) };
        Ok(recurrent::mixer(mixer, site, window))
    },
};

struct TransNormer {
    site: Site,
    /// Tokens of a block in a layer of DiagAttention.
    block: Option<usize>,
    scale: Scale,
}

impl Recurrent for TransNormer {
    fn tensors(&self) -> Vec<NewTensor> {
        vec![]
    }

    fn mix(&self, heads: &Heads, _: &Bound, carry: &mut Carry) -> Result<Var> {
        let (q, k) = heads.rotated()?;
        if let Some(size) = self.block {
            let sight = Sight { span: Span::Block { size, previous: false }, sinks: 0 };
            let scale = 1.0 / (self.site.width as f32).sqrt();
            let (num, den) = carry.attention(("block_k", "block_v"), (q, k, &heads.v), sight, scale)?;
            return quotient(&num, &den, 0.0);
        }
        let (a, b) = (map(q, Map::EluPlusOne)?, map(k, Map::EluPlusOne)?);
        rms_norm_over(&carry.gated("s", (&a, &b, &heads.v), None, None)?, 2, None, EPS)
    }

    fn knobs(&self) -> Vec<Knob> {
        vec![]
    }

    fn scale(&self) -> Scale {
        self.scale
    }

    /// Of a block the keys and values when it is full.
    fn state_size(&self) -> usize {
        let Site { kv_heads, width, .. } = self.site;
        kv_heads * width * self.block.map_or(width, |block| 2 * block)
    }
}
