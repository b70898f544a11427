//! NaLaFormer's norm-aware kernel (arXiv 2506.21137), causal: the length of a query sets how sharp its features are.
//!
//! phi_k(k) = [relu(k^3), relu(-k^3)]; phi_q(q) = [relu(u), relu(-u)]^p, u = q / |q|, p = 3 (1/2 + tanh |q|);
//! o_t = phi_q(q_t) S_t / (phi_q(q_t).z_t + 1e-6). The paper turns the features of the numerator alone by RoPE; a kernel has one
//! set of features, so the teacher's RoPE comes before the maps or not at all. Its convolution over the image, LayerNorm
//! and gate are not parts of the mixer.

use super::kernel::{self, Kernel, Side};
use super::{Bound, Combine, OptionKind, OptionSpec, Registration, Scale, Site};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::{mul, row_dot, scale};
use crate::ops::map::{Map, map};
use crate::ops::norm::l2_norm;
use crate::ops::shape::{concat_last, repeat_heads};

/// What stands for 0 where a logarithm is taken: its powers are 0, and so are their gradients.
const ZERO: f32 = 1e-30;

pub const REGISTRATION: Registration = Registration {
    name: "nalaformer",
    summary: "norm-aware power kernel, nothing learned",
    formula: "phi_k = [relu(k^3), relu(-k^3)], phi_q = [relu(u), relu(-u)]^p, u = q/|q|, p = 3(1/2 + tanh|q|);  o_t = phi_q S_t / phi_q.z_t",
    paper: "NaLaFormer (arXiv 2506.21137)",
    rope: true,
    seeding: "powers of q and k",
    options: &[
        OptionSpec {
            name: "rope",
            kind: OptionKind::Flag,
            default: "true",
            help: "take q and k after the teacher's RoPE (the paper turns the numerator's features instead)",
        },
        Scale::OPTION,
    ],
    combine: Combine::ALL,
    build: |options, site, window| {
        let (rope, scale) = (options.flag("rope"), Scale::added(options.flag("output_scale")));
        Ok(kernel::mixer(NaLaFormer { site, rope, scale }, site, window))
    },
};

struct NaLaFormer {
    site: Site,
    rope: bool,
    scale: Scale,
}

/// [relu(x), relu(-x)]
fn signs(x: &Var) -> Result<Var> {
    concat_last(&[&map(x, Map::Relu)?, &map(&scale(x, -1.0, 0.0)?, Map::Relu)?])
}

/// ln max(x, [`ZERO`])
fn logarithm(x: &Var) -> Result<Var> {
    map(&map(x, Map::Clamp { min: ZERO, max: f32::INFINITY })?, Map::Ln)
}

impl Kernel for NaLaFormer {
    fn features(&self) -> usize {
        2 * self.site.width
    }

    fn eps(&self) -> f32 {
        1e-6
    }

    fn rotary(&self) -> bool {
        self.rope
    }

    fn scale(&self) -> Scale {
        self.scale
    }

    fn map(&self, side: Side, x: &Var, _: &Bound) -> Result<Var> {
        let features = match side {
            Side::Key => signs(&mul(x, &map(x, Map::Square)?)?)?,
            Side::Query => {
                let length = map(&scale(&logarithm(&row_dot(x, x)?)?, 0.5, 0.0)?, Map::Exp)?;
                let power = scale(&map(&length, Map::Tanh)?, 3.0, 1.5)?;
                map(&mul(&logarithm(&signs(&l2_norm(x, f64::from(ZERO))?)?)?, &power)?, Map::Exp)?
            }
        };
        repeat_heads(&features, self.site.heads)
    }
}
