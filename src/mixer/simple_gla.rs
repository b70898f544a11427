//! Simple gated linear attention, as in flash-linear-attention's layer: GLA (arXiv 2312.06635) with one decay per head.
//!
//! g = ln sigmoid(W x + b) / 16 per head; S_t = e^g_t S_{t-1} + k_t v_t^T; o_t = (q_t / sqrt K)^T S_t; short convolutions
//! before, RMSNorm per head times swish(W_g x) after. No RoPE.

use super::parts::{Convolutions, GatedNorm, gate, gate_tensors};
use super::recurrent::{self, Recurrent};
use super::stateful_ops::StatefulOps;
use super::{
    CalibrationParam, CalibrationUpdate, Combine, Granularity, LayerDims, LayerInputs, NewTensor, OutputScale, Params,
    Registration,
};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::scale;
use crate::ops::unary::{Unary, unary};

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
    inherits: "q, k and v through short convolutions",
    options: &[Convolutions::option("true"), GatedNorm::GATE],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, layer_dims, window| {
        let mixer = SimpleGla {
            layer_dims,
            convolutions: Convolutions::new(layer_dims, options.flag("convolution")),
            finish: GatedNorm::new(layer_dims, options.flag("output_gate"), 1e-5),
        };
        Ok(recurrent::mixer(mixer, layer_dims, window))
    },
};

struct SimpleGla {
    layer_dims: LayerDims,
    convolutions: Convolutions,
    finish: GatedNorm,
}

impl Recurrent for SimpleGla {
    fn tensors(&self) -> Vec<NewTensor> {
        let mut all = gate_tensors("gate_weight", "gate_bias", &self.layer_dims, self.layer_dims.heads, BIAS).to_vec();
        all.extend(self.convolutions.tensors());
        all.extend(self.finish.tensors());
        all
    }

    fn mix(&self, heads: &LayerInputs, params: &Params, ops: &mut StatefulOps) -> Result<Var> {
        let (q, k, v) = self.convolutions.run(heads, params, ops)?;
        let logits = gate(heads, params, "gate_weight", "gate_bias", self.layer_dims.heads)?;
        let gate = scale(&unary(&logits, Unary::LogSigmoid)?, 1.0 / NORMALIZER, 0.0)?;
        let q = scale(&q, 1.0 / (self.layer_dims.width as f32).sqrt(), 0.0)?;
        let o = ops.gated("s", (&q, &k, &v), Some(&gate), None)?;
        self.finish.run(&o, heads, params)
    }

    fn calibration_params(&self) -> Vec<CalibrationParam> {
        // Decays of 0.51 to 0.9998 a token.
        let values = &[-10.6, -6.0, -3.0, -1.0, 0.0, 1.0, 2.0, 3.2, 4.5, 6.0];
        vec![CalibrationParam {
            tensor: "gate_bias",
            granularity: Granularity::Head,
            values,
            update: CalibrationUpdate::Set,
        }]
    }

    fn scale(&self) -> OutputScale {
        OutputScale::Existing(GatedNorm::SCALE)
    }

    fn state_size(&self) -> usize {
        self.layer_dims.heads * self.layer_dims.width * self.layer_dims.width + self.convolutions.state_size()
    }
}
