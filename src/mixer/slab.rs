//! SLAB's simplified linear attention (arXiv 2405.11582): phi(x) = max(x, 0), as a causal kernel.
//!
//! o_t = phi(q_t) S_t / (phi(q_t).z_t + 1e-6) on q and k after RoPE, which takes the place of the paper's learned
//! positions. Its convolution over the image and its replacement of the layer's norm are not parts of the mixer.

use super::kernel::{self, Kernel, Side};
use super::{Bound, Combine, Registration, Scale, Site};
use crate::Result;
use crate::ops::Var;
use crate::ops::map::{Map, map};
use crate::ops::shape::repeat_heads;

pub const REGISTRATION: Registration = Registration {
    name: "slab",
    summary: "linear attention with positive parts, nothing learned",
    formula: "phi(x) = max(x, 0);  o_t = phi(q_t) S_t / phi(q_t).z_t",
    paper: "SLAB (arXiv 2405.11582)",
    options: &[Scale::OPTION],
    combine: Combine::ALL,
    build: |options, site, window| {
        let kernel = Slab { site, scale: Scale::added(options.flag("output_scale")) };
        Ok(kernel::mixer(kernel, site, window))
    },
};

struct Slab {
    site: Site,
    scale: Scale,
}

impl Kernel for Slab {
    fn features(&self) -> usize {
        self.site.width
    }

    fn eps(&self) -> f32 {
        1e-6
    }

    fn scale(&self) -> Scale {
        self.scale
    }

    fn map(&self, _: Side, x: &Var, _: &Bound) -> Result<Var> {
        repeat_heads(&map(x, Map::Relu)?, self.site.heads)
    }
}
