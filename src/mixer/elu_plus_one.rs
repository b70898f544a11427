//! Linear attention with phi(x) = elu(x) + 1 (arXiv 2006.16236), as in flash-linear-attention's layer.
//!
//! o_t = phi(q_t) S_t / (phi(q_t).z_t + eps) on q and k after RoPE. flash-linear-attention divides q by sqrt K and adds
//! 1e-10, which is eps = 1e-10 sqrt K without that factor.

use super::kernel::{self, Kernel, Side};
use super::{Bound, Combine, Registration, Scale, Site};
use crate::Result;
use crate::ops::Var;
use crate::ops::map::{Map, map};
use crate::ops::shape::repeat_heads;

pub const REGISTRATION: Registration = Registration {
    name: "elu-plus-one",
    summary: "linear attention with elu + 1, nothing learned",
    formula: "phi(x) = elu(x) + 1;  o_t = phi(q_t) S_t / phi(q_t).z_t",
    paper: "Transformers are RNNs (arXiv 2006.16236)",
    options: &[Scale::OPTION],
    combine: Combine::ALL,
    build: |options, site, window| {
        let kernel = EluPlusOne { site, scale: Scale::added(options.flag("output_scale")) };
        Ok(kernel::mixer(kernel, site, window))
    },
};

struct EluPlusOne {
    site: Site,
    scale: Scale,
}

impl Kernel for EluPlusOne {
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
        repeat_heads(&map(x, Map::EluPlusOne)?, self.site.heads)
    }
}
