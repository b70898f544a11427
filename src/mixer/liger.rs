//! Liger's three gated forms (arXiv 2503.01496): gates from the teacher's own keys, no new parameters.
//!
//! With k before RoPE and without any convolution, norm or output gate,
//!
//! ```text
//! liger-gla    g = ln sigmoid(k) / 16   S_t = diag(e^g_t) S_{t-1} + softmax(k_t) v_t^T        o_t = softmax(q_t)^T S_t
//! liger-hgrn2  g = ln sigmoid(k)        S_t = diag(e^g_t) S_{t-1} + (1 - e^g_t) v_t^T         o_t = softmax(q_t)^T S_t
//! liger-gsa    g = ln sigmoid(k) / 16   slot attention with s = 1 - e^g and as many slots as channels; q, k, v as they come
//! ```
//!
//! softmax over a head's channels, scale 1. Published half and half with a softmax window of 64 keys. The published gate
//! pools k to as many channels as there are: the identity.

use super::gsa;
use super::recurrent::{self, Recurrent};
use super::stateful_ops::StatefulOps;
use super::{
    Build, CalibrationParam, Combine, LayerDims, LayerInputs, Mixer, NewTensor, Options, OutputScale, Params,
    Registration, Window,
};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::scale;
use crate::ops::softmax::softmax;
use crate::ops::unary::{Unary, unary};

/// What log gates of GLA and GSA are divided by.
const NORMALIZER: f32 = 16.0;

pub const GLA: Registration = registration(
    "liger-gla",
    "GLA with gates from the keys, no new projections (Liger)",
    "S_t = diag(e^g_t) S_{t-1} + softmax(k_t) v_t^T;  o_t = softmax(q_t)^T S_t;  g = ln sigmoid(k) / 16",
    "softmax of q and of k; gates <- k",
    |options, layer_dims, window| build(Form::Gla, options, layer_dims, window),
);

pub const HGRN2: Registration = registration(
    "liger-hgrn2",
    "HGRN2 with gates from the keys, no new projections (Liger)",
    "S_t = diag(e^g_t) S_{t-1} + (1 - e^g_t) v_t^T;  o_t = softmax(q_t)^T S_t;  g = ln sigmoid(k)",
    "softmax of q; gates and what is written <- k",
    |options, layer_dims, window| build(Form::Hgrn2, options, layer_dims, window),
);

pub const GSA: Registration = registration(
    "liger-gsa",
    "gated slot attention with gates from the keys, no new projections (Liger)",
    "p_t = softmax(q_t^T Hk_t);  o_t = p_t^T Hv_t;  Hk, Hv gated sums of k s^T, s v^T;  s = 1 - e^g;  g = ln sigmoid(k) / 16",
    "q, k and v as they are; gates <- k",
    |options, layer_dims, window| build(Form::Gsa, options, layer_dims, window),
);

const fn registration(
    name: &'static str,
    summary: &'static str,
    formula: &'static str,
    inherits: &'static str,
    build: Build,
) -> Registration {
    Registration {
        name,
        summary,
        formula,
        paper: "Liger (arXiv 2503.01496)",
        rope: false,
        inherits,
        options: &[OutputScale::OPTION],
        // Half and half is the paper's; elsewhere the default is the one that calibration can set.
        combine: &[Combine::Fixed, Combine::Learned],
        build,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Gla,
    Hgrn2,
    Gsa,
}

struct Liger {
    form: Form,
    layer_dims: LayerDims,
    scale: OutputScale,
}

fn build(form: Form, options: &Options, layer_dims: LayerDims, window: Option<Window>) -> Result<Box<dyn Mixer>> {
    let scale = OutputScale::added(options.flag("output_scale"));
    Ok(recurrent::mixer(Liger { form, layer_dims, scale }, layer_dims, window))
}

impl Recurrent for Liger {
    fn tensors(&self) -> Vec<NewTensor> {
        vec![]
    }

    fn mix(&self, heads: &LayerInputs, _: &Params, ops: &mut StatefulOps) -> Result<Var> {
        let LayerInputs { q, k, v, .. } = heads;
        let gate = unary(k, Unary::LogSigmoid)?;
        let slow = scale(&gate, 1.0 / NORMALIZER, 0.0)?;
        match self.form {
            Form::Gla => ops.gated("s", (&softmax(q, None)?, &softmax(k, None)?, v), Some(&slow), None),
            Form::Hgrn2 => {
                let k = unary(&gate, Unary::OneMinusExp)?;
                ops.gated("s", (&softmax(q, None)?, &k, v), Some(&gate), None)
            }
            Form::Gsa => gsa::passes(ops, q, k, v, &slow),
        }
    }

    fn calibration_params(&self) -> Vec<CalibrationParam> {
        vec![]
    }

    fn scale(&self) -> OutputScale {
        self.scale
    }

    fn state_size(&self) -> usize {
        let LayerDims { kv_heads, width, .. } = self.layer_dims;
        match self.form {
            Form::Gla | Form::Hgrn2 => kv_heads * width * width,
            Form::Gsa => gsa::state_size(&self.layer_dims, width),
        }
    }
}
