//! Mamba-2 (SSD, arXiv 2405.21060) seeded from attention as in MambaInLlama (arXiv 2408.15237): C <- q, B <- k, x <- v.
//!
//! After short convolutions with bias and SiLU over q, k and v, per head dt = softplus(W x + b), g = -e^A dt;
//!
//! ```text
//! S_t = e^g_t S_{t-1} + k_t (dt_t v_t)^T      o_t = q_t^T S_t + d v_t      y_t = norm(o_t * silu(W_z x_t))
//! ```
//!
//! RMSNorm over each head after the gate, since a group of MambaInLlama is a head. q is not divided by sqrt K. k and v are
//! convolved in their own heads and shared by query heads afterwards. A and dt start at one decay, 0.99 (dt = 0.01, the middle of Mamba's range), where Mamba draws
//! them at random: calibration sets them head by head. No RoPE.

use super::delta_parts as delta;
use super::parts::{Convolutions, gate, gate_tensors};
use super::recurrent::{self, Recurrent};
use super::stateful_ops::StatefulOps;
use super::{
    CalibrationParam, CalibrationUpdate, Combine, Granularity, Initial, LayerDims, LayerInputs, NewTensor, OutputScale,
    Params, Registration,
};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::{add, mul};
use crate::ops::norm::rms_norm_over;
use crate::ops::shape::repeat_heads;
use crate::ops::unary::{Unary, unary};

/// silu(1.2785) = 1.
const OPEN: f32 = 1.278_464_5;
const EPS: f64 = 1e-5;
const NORM: &str = "norm_weight";

pub const REGISTRATION: Registration = Registration {
    name: "mamba2",
    summary: "state-space duality: a decay tied to the step size (Mamba-2)",
    formula: "S_t = e^(-e^A dt_t) S_{t-1} + k_t (dt_t v_t)^T;  o_t = norm((q_t^T S_t + d v_t) silu(W_z x_t));  dt = softplus(W x + b)",
    paper: "Mamba-2 (arXiv 2405.21060), seeded as in MambaInLlama (arXiv 2408.15237)",
    rope: false,
    inherits: "C <- q, B <- k, x <- v, through short convolutions",
    options: &[Convolutions::option("true")],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, layer_dims, window| {
        let convolutions = Convolutions::new(layer_dims, options.flag("convolution")).biased();
        Ok(recurrent::mixer(Mamba2 { layer_dims, convolutions }, layer_dims, window))
    },
};

struct Mamba2 {
    layer_dims: LayerDims,
    convolutions: Convolutions,
}

impl Recurrent for Mamba2 {
    fn tensors(&self) -> Vec<NewTensor> {
        let LayerDims { heads, width, .. } = self.layer_dims;
        let constant = |name, shape, value| NewTensor { name, shape, initial: Initial::Constant(value) };
        let mut all = vec![
            delta::log_rate(&self.layer_dims),
            constant("skip", vec![heads, 1], 1.0),
            constant(NORM, vec![heads, width], 1.0),
        ];
        all.extend(gate_tensors("dt_weight", "dt_bias", &self.layer_dims, heads, delta::DT_BIAS));
        all.extend(gate_tensors("output_gate_weight", "output_gate_bias", &self.layer_dims, heads * width, OPEN));
        all.extend(self.convolutions.tensors());
        all
    }

    fn mix(&self, heads: &LayerInputs, params: &Params, ops: &mut StatefulOps) -> Result<Var> {
        let h = self.layer_dims.heads;
        let (q, k, v) = self.convolutions.run(heads, params, ops)?;
        let (k, v) = (repeat_heads(&k, h)?, repeat_heads(&v, h)?);
        let dt = delta::step_size(heads, params, "dt_weight", h)?;
        let decay = delta::decay(&dt, params)?;
        let o = ops.gated("s", (&q, &k, &mul(&v, &dt)?), Some(&decay), None)?;
        let o = add(&o, &mul(&v, params.get("skip")?)?)?;
        let z = unary(&gate(heads, params, "output_gate_weight", "output_gate_bias", h)?, Unary::Silu)?;
        // Values at padding are zero only after a convolution.
        ops.without_padding(&rms_norm_over(&mul(&o, &z)?, 1, Some(params.get(NORM)?), EPS)?)
    }

    fn calibration_params(&self) -> Vec<CalibrationParam> {
        // Decays of 0.5 to 0.9998 a token; the values' own way past the state.
        let skip = CalibrationParam {
            tensor: "skip",
            granularity: Granularity::Head,
            values: &[0.0, 0.1, 1.0],
            update: CalibrationUpdate::Set,
        };
        vec![delta::DECAY_KNOB, skip]
    }

    fn scale(&self) -> OutputScale {
        OutputScale::Existing(NORM)
    }

    fn state_size(&self) -> usize {
        self.layer_dims.heads * self.layer_dims.width * self.layer_dims.width + self.convolutions.state_size()
    }
}
