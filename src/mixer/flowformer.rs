//! Flowformer (arXiv 2202.06258), causal: attention as a flow network, with competition of sources and allocation to sinks.
//!
//! a = sigmoid(q), b = sigmoid(k), e = 1e-6 added to every element, sums over s <= t, t from 1:
//!
//! ```text
//! I_t = t / ((a_t + e).(sum b_s + e))            O_t = t / ((b_t + e).(sum a_s + e))
//! C_t = (a_t + e).(sum b_s O_s + e) / t          D_t = clamp((b_t + e).(sum a_s I_s + e) / t, -1, 1)
//! o_t = sigmoid(C_t) (I_t / t) a_t^T sum b_s (p_s v_s)^T,  p_s = s e^D_s / sum e^D
//! ```
//!
//! No RoPE. Flows pair a query head with its keys, so keys and values are repeated for every query head.

use super::carry::Carry;
use super::recurrent::{self, Recurrent};
use super::{Bound, Combine, Heads, Knob, NewTensor, Registration, Scale, Site};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::{mul, row_dot, scale};
use crate::ops::map::{Map, map};
use crate::ops::shape::repeat_heads;

const EPS: f32 = 1e-6;

pub const REGISTRATION: Registration = Registration {
    name: "flowformer",
    summary: "linear attention as a flow network, causal",
    formula: "o_t = sigmoid(C_t) (I_t / t) a_t^T sum_s b_s (p_s v_s)^T, a = sigmoid(q), b = sigmoid(k), flows I, C, p from prefix sums",
    paper: "Flowformer (arXiv 2202.06258)",
    rope: false,
    seeding: "sigmoids of q and k",
    options: &[Scale::OPTION],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, site, window| {
        let mixer = Flowformer { site, scale: Scale::added(options.flag("output_scale")) };
        Ok(recurrent::mixer(mixer, site, window))
    },
};

struct Flowformer {
    site: Site,
    scale: Scale,
}

impl Recurrent for Flowformer {
    fn tensors(&self) -> Vec<NewTensor> {
        vec![]
    }

    fn mix(&self, heads: &Heads, _: &Bound, carry: &mut Carry) -> Result<Var> {
        let count = carry.of_positions(|t| (t + 1) as f64)?;
        let share = carry.of_positions(|t| 1.0 / (t + 1) as f64)?;
        let a = map(&heads.q, Map::Sigmoid)?;
        let b = repeat_heads(&map(&heads.k, Map::Sigmoid)?, self.site.heads)?;
        let v = repeat_heads(&heads.v, self.site.heads)?;
        // (x + e).(the sum of y so far + e)
        let flow = |carry: &mut Carry, name, x: &Var, y: &Var| -> Result<Var> {
            row_dot(&scale(x, 1.0, EPS)?, &scale(&carry.sum(name, y)?, 1.0, EPS)?)
        };
        let incoming = mul(&map(&flow(carry, "b_sum", &a, &b)?, Map::Reciprocal)?, &count)?;
        let outgoing = mul(&map(&flow(carry, "a_sum", &b, &a)?, Map::Reciprocal)?, &count)?;
        let conserved_in = mul(&flow(carry, "b_flow", &a, &mul(&b, &outgoing)?)?, &share)?;
        let conserved_out = mul(&flow(carry, "a_flow", &b, &mul(&a, &incoming)?)?, &share)?;
        let strength = map(&map(&conserved_out, Map::Clamp { min: -1.0, max: 1.0 })?, Map::Exp)?;
        // At least 1/e from the first token on; padding has a sum of zero.
        let total = map(&carry.sum("strength", &strength)?, Map::Clamp { min: 0.1, max: f32::INFINITY })?;
        let competition = mul(&mul(&strength, &map(&total, Map::Reciprocal)?)?, &count)?;
        let o = carry.gated("s", (&a, &b, &mul(&v, &competition)?), None, None)?;
        mul(&o, &mul(&mul(&map(&conserved_in, Map::Sigmoid)?, &incoming)?, &share)?)
    }

    fn knobs(&self) -> Vec<Knob> {
        vec![]
    }

    fn scale(&self) -> Scale {
        self.scale
    }

    fn state_size(&self) -> usize {
        let Site { heads, width, .. } = self.site;
        heads * (width * width + 4 * width + 1)
    }
}
