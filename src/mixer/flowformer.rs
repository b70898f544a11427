//! Flowformer (arXiv 2202.06258), causal: attention as a flow network, with competition of sources and allocation to sinks.
//!
//! a = sigmoid(q), b = sigmoid(k), e = 1e-6 added to every element, sums over s <= t, t from 1:
//!
//! ```text
//! I_t = t / ((a_t + e).(sum b_s + e))            O_t = t / ((b_t + e).(sum a_s + e))
//! C_t = (a_t + e).(sum b_s O_s + e) / t          D_t = clamp((b_t + e).(sum a_s I_s + e) / t, -1, 1)
//! o_t = sigmoid(C_t) (I_t / t) a_t^T sum b_s (p_s v_s)^T,  p_s = s e^D_s / sum e^D
//! ```
//!
//! No RoPE. Flows pair a query head with its keys, so keys and values are repeated for every query head.

use super::recurrent::{self, Recurrent};
use super::stateful_ops::StatefulOps;
use super::{CalibrationParam, Combine, LayerDims, LayerInputs, NewTensor, OutputScale, Params, Registration};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::{mul, row_dot, scale};
use crate::ops::shape::repeat_heads;
use crate::ops::unary::{Unary, unary};

const EPS: f32 = 1e-6;

pub const REGISTRATION: Registration = Registration {
    name: "flowformer",
    summary: "linear attention as a flow network, causal",
    formula: "o_t = sigmoid(C_t) (I_t / t) a_t^T sum_s b_s (p_s v_s)^T, a = sigmoid(q), b = sigmoid(k), flows I, C, p from prefix sums",
    paper: "Flowformer (arXiv 2202.06258)",
    rope: false,
    inherits: "sigmoids of q and k",
    options: &[OutputScale::OPTION],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, layer_dims, window| {
        let mixer = Flowformer { layer_dims, scale: OutputScale::added(options.flag("output_scale")) };
        Ok(recurrent::mixer(mixer, layer_dims, window))
    },
};

struct Flowformer {
    layer_dims: LayerDims,
    scale: OutputScale,
}

impl Recurrent for Flowformer {
    fn tensors(&self) -> Vec<NewTensor> {
        vec![]
    }

    fn mix(&self, heads: &LayerInputs, _: &Params, ops: &mut StatefulOps) -> Result<Var> {
        let count = ops.of_positions(&heads.q, |t| (t + 1) as f64)?;
        let share = ops.of_positions(&heads.q, |t| 1.0 / (t + 1) as f64)?;
        let a = unary(&heads.q, Unary::Sigmoid)?;
        let b = repeat_heads(&unary(&heads.k, Unary::Sigmoid)?, self.layer_dims.heads)?;
        let v = repeat_heads(&heads.v, self.layer_dims.heads)?;
        // (x + e).(the sum of y so far + e)
        let flow = |ops: &mut StatefulOps, name, x: &Var, y: &Var| -> Result<Var> {
            row_dot(&scale(x, 1.0, EPS)?, &scale(&ops.sum(name, y)?, 1.0, EPS)?)
        };
        let incoming = mul(&unary(&flow(ops, "b_sum", &a, &b)?, Unary::Reciprocal)?, &count)?;
        let outgoing = mul(&unary(&flow(ops, "a_sum", &b, &a)?, Unary::Reciprocal)?, &count)?;
        let conserved_in = mul(&flow(ops, "b_flow", &a, &mul(&b, &outgoing)?)?, &share)?;
        let conserved_out = mul(&flow(ops, "a_flow", &b, &mul(&a, &incoming)?)?, &share)?;
        let strength = unary(&unary(&conserved_out, Unary::Clamp { min: -1.0, max: 1.0 })?, Unary::Exp)?;
        // At least 1/e from the first token on; padding has a sum of zero.
        let total = unary(&ops.sum("strength", &strength)?, Unary::Clamp { min: 0.1, max: f32::INFINITY })?;
        let competition = mul(&mul(&strength, &unary(&total, Unary::Reciprocal)?)?, &count)?;
        let o = ops.gated("s", (&a, &b, &mul(&v, &competition)?), None, None)?;
        mul(&o, &mul(&mul(&unary(&conserved_in, Unary::Sigmoid)?, &incoming)?, &share)?)
    }

    fn calibration_params(&self) -> Vec<CalibrationParam> {
        vec![]
    }

    fn scale(&self) -> OutputScale {
        self.scale
    }

    fn state_size(&self) -> usize {
        let LayerDims { heads, width, .. } = self.layer_dims;
        heads * (width * width + 4 * width + 1)
    }
}
