//! Gated linear attention (arXiv 2312.06635), as in flash-linear-attention's layer.
//!
//! g = ln sigmoid(W2 W1 x + b) / 16 per key channel, low rank 16; S_t = diag(e^g_t) S_{t-1} + k_t v_t^T;
//! o_t = (q_t / sqrt K)^T S_t; RMSNorm per head times swish(W_g x). No RoPE.

use super::parts::{Convolutions, GatedNorm};
use super::recurrent::{self, Recurrent};
use super::stateful_ops::StatefulOps;
use super::{
    CalibrationParam, CalibrationUpdate, Combine, Granularity, Initial, LayerDims, LayerInputs, NewTensor, OptionKind,
    OptionSpec, OutputScale, Params, Registration,
};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::{add, scale};
use crate::ops::linear::linear;
use crate::ops::unary::{Unary, unary};

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
    inherits: "q, k and v as they are",
    options: &[
        OptionSpec {
            name: "gate_rank",
            kind: OptionKind::Integer { min: 1, max: 1024 },
            default: "16",
            help: "rank of the gate's projection (flash-linear-attention: 16)",
        },
        Convolutions::option("false"),
        GatedNorm::GATE,
    ],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, layer_dims, window| {
        let gla = Gla {
            layer_dims,
            rank: options.integer("gate_rank", 16),
            convolutions: Convolutions::new(layer_dims, options.flag("convolution")),
            finish: GatedNorm::new(layer_dims, options.flag("output_gate"), 1e-5),
        };
        Ok(recurrent::mixer(gla, layer_dims, window))
    },
};

struct Gla {
    layer_dims: LayerDims,
    rank: usize,
    convolutions: Convolutions,
    finish: GatedNorm,
}

impl Recurrent for Gla {
    fn tensors(&self) -> Vec<NewTensor> {
        let LayerDims { kv_heads, width, model_width, .. } = self.layer_dims;
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

    fn mix(&self, heads: &LayerInputs, params: &Params, ops: &mut StatefulOps) -> Result<Var> {
        let (q, k, v) = self.convolutions.run(heads, params, ops)?;
        let (batch, tokens) = heads.size()?;
        let low = linear(heads.input()?, params.get("gate_down")?)?;
        let logits = add(&linear(&low, params.get("gate_up")?)?, params.get("gate_bias")?)?;
        let gate = scale(&unary(&logits, Unary::LogSigmoid)?, 1.0 / NORMALIZER, 0.0)?;
        let gate = gate.reshape(&[batch, tokens, self.layer_dims.kv_heads, self.layer_dims.width])?;
        let q = scale(&q, 1.0 / (self.layer_dims.width as f32).sqrt(), 0.0)?;
        let o = ops.gated("s", (&q, &k, &v), Some(&gate), None)?;
        self.finish.run(&o, heads, params)
    }

    fn calibration_params(&self) -> Vec<CalibrationParam> {
        // Decays of 0.51 to 0.9995 a token.
        let values = &[-10.6, -6.0, -3.0, -1.0, 0.0, 1.0, 2.0, 3.2, 4.5, 6.0];
        vec![CalibrationParam {
            tensor: "gate_bias",
            granularity: Granularity::KvHead,
            values,
            update: CalibrationUpdate::Set,
        }]
    }

    fn scale(&self) -> OutputScale {
        OutputScale::Existing(GatedNorm::SCALE)
    }

    fn state_size(&self) -> usize {
        self.layer_dims.kv_heads * self.layer_dims.width * self.layer_dims.width + self.convolutions.state_size()
    }
}
