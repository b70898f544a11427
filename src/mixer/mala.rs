//! MALA, magnitude-aware linear attention (arXiv 2507.00698), causal: sums and counts of what was read take the place of
//! those over an image.
//!
//! a = elu(q) + 1, b = elu(k) + 1, s = K^-1/2, z_t = s a_t.(sum b) / t;
//! o_t = (1 + 1 / (z_t + 1e-6)) (s / t) a'_t^T sum b' v^T - z_t (sum v) / t, with a', b' after RoPE and z of those before it.
//! Each head's a has a learned scale, 1 as published unless calibration sets it.
//! The paper's convolution over the image and its output gate are not parts of the mixer.

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
use crate::ops::unary::{Unary, unary};

const EPS: f32 = 1e-6;

pub const REGISTRATION: Registration = Registration {
    name: "mala",
    summary: "magnitude-aware linear attention, causal",
    formula: "o_t = (1 + 1/z_t) (s/t) a_t^T sum b v^T - z_t mean(v), z_t = s a_t.mean(b), a = elu(q) + 1, b = elu(k) + 1, s = K^-1/2",
    paper: "MALA (arXiv 2507.00698)",
    rope: true,
    inherits: "elu + 1 of q and k, whose product with v alone is turned by RoPE",
    options: &[
        OptionSpec {
            name: "rope",
            kind: OptionKind::Flag,
            default: "true",
            help: "turn the features of the product with values, not those of its scale, by the teacher's RoPE (the \
                   paper: true)",
        },
        OutputScale::OPTION,
    ],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, layer_dims, window| {
        let (rope, scale) = (options.flag("rope"), OutputScale::added(options.flag("output_scale")));
        Ok(recurrent::mixer(Mala { layer_dims, rope, scale }, layer_dims, window))
    },
};

struct Mala {
    layer_dims: LayerDims,
    rope: bool,
    scale: OutputScale,
}

impl Recurrent for Mala {
    fn tensors(&self) -> Vec<NewTensor> {
        vec![FeatureScale::tensor(&self.layer_dims)]
    }

    fn mix(&self, heads: &LayerInputs, params: &Params, ops: &mut StatefulOps) -> Result<Var> {
        let root = 1.0 / (self.layer_dims.width as f32).sqrt();
        let share = ops.of_positions(&heads.q, |t| 1.0 / (t + 1) as f64)?;
        let a = FeatureScale::apply(&unary(&heads.q, Unary::EluPlusOne)?, params)?;
        let b = unary(&heads.k, Unary::EluPlusOne)?;
        let keys = repeat_heads(&ops.sum("b_sum", &b)?, self.layer_dims.heads)?;
        let magnitude = mul(&scale(&row_dot(&a, &keys)?, root, 0.0)?, &share)?;
        let mean = repeat_heads(&mul(&ops.sum("v_sum", &heads.v)?, &share)?, self.layer_dims.heads)?;
        let (a, b) = if self.rope { (heads.turn(&a)?, heads.turn(&b)?) } else { (a, b) };
        let o = ops.gated("s", (&scale(&a, root, 0.0)?, &b, &heads.v), None, None)?;
        // Padding has no magnitude, and reads nothing.
        let factor = scale(&unary(&scale(&magnitude, 1.0, EPS)?, Unary::Reciprocal)?, 1.0, 1.0)?;
        let first = mul(&mul(&o, &factor)?, &share)?;
        add(&first, &scale(&mul(&mean, &magnitude)?, -1.0, 0.0)?)
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
