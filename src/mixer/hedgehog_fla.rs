//! Hedgehog (arXiv 2402.04347) as flash-linear-attention defines it: one softmax over both signs.
//!
//! phi(x) = softmax([2y, -2y]), y = W x + b, so that all 2K features sum to 1; its weights cannot be exchanged with
//! LoLCATs' (`hedgehog`, two softmaxes). W starts as the identity, b at zero. o_t = phi(q_t) S_t / (phi(q_t).z_t + eps) on q
//! and k after RoPE, eps = 1e-10 sqrt K as its 1e-10 beside a q divided by sqrt K.

use super::kernel::{self, Kernel, Side};
use super::maps::Maps;
use super::{Bound, Combine, How, Initial, Knob, NewTensor, Per, Registration, Scale, Site};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::{add, scale};
use crate::ops::shape::concat_last;
use crate::ops::softmax::softmax;

pub const REGISTRATION: Registration = Registration {
    name: "hedgehog-fla",
    summary: "learned softmax feature maps, one softmax (flash-linear-attention)",
    formula: "phi(x) = softmax([2y, -2y]), y = W x + b;  o_t = phi(q_t) S_t / phi(q_t).z_t",
    paper: "Hedgehog (arXiv 2402.04347), as in flash-linear-attention",
    rope: true,
    seeding: "q and k through learned maps that start as the identity",
    options: &[Maps::SHARED, Scale::OPTION],
    combine: Combine::ALL,
    build: |options, site, window| {
        let shared = options.word("maps") == "shared";
        let kernel = HedgehogFla {
            site,
            maps: Maps { site, columns: site.width, shared, initial: Initial::Identity },
            scale: Scale::added(options.flag("output_scale")),
        };
        Ok(kernel::mixer(kernel, site, window))
    },
};

struct HedgehogFla {
    site: Site,
    maps: Maps,
    scale: Scale,
}

impl Kernel for HedgehogFla {
    fn tensors(&self) -> Vec<NewTensor> {
        let Site { heads, width, .. } = self.site;
        let shape = if self.maps.shared { vec![width] } else { vec![heads, width] };
        let bias = |name| NewTensor { name, shape: shape.clone(), initial: Initial::Constant(0.0) };
        vec![self.maps.tensor("q_map"), self.maps.tensor("k_map"), bias("q_bias"), bias("k_bias")]
    }

    fn features(&self) -> usize {
        2 * self.site.width
    }

    fn eps(&self) -> f32 {
        1e-10 * (self.site.width as f32).sqrt()
    }

    fn knobs(&self) -> Vec<Knob> {
        let map =
            |tensor| Knob { tensor, per: Per::Head, values: &[0.25, 0.5, 0.75, 1.0, 1.5, 2.0], how: How::Multiply };
        // A shared map has no part of each head.
        if self.maps.shared { vec![] } else { vec![map("q_map"), map("k_map")] }
    }

    fn scale(&self) -> Scale {
        self.scale
    }

    fn map(&self, side: Side, x: &Var, bound: &Bound) -> Result<Var> {
        let (weight, bias) = if side == Side::Query { ("q_map", "q_bias") } else { ("k_map", "k_bias") };
        let y = add(&self.maps.run(x, bound, weight)?, bound.get(bias)?)?;
        softmax(&concat_last(&[&scale(&y, 2.0, 0.0)?, &scale(&y, -2.0, 0.0)?])?, None)
    }
}
