//! Retention (RetNet, arXiv 2307.08621), as in flash-linear-attention's layer.
//!
//! q and k after RoPE; S_t = gamma_h S_{t-1} + k_t v_t^T with gamma_h = 1 - 2^(-5-h), h = 0..H-1, which no training changes;
//! o_t = (q_t / sqrt K)^T S_t; RMSNorm per head times swish(W_g x). The teacher's RoPE takes the place of the paper's.

use super::parts::{ConstantGate, GatedNorm};
use super::recurrent::{self, Recurrent};
use super::stateful_ops::StatefulOps;
use super::{CalibrationParam, Combine, LayerDims, LayerInputs, NewTensor, OutputScale, Params, Registration};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::scale;

pub const REGISTRATION: Registration = Registration {
    name: "retention",
    summary: "a fixed decay per head, with RoPE (RetNet)",
    formula: "S_t = (1 - 2^(-5-h)) S_{t-1} + k_t v_t^T;  o_t = norm(q_t^T S_t / sqrt K) swish(W_g x_t);  q, k after RoPE",
    paper: "Retentive Network (arXiv 2307.08621)",
    rope: true,
    inherits: "q, k and v as they are",
    options: &[GatedNorm::GATE],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, layer_dims, window| {
        let retention = Retention {
            layer_dims,
            decay: ConstantGate::new(layer_dims.heads, |h| (-(-5.0 - h as f64).exp2()).ln_1p() as f32),
            finish: GatedNorm::new(layer_dims, options.flag("output_gate"), 1e-5),
        };
        Ok(recurrent::mixer(retention, layer_dims, window))
    },
};

struct Retention {
    layer_dims: LayerDims,
    decay: ConstantGate,
    finish: GatedNorm,
}

impl Recurrent for Retention {
    fn tensors(&self) -> Vec<NewTensor> {
        let mut all = self.finish.tensors();
        all.push(self.decay.tensor());
        all
    }

    fn mix(&self, heads: &LayerInputs, params: &Params, ops: &mut StatefulOps) -> Result<Var> {
        let (q, k) = heads.rotated()?;
        let q = scale(q, 1.0 / (self.layer_dims.width as f32).sqrt(), 0.0)?;
        let o = ops.gated("s", (&q, k, &heads.v), Some(&self.decay.run(heads, params)?), None)?;
        self.finish.run(&o, heads, params)
    }

    fn calibration_params(&self) -> Vec<CalibrationParam> {
        vec![self.decay.calibration_param()]
    }

    fn scale(&self) -> OutputScale {
        OutputScale::Existing(GatedNorm::SCALE)
    }

    fn state_size(&self) -> usize {
        self.layer_dims.heads * self.layer_dims.width * self.layer_dims.width
    }
}
