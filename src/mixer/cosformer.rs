//! cosFormer (arXiv 2202.08791): positive parts, weighed by the cosine of their distance.
//!
//! phi(x_t) = [r sin theta_t, r cos theta_t], r = max(x, 0), theta_t = pi t / 2M, t from 1, so that
//! phi(q_t).phi(k_s) = (r_q.r_k) cos(theta_t - theta_s); o_t = phi(q_t) S_t / max(phi(q_t).z_t, 1e-6). The cosine is the position
//! code: no RoPE. The paper's M is the length of the text; a text that goes on needs one M for all lengths. Beyond a
//! distance of M weights would turn negative, so M should be at least the longest text.

use super::recurrent::{self, Recurrent};
use super::stateful_ops::StatefulOps;
use super::{
    CalibrationParam, Combine, Incompatibility, LayerDims, LayerInputs, NewTensor, OptionKind, OptionSpec, OutputScale,
    Params, Registration,
};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::mul;
use crate::ops::normalize::normalize;
use crate::ops::shape::{concat_last, repeat_heads};
use crate::ops::unary::{Unary, unary};

/// The smallest denominator.
const FLOOR: f32 = 1e-6;

pub const REGISTRATION: Registration = Registration {
    name: "cosformer",
    summary: "positive parts weighed by the cosine of their distance",
    formula: "phi(x_t) = [r sin u, r cos u], r = max(x, 0), u = pi t / 2M;  o_t = phi(q_t) S_t / max(phi(q_t).z_t, 1e-6)",
    paper: "cosFormer (arXiv 2202.08791)",
    rope: false,
    inherits: "positive parts of q and k",
    options: &[
        OptionSpec {
            name: "length",
            kind: OptionKind::Integer { min: 1, max: 1 << 24 },
            default: "4096",
            help: "M, tokens over which the cosine falls from 1 to 0: the longest text that will be read (the paper: \
                   the length of each text, which a text that goes on does not know)",
        },
        OutputScale::OPTION,
    ],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, layer_dims, window| {
        let length = options.integer("length", 4096);
        let mixer = Cosformer { layer_dims, length, scale: OutputScale::added(options.flag("output_scale")) };
        Ok(recurrent::mixer(mixer, layer_dims, window))
    },
};

struct Cosformer {
    layer_dims: LayerDims,
    /// M
    length: usize,
    scale: OutputScale,
}

impl Recurrent for Cosformer {
    fn tensors(&self) -> Vec<NewTensor> {
        vec![]
    }

    fn mix(&self, heads: &LayerInputs, _: &Params, ops: &mut StatefulOps) -> Result<Var> {
        let quarter = std::f64::consts::FRAC_PI_2 / self.length as f64;
        let sine = ops.of_positions(&heads.q, |t| (quarter * (t + 1) as f64).sin())?;
        let cosine = ops.of_positions(&heads.q, |t| (quarter * (t + 1) as f64).cos())?;
        let features = |x: &Var| -> Result<Var> {
            let r = unary(x, Unary::Relu)?;
            repeat_heads(&concat_last(&[&mul(&r, &sine)?, &mul(&r, &cosine)?])?, self.layer_dims.heads)
        };
        let (a, b) = (features(&heads.q)?, features(&heads.k)?);
        let (num, den) = ops.linear(("s", "z"), &a, &b, &heads.v)?;
        normalize(&num, &unary(&den, Unary::Clamp { min: FLOOR, max: f32::INFINITY })?, 0.0)
    }

    fn incompatibilities(&self, tokens: usize) -> Vec<Incompatibility> {
        let incompatibility = Incompatibility {
            option: Some("length"),
            what: format!(
                "`length` is {}: in a text of {tokens} tokens, weights of keys that are further away turn negative",
                self.length
            ),
            hint: format!("at least {tokens}"),
        };
        if tokens > self.length { vec![incompatibility] } else { vec![] }
    }

    fn calibration_params(&self) -> Vec<CalibrationParam> {
        vec![]
    }

    fn scale(&self) -> OutputScale {
        self.scale
    }

    fn state_size(&self) -> usize {
        let LayerDims { heads, width, .. } = self.layer_dims;
        heads * 2 * width * (width + 1)
    }
}
