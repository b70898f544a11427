//! The matrix memory of xLSTM (arXiv 2405.04517), as in its 7B model (arXiv 2503.13427) or its first cell.
//!
//! lf = ln sigmoid(f), i of any size, one of each per head:
//!
//! ```text
//! C_t = e^lf_t C_{t-1} + e^i_t k_t v_t^T     n_t = e^lf_t n_{t-1} + e^i_t k_t
//! h_t = (q_t / sqrt K)^T C_t / max(|q_t.n_t| / sqrt K, 1), stabilised
//! ```
//!
//! then LayerNorm per head. `input`: f, i = 15 tanh((W x + b) / 15) and an output gate sigmoid(W_o x). `projections`:
//! f, i = W (q, k, v) + b, no gate. The papers draw or spread the biases; here forget gates start at 4.5, the middle of the
//! first cell's 3 to 6, and input gates at 0, which the norm makes indifferent. No RoPE.

use super::parts::{sigmoid_gate, sigmoid_gate_tensors};
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
use crate::ops::mlstm::Inputs;
use crate::ops::norm::layer_norm;
use crate::ops::shape::concat_last;
use crate::ops::unary::{Unary, unary};

const FORGET_BIAS: f32 = 4.5;
/// Bound of the gates that are made of the input.
const CAP: f32 = 15.0;
/// Of the normaliser.
const EPS: f32 = 1e-6;
const NORM: &str = "norm_weight";

pub const REGISTRATION: Registration = Registration {
    name: "mlstm",
    summary: "matrix memory with exponential input gates (xLSTM)",
    formula: "C_t = e^lf_t C_{t-1} + e^i_t k_t v_t^T;  n_t likewise;  o_t = norm(q_t^T C_t / max(|q_t.n_t|, 1)) sigmoid(W_o x_t)",
    paper: "xLSTM (arXiv 2405.04517), xLSTM 7B (arXiv 2503.13427)",
    rope: false,
    inherits: "q, k and v as they are",
    options: &[OptionSpec {
        name: "gates",
        kind: OptionKind::Choice(&["input", "projections"]),
        default: "\"input\"",
        help: "what gates are made of: the layer's input, softly capped at 15, with an output gate (xLSTM 7B), or q, k \
               and v side by side (the first xLSTM)",
    }],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, layer_dims, window| {
        let mixer = Mlstm { layer_dims, of_input: options.word("gates") == "input" };
        Ok(recurrent::mixer(mixer, layer_dims, window))
    },
};

struct Mlstm {
    layer_dims: LayerDims,
    of_input: bool,
}

impl Mlstm {
    /// A gate's logits [B, T, H, 1] of `source` [B, T, N].
    fn gate(&self, source: &Var, params: &Params, weight: &str, bias: &str) -> Result<Var> {
        let logits = add(&linear(source, params.get(weight)?)?, params.get(bias)?)?;
        let logits = match self.of_input {
            true => scale(&unary(&scale(&logits, 1.0 / CAP, 0.0)?, Unary::Tanh)?, CAP, 0.0)?,
            false => logits,
        };
        let (b, t, h) = logits.value().dims3()?;
        logits.reshape(&[b, t, h, 1])
    }

    /// What gates are made of.
    fn source(&self, heads: &LayerInputs) -> Result<Var> {
        if self.of_input {
            return heads.input().cloned();
        }
        let flat = |x: &Var| -> Result<Var> {
            let (b, t, h, k) = x.value().dims4()?;
            x.reshape(&[b, t, h * k])
        };
        concat_last(&[&flat(&heads.q)?, &flat(&heads.k)?, &flat(&heads.v)?])
    }
}

impl Recurrent for Mlstm {
    fn tensors(&self) -> Vec<NewTensor> {
        let LayerDims { heads, kv_heads, width, model_width, .. } = self.layer_dims;
        let source = if self.of_input { model_width } else { (heads + 2 * kv_heads) * width };
        let constant = |name, shape, value| NewTensor { name, shape, initial: Initial::Constant(value) };
        let mut all = vec![
            constant("forget_weight", vec![heads, source], 0.0),
            constant("forget_bias", vec![heads], FORGET_BIAS),
            constant("input_weight", vec![heads, source], 0.0),
            constant("input_bias", vec![heads], 0.0),
            constant(NORM, vec![heads, width], 1.0),
        ];
        if self.of_input {
            all.extend(sigmoid_gate_tensors(&self.layer_dims));
        }
        all
    }

    fn mix(&self, heads: &LayerInputs, params: &Params, ops: &mut StatefulOps) -> Result<Var> {
        let source = self.source(heads)?;
        let forget = unary(&self.gate(&source, params, "forget_weight", "forget_bias")?, Unary::LogSigmoid)?;
        let input = self.gate(&source, params, "input_weight", "input_bias")?;
        let q = scale(&heads.q, 1.0 / (self.layer_dims.width as f32).sqrt(), 0.0)?;
        let x = Inputs { q: &q, k: &heads.k, v: &heads.v, forget: &forget, input: &input };
        let h = ops.mlstm(("sums", "maximum"), x, EPS)?;
        let norm = |eps| layer_norm(&h, 1, Some(params.get(NORM)?), None, eps);
        if self.of_input { sigmoid_gate(&norm(1e-6)?, heads, params) } else { norm(1e-5) }
    }

    fn calibration_params(&self) -> Vec<CalibrationParam> {
        // Decays of 0.5 to 0.9995 a token (0.9998 without the cap).
        let values = &[0.0, 1.0, 2.0, 3.0, 4.5, 6.0, 8.5];
        vec![CalibrationParam {
            tensor: "forget_bias",
            granularity: Granularity::Head,
            values,
            update: CalibrationUpdate::Set,
        }]
    }

    fn scale(&self) -> OutputScale {
        OutputScale::Existing(NORM)
    }

    fn state_size(&self) -> usize {
        self.layer_dims.heads * (self.layer_dims.width * (self.layer_dims.width + 1) + 1)
    }
}
