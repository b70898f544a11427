//! Linear attention with phi(x) = max(x, 0)^2 (as in Primer, arXiv 2109.08668; flash-linear-attention's feature map).
//!
//! o_t = phi(q_t) S_t / (phi(q_t).z_t + eps) on q and k after RoPE, eps = 1e-10 sqrt K as in `elu_plus_one`. A query that
//! meets no key gives 0.

use super::kernel::{self, Kernel, Side};
use super::{Bound, Combine, Registration, Scale, Site};
use crate::Result;
use crate::ops::Var;
use crate::ops::map::{Map, map};
use crate::ops::shape::repeat_heads;

pub const REGISTRATION: Registration = Registration {
    name: "squared-relu",
    summary: "linear attention with squared positive parts, nothing learned",
    formula: "phi(x) = max(x, 0)^2;  o_t = phi(q_t) S_t / phi(q_t).z_t",
    paper: "Transformers are RNNs (arXiv 2006.16236), with the activation of Primer (arXiv 2109.08668)",
    options: &[Scale::OPTION],
    combine: Combine::ALL,
    build: |options, site, window| {
        let kernel = SquaredRelu { site, scale: Scale::added(options.flag("output_scale")) };
        Ok(kernel::mixer(kernel, site, window))
    },
};

struct SquaredRelu {
    site: Site,
    scale: Scale,
}

impl Kernel for SquaredRelu {
    fn features(&self) -> usize {
        self.site.width
    }

    fn eps(&self) -> f32 {
        1e-10 * (self.site.width as f32).sqrt()
    }

    fn scale(&self) -> Scale {
        self.scale
    }

    fn map(&self, _: Side, x: &Var, _: &Bound) -> Result<Var> {
        repeat_heads(&map(x, Map::ReluSquared)?, self.site.heads)
    }
}
