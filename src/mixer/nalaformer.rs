//! NaLaFormer's norm-aware kernel (arXiv 2506.21137), causal: the length of a query sets how sharp its features are.
//!
//! phi_k(k) = [relu(k^3), relu(-k^3)]; phi_q(q) = [relu(u), relu(-u)]^p, u = q / |q|, p = 3 (1/2 + tanh |q|);
//! o_t = phi_q(q_t) S_t / (phi_q(q_t).z_t + 1e-6). The paper turns the features of the numerator alone by RoPE; a kernel has one
//! set of features, so the teacher's RoPE comes before the maps or not at all. Its convolution over the image, LayerNorm
//! and gate are not parts of the mixer.

use super::feature_map::{self, FeatureMap, Side};
use super::{Combine, LayerDims, OptionKind, OptionSpec, OutputScale, Params, Registration};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::{mul, row_dot, scale};
use crate::ops::norm::l2_norm;
use crate::ops::shape::{concat_last, repeat_heads};
use crate::ops::unary::{Unary, unary};

/// What stands for 0 where a logarithm is taken: its powers are 0, and so are their gradients.
const ZERO: f32 = 1e-30;

pub const REGISTRATION: Registration = Registration {
    name: "nalaformer",
    summary: "norm-aware power kernel, nothing learned",
    formula: "phi_k = [relu(k^3), relu(-k^3)], phi_q = [relu(u), relu(-u)]^p, u = q/|q|, p = 3(1/2 + tanh|q|);  o_t = phi_q S_t / phi_q.z_t",
    paper: "NaLaFormer (arXiv 2506.21137)",
    rope: true,
    inherits: "powers of q and k",
    options: &[
        OptionSpec {
            name: "rope",
            kind: OptionKind::Flag,
            default: "true",
            help: "take q and k after the teacher's RoPE (the paper turns the numerator's features instead)",
        },
        OutputScale::OPTION,
    ],
    combine: Combine::ALL,
    build: |options, layer_dims, window| {
        let (rope, scale) = (options.flag("rope"), OutputScale::added(options.flag("output_scale")));
        Ok(feature_map::mixer(NaLaFormer { layer_dims, rope, scale }, layer_dims, window))
    },
};

struct NaLaFormer {
    layer_dims: LayerDims,
    rope: bool,
    scale: OutputScale,
}

/// [relu(x), relu(-x)]
fn signs(x: &Var) -> Result<Var> {
    concat_last(&[&unary(x, Unary::Relu)?, &unary(&scale(x, -1.0, 0.0)?, Unary::Relu)?])
}

/// ln max(x, [`ZERO`])
fn logarithm(x: &Var) -> Result<Var> {
    unary(&unary(x, Unary::Clamp { min: ZERO, max: f32::INFINITY })?, Unary::Ln)
}

impl FeatureMap for NaLaFormer {
    fn features(&self) -> usize {
        2 * self.layer_dims.width
    }

    fn eps(&self) -> f32 {
        1e-6
    }

    fn rotary(&self) -> bool {
        self.rope
    }

    fn scale(&self) -> OutputScale {
        self.scale
    }

    fn map(&self, side: Side, x: &Var, _: &Params) -> Result<Var> {
        let features = match side {
            Side::Key => signs(&mul(x, &unary(x, Unary::Square)?)?)?,
            Side::Query => {
                let length = unary(&scale(&logarithm(&row_dot(x, x)?)?, 0.5, 0.0)?, Unary::Exp)?;
                let power = scale(&unary(&length, Unary::Tanh)?, 3.0, 1.5)?;
                unary(&mul(&logarithm(&signs(&l2_norm(x, f64::from(ZERO))?)?)?, &power)?, Unary::Exp)?
            }
        };
        repeat_heads(&features, self.layer_dims.heads)
    }
}
