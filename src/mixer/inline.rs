//! InLine attention, injective linear attention (arXiv 2412.06590), causal: means over what was read take the place of
//! those over an image.
//!
//! o_t = (s/t) q_t^T sum k v^T + (1 - s q_t.(sum k) / t) (sum v) / t, s = K^-1/2: weights are differences and sum to 1, without
//! feature maps. Each head's q has a learned scale, 1 as published unless calibration sets it. The paper's convolution over the image is no part of the mixer.

use super::recurrent::{self, Recurrent};
use super::scale::FeatureScale;
use super::stateful_ops::StatefulOps;
use super::{
    CalibrationParam, Combine, LayerDims, LayerInputs, NewTensor, OptionKind, OptionSpec, OutputScale, Params,
    Registration,
};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::{add, mul, row_dot, scale};
use crate::ops::shape::repeat_heads;

pub const REGISTRATION: Registration = Registration {
    name: "inline",
    summary: "injective linear attention, causal",
    formula: "o_t = (s/t) q_t^T sum k v^T + (1 - s q_t.mean(k)) mean(v), s = K^-1/2",
    paper: "InLine (arXiv 2412.06590)",
    rope: false,
    inherits: "q, k and v as they are",
    options: &[
        OptionSpec {
            name: "rope",
            kind: OptionKind::Flag,
            default: "false",
            help: "take q and k after the teacher's RoPE (the paper: without)",
        },
        OutputScale::OPTION,
    ],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, layer_dims, window| {
        let (rope, scale) = (options.flag("rope"), OutputScale::added(options.flag("output_scale")));
        Ok(recurrent::mixer(InLine { layer_dims, rope, scale }, layer_dims, window))
    },
};

struct InLine {
    layer_dims: LayerDims,
    rope: bool,
    scale: OutputScale,
}

impl Recurrent for InLine {
    fn tensors(&self) -> Vec<NewTensor> {
        vec![FeatureScale::tensor(&self.layer_dims)]
    }

    fn mix(&self, heads: &LayerInputs, params: &Params, ops: &mut StatefulOps) -> Result<Var> {
        let share = ops.of_positions(&heads.q, |t| 1.0 / (t + 1) as f64)?;
        let (q, k) = if self.rope { heads.rotated()?.clone() } else { (heads.q.clone(), heads.k.clone()) };
        let q = FeatureScale::apply(&q, params)?;
        let q = mul(&scale(&q, 1.0 / (self.layer_dims.width as f32).sqrt(), 0.0)?, &share)?;
        let keys = repeat_heads(&ops.sum("k_sum", &k)?, self.layer_dims.heads)?;
        let rest = scale(&row_dot(&q, &keys)?, -1.0, 1.0)?;
        let mean = repeat_heads(&mul(&ops.sum("v_sum", &heads.v)?, &share)?, self.layer_dims.heads)?;
        let o = ops.gated("s", (&q, &k, &heads.v), None, None)?;
        add(&o, &mul(&mean, &rest)?)
    }

    fn calibration_params(&self) -> Vec<CalibrationParam> {
        vec![FeatureScale::calibration_param()]
    }

    fn scale(&self) -> OutputScale {
        self.scale
    }

    fn state_size(&self) -> usize {
        let LayerDims { kv_heads, width, .. } = self.layer_dims;
        kv_heads * width * (width + 2)
    }
}
