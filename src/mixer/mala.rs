//! MALA, magnitude-aware linear attention (arXiv 2507.00698), causal: sums and counts of what was read take the place of
//! those over an image.
//!
//! a = elu(q) + 1, b = elu(k) + 1, s = K^-1/2, z_t = s a_t.(sum b) / t;
//! o_t = (1 + 1 / (z_t + 1e-6)) (s / t) a'_t^T sum b' v^T - z_t (sum v) / t, with a', b' after RoPE and z of those before it.
//! Each head's a has a learned scale, 1 as published unless calibration sets it.
//! The paper's convolution over the image and its output gate are not parts of the mixer.

use super::carry::Carry;
use super::recurrent::{self, Recurrent};
use super::scale::FeatureScale;
use super::{Bound, Combine, Heads, Knob, NewTensor, OptionKind, OptionSpec, Registration, Scale, Site};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::{add, mul, row_dot, scale};
use crate::ops::map::{Map, map};
use crate::ops::shape::repeat_heads;

const EPS: f32 = 1e-6;

pub const REGISTRATION: Registration = Registration {
    name: "mala",
    summary: "magnitude-aware linear attention, causal",
    formula: "o_t = (1 + 1/z_t) (s/t) a_t^T sum b v^T - z_t mean(v), z_t = s a_t.mean(b), a = elu(q) + 1, b = elu(k) + 1, s = K^-1/2",
    paper: "MALA (arXiv 2507.00698)",
    rope: true,
    seeding: "elu + 1 of q and k, whose product with v alone is turned by RoPE",
    options: &[
        OptionSpec {
            name: "rope",
            kind: OptionKind::Flag,
            default: "true",
            help: "turn the features of the product with values, not those of its scale, by the teacher's RoPE (the \
                   paper: true)",
        },
        Scale::OPTION,
    ],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, site, window| {
        let (rope, scale) = (options.flag("rope"), Scale::added(options.flag("output_scale")));
        Ok(recurrent::mixer(Mala { site, rope, scale }, site, window))
    },
};

struct Mala {
    site: Site,
    rope: bool,
    scale: Scale,
}

impl Recurrent for Mala {
    fn tensors(&self) -> Vec<NewTensor> {
        vec![FeatureScale::tensor(&self.site)]
    }

    fn mix(&self, heads: &Heads, bound: &Bound, carry: &mut Carry) -> Result<Var> {
        let root = 1.0 / (self.site.width as f32).sqrt();
        let share = carry.of_positions(|t| 1.0 / (t + 1) as f64)?;
        let a = FeatureScale::apply(&map(&heads.q, Map::EluPlusOne)?, bound)?;
        let b = map(&heads.k, Map::EluPlusOne)?;
        let keys = repeat_heads(&carry.sum("b_sum", &b)?, self.site.heads)?;
        let magnitude = mul(&scale(&row_dot(&a, &keys)?, root, 0.0)?, &share)?;
        let mean = repeat_heads(&mul(&carry.sum("v_sum", &heads.v)?, &share)?, self.site.heads)?;
        let (a, b) = if self.rope { (heads.turn(&a)?, heads.turn(&b)?) } else { (a, b) };
        let o = carry.gated("s", (&scale(&a, root, 0.0)?, &b, &heads.v), None, None)?;
        // Padding has no magnitude, and reads nothing.
        let factor = scale(&map(&scale(&magnitude, 1.0, EPS)?, Map::Reciprocal)?, 1.0, 1.0)?;
        let first = mul(&mul(&o, &factor)?, &share)?;
        add(&first, &scale(&mul(&mean, &magnitude)?, -1.0, 0.0)?)
    }

    fn knobs(&self) -> Vec<Knob> {
        vec![FeatureScale::knob()]
    }

    fn scale(&self) -> Scale {
        self.scale
    }

    fn state_size(&self) -> usize {
        let Site { kv_heads, width, .. } = self.site;
        kv_heads * width * (width + 2)
    }
}
