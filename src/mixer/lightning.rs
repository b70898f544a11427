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

use super::parts::{ConstantGate, sigmoid_gate, sigmoid_gate_tensors};
use super::recurrent::{self, Recurrent};
use super::stateful_ops::StatefulOps;
use super::{
    CalibrationParam, Combine, Initial, LayerDims, LayerInputs, NewTensor, OptionKind, OptionSpec, OutputScale, Params,
    Registration,
};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::scale;
use crate::ops::norm::rms_norm_over;
use crate::ops::unary::{Unary, unary};

/// MiniMax's RMSNorm.
const EPS: f64 = 1e-6;
const NORM: &str = "norm_weight";

pub const REGISTRATION: Registration = Registration {
    name: "lightning",
    summary: "a fixed decay per head and layer (Lightning attention)",
    formula: "S_t = e^(-s_h) S_{t-1} + k_t v_t^T;  o_t = norm(q_t^T S_t / sqrt K) sigmoid(W_g x_t);  s_h = (8 h / H) (1 - l / L)",
    paper: "Lightning Attention-2 (arXiv 2401.04658), MiniMax-01 (arXiv 2501.08313)",
    rope: false,
    inherits: "q, k and v as they are",
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
        OutputScale::OPTION,
    ],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, layer_dims, window| {
        let lightning = Lightning {
            layer_dims,
            decay: ConstantGate::new(layer_dims.heads, |h| {
                -slope(&layer_dims, h, options.word("slopes") == "geometric")
            }),
            activation: options.flag("activation"),
            norm: options.flag("output_norm"),
            scale: OutputScale::added(options.flag("output_scale")),
        };
        Ok(recurrent::mixer(lightning, layer_dims, window))
    },
};

struct Lightning {
    layer_dims: LayerDims,
    decay: ConstantGate,
    activation: bool,
    norm: bool,
    /// Where there is no norm.
    scale: OutputScale,
}

fn slope(&LayerDims { heads, layer, layers, .. }: &LayerDims, head: usize, geometric: bool) -> f32 {
    let (head, heads, layer, layers) = (head as f64, heads as f64, layer as f64, layers as f64);
    let slope = match geometric {
        true => (-8.0 * (head + 1.0) / heads).exp2() * (1.0 - layer / (layers - 1.0 + 1e-5) + 1e-5),
        false => 8.0 * head / heads * (1.0 - layer / layers),
    };
    slope as f32
}

impl Recurrent for Lightning {
    fn tensors(&self) -> Vec<NewTensor> {
        let LayerDims { heads, width, .. } = self.layer_dims;
        let mut all = vec![self.decay.tensor()];
        if self.norm {
            all.push(NewTensor { name: NORM, shape: vec![heads, width], initial: Initial::Constant(1.0) });
            all.extend(sigmoid_gate_tensors(&self.layer_dims));
        }
        all
    }

    fn mix(&self, heads: &LayerInputs, params: &Params, ops: &mut StatefulOps) -> Result<Var> {
        let active = |x: &Var| if self.activation { unary(x, Unary::Silu) } else { Ok(x.clone()) };
        let (q, k, v) = (active(&heads.q)?, active(&heads.k)?, active(&heads.v)?);
        let q = scale(&q, 1.0 / (self.layer_dims.width as f32).sqrt(), 0.0)?;
        let o = ops.gated("s", (&q, &k, &v), Some(&self.decay.run(heads, params)?), None)?;
        if !self.norm {
            return Ok(o);
        }
        sigmoid_gate(&rms_norm_over(&o, 2, Some(params.get(NORM)?), EPS)?, heads, params)
    }

    fn calibration_params(&self) -> Vec<CalibrationParam> {
        vec![self.decay.calibration_param()]
    }

    fn scale(&self) -> OutputScale {
        if self.norm { OutputScale::Existing(NORM) } else { self.scale }
    }

    fn state_size(&self) -> usize {
        self.layer_dims.heads * self.layer_dims.width * self.layer_dims.width
    }
}
