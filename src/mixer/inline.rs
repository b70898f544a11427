//! InLine attention, injective linear attention (arXiv 2412.06590), causal: means over what was read take the place of
//! those over an image.
//!
//! o_t = (s/t) q_t^T sum k v^T + (1 - s q_t.(sum k) / t) (sum v) / t, s = K^-1/2: weights are differences and sum to 1, without
//! feature maps. Each head's q has a learned scale, 1 as published unless calibration sets it. The paper's convolution over the image is no part of the mixer.

use super::carry::Carry;
use super::recurrent::{self, Recurrent};
use super::scale::FeatureScale;
use super::{Bound, Combine, Heads, Knob, NewTensor, OptionKind, OptionSpec, Registration, Scale, Site};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::{add, mul, row_dot, scale};
use crate::ops::shape::repeat_heads;

pub const REGISTRATION: Registration = Registration {
    name: "inline",
    summary: "injective linear attention, causal",
    formula: "o_t = (s/t) q_t^T sum k v^T + (1 - s q_t.mean(k)) mean(v), s = K^-1/2",
    paper: "InLine (arXiv 2412.06590)",
    rope: false,
    seeding: "q, k and v as they are",
    options: &[
        OptionSpec {
            name: "rope",
            kind: OptionKind::Flag,
            default: "false",
            help: "take q and k after the teacher's RoPE (the paper: without)",
        },
        Scale::OPTION,
    ],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, site, window| {
        let (rope, scale) = (options.flag("rope"), Scale::added(options.flag("output_scale")));
        Ok(recurrent::mixer(InLine { site, rope, scale }, site, window))
    },
};

struct InLine {
    site: Site,
    rope: bool,
    scale: Scale,
}

impl Recurrent for InLine {
    fn tensors(&self) -> Vec<NewTensor> {
        vec![FeatureScale::tensor(&self.site)]
    }

    fn mix(&self, heads: &Heads, bound: &Bound, carry: &mut Carry) -> Result<Var> {
        let share = carry.of_positions(|t| 1.0 / (t + 1) as f64)?;
        let (q, k) = if self.rope { heads.rotated()?.clone() } else { (heads.q.clone(), heads.k.clone()) };
        let q = FeatureScale::apply(&q, bound)?;
        let q = mul(&scale(&q, 1.0 / (self.site.width as f32).sqrt(), 0.0)?, &share)?;
        let keys = repeat_heads(&carry.sum("k_sum", &k)?, self.site.heads)?;
        let rest = scale(&row_dot(&q, &keys)?, -1.0, 1.0)?;
        let mean = repeat_heads(&mul(&carry.sum("v_sum", &heads.v)?, &share)?, self.site.heads)?;
        let o = carry.gated("s", (&q, &k, &heads.v), None, None)?;
        add(&o, &mul(&mean, &rest)?)
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
