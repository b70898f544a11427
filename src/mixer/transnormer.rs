//! TransNormer (arXiv 2210.10340, T2): softmax in blocks in the first half of the layers (DiagAttention), linear attention
//! with a norm for its denominator in the second (NormAttention).
//!
//! DiagAttention: o_t = sum over s <= t in t's block of 64 of softmax(q_t.k_s / sqrt K) v_s. NormAttention, phi(x) = elu(x) + 1:
//! o_t = srms(phi(q_t)^T sum phi(k_s) v_s^T), srms(x) = x / (|x| D^-1/2) over all heads' values side by side, without which it
//! would grow with t. q and k after the teacher's RoPE. The published srms adds 1e-8 to the root; here 1e-16 stands under it,
//! the same to rounding wherever the root is not of that size.

use super::recurrent::{self, Recurrent};
use super::stateful_ops::StatefulOps;
use super::{
    CalibrationParam, Combine, LayerDims, LayerInputs, NewTensor, OptionKind, OptionSpec, OutputScale, Params,
    Registration,
};
use crate::Result;
use crate::ops::Var;
use crate::ops::attention_mask::{AttentionMask, Span};
use crate::ops::norm::rms_norm_over;
use crate::ops::normalize::normalize;
use crate::ops::unary::{Unary, unary};

const EPS: f64 = 1e-16;

pub const REGISTRATION: Registration = Registration {
    name: "transnormer",
    summary: "softmax in blocks, then normalised linear attention, by the depth of the layer",
    formula: "first half: softmax(q_t.k_s / sqrt K) v_s in blocks;  second: o_t = srms(phi(q_t)^T sum phi(k_s) v_s^T), phi = elu + 1",
    paper: "TransNormer (arXiv 2210.10340)",
    rope: true,
    inherits: "q, k and v as they are in the first half of the layers, elu + 1 of q and k in the second",
    options: &[
        OptionSpec {
            name: "block",
            kind: OptionKind::Integer { min: 1, max: 65536 },
            default: "64",
            help: "tokens of a block in the first half of the layers (the paper: 64)",
        },
        OutputScale::OPTION,
    ],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, layer_dims, window| {
        let block = (2 * layer_dims.layer < layer_dims.layers).then(|| options.integer("block", 64));
        let mixer = TransNormer { layer_dims, block, scale: OutputScale::added(options.flag("output_scale")) };
        Ok(recurrent::mixer(mixer, layer_dims, window))
    },
};

struct TransNormer {
    layer_dims: LayerDims,
    /// Tokens of a block in a layer of DiagAttention.
    block: Option<usize>,
    scale: OutputScale,
}

impl Recurrent for TransNormer {
    fn tensors(&self) -> Vec<NewTensor> {
        vec![]
    }

    fn mix(&self, heads: &LayerInputs, _: &Params, ops: &mut StatefulOps) -> Result<Var> {
        let (q, k) = heads.rotated()?;
        if let Some(size) = self.block {
            let mask = AttentionMask { span: Span::Block { size, previous: false }, sinks: 0 };
            let scale = 1.0 / (self.layer_dims.width as f32).sqrt();
            let (num, den) = ops.attention(("block_k", "block_v"), (q, k, &heads.v), mask, scale)?;
            return normalize(&num, &den, 0.0);
        }
        let (a, b) = (unary(q, Unary::EluPlusOne)?, unary(k, Unary::EluPlusOne)?);
        rms_norm_over(&ops.gated("s", (&a, &b, &heads.v), None, None)?, 2, None, EPS)
    }

    fn calibration_params(&self) -> Vec<CalibrationParam> {
        vec![]
    }

    fn scale(&self) -> OutputScale {
        self.scale
    }

    /// Of a block the keys and values when it is full.
    fn state_size(&self) -> usize {
        let LayerDims { kv_heads, width, .. } = self.layer_dims;
        kv_heads * width * self.block.map_or(width, |block| 2 * block)
    }
}
