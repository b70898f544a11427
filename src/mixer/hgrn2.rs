//! HGRN2 (arXiv 2404.07904), as in flash-linear-attention's layer.
//!
//! g = ln(lb + (1 - lb) sigmoid(f)), k = 1 - e^g, q through SiLU; S_t = diag(e^g_t) S_{t-1} + k_t v_t^T;
//! o_t = (q_t / sqrt K)^T S_t; RMSNorm over all heads. No RoPE.
//!
//! f is the teacher's key projection, whose place it takes, plus a bias per channel that is ours and sets the decay. The
//! lower bound lb is none in the first layer. The paper makes it rise with depth by a cumulative softmax over layers, which
//! starts at l / L in layer l of L; here each layer learns its own, as a logit, from that start.

use super::recurrent::{self, Recurrent};
use super::stateful_ops::StatefulOps;
use super::{
    CalibrationParam, CalibrationUpdate, Combine, Granularity, Initial, LayerDims, LayerInputs, NewTensor, OptionKind,
    OptionSpec, OutputScale, Params, Registration,
};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::{add, mul, scale};
use crate::ops::norm::rms_norm_over;
use crate::ops::unary::{Unary, unary};

/// sigmoid(3) = 0.95 a token, without a lower bound.
const BIAS: f32 = 3.0;
const EPS: f64 = 1e-5;
const NORM: &str = "norm_weight";

pub const REGISTRATION: Registration = Registration {
    name: "hgrn2",
    summary: "linear RNN whose keys are one minus their decay",
    formula: "S_t = diag(e^g_t) S_{t-1} + (1 - e^g_t) v_t^T;  o_t = norm(silu(q_t)^T S_t / sqrt K);  e^g = lb + (1 - lb) sigmoid(k + b)",
    paper: "HGRN2 (arXiv 2404.07904)",
    rope: false,
    inherits: "forget gate <- k, input <- v; q through SiLU",
    options: &[OptionSpec {
        name: "lower_bound",
        kind: OptionKind::Flag,
        default: "true",
        help: "a learned lower bound of the decay in every layer but the first, l / L at the start",
    }],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, layer_dims, window| {
        let hgrn2 = Hgrn2 { layer_dims, bounded: options.flag("lower_bound") && layer_dims.layer > 0 };
        Ok(recurrent::mixer(hgrn2, layer_dims, window))
    },
};

struct Hgrn2 {
    layer_dims: LayerDims,
    bounded: bool,
}

impl Hgrn2 {
    /// The log gate and the key of `f`.
    fn gate(&self, f: &Var, params: &Params) -> Result<(Var, Var)> {
        let rest = unary(&scale(f, -1.0, 0.0)?, Unary::Sigmoid)?;
        if !self.bounded {
            return Ok((unary(f, Unary::LogSigmoid)?, rest));
        }
        let logit = params.get("lower_bound_logit")?;
        let (lowest, free) = (unary(logit, Unary::Sigmoid)?, unary(&scale(logit, -1.0, 0.0)?, Unary::Sigmoid)?);
        let decay = add(&mul(&unary(f, Unary::Sigmoid)?, &free)?, &lowest)?;
        Ok((unary(&decay, Unary::Ln)?, mul(&rest, &free)?))
    }
}

impl Recurrent for Hgrn2 {
    fn tensors(&self) -> Vec<NewTensor> {
        let LayerDims { heads, kv_heads, width, layer, layers, .. } = self.layer_dims;
        let mut all = vec![
            NewTensor { name: "forget_bias", shape: vec![kv_heads, width], initial: Initial::Constant(BIAS) },
            NewTensor { name: NORM, shape: vec![heads, width], initial: Initial::Constant(1.0) },
        ];
        if self.bounded {
            let start = (layer as f32 / (layers - layer) as f32).ln();
            let initial = Initial::Constant(start);
            all.push(NewTensor { name: "lower_bound_logit", shape: vec![kv_heads, width], initial });
        }
        all
    }

    fn mix(&self, heads: &LayerInputs, params: &Params, ops: &mut StatefulOps) -> Result<Var> {
        let f = add(&heads.k, params.get("forget_bias")?)?;
        let (gate, k) = self.gate(&f, params)?;
        let q = scale(&unary(&heads.q, Unary::Silu)?, 1.0 / (self.layer_dims.width as f32).sqrt(), 0.0)?;
        let o = ops.gated("s", (&q, &k, &heads.v), Some(&gate), None)?;
        rms_norm_over(&o, 2, Some(params.get(NORM)?), EPS)
    }

    fn calibration_params(&self) -> Vec<CalibrationParam> {
        // Decays of 0.5 to 0.9998 a token at k = 0, without a lower bound.
        let values = &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.5];
        vec![CalibrationParam {
            tensor: "forget_bias",
            granularity: Granularity::KvHead,
            values,
            update: CalibrationUpdate::Set,
        }]
    }

    fn scale(&self) -> OutputScale {
        OutputScale::Existing(NORM)
    }

    fn state_size(&self) -> usize {
        self.layer_dims.kv_heads * self.layer_dims.width * self.layer_dims.width
    }
}
