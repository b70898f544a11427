//! Mamba-2 (SSD, arXiv 2405.21060) seeded from attention as in MambaInLlama (arXiv 2408.15237): C <- q, B <- k, x <- v.
//!
//! After short convolutions with bias and SiLU over q, k and v, per head dt = softplus(W x + b), g = -e^A dt;
//!
//! ```text
//! S_t = e^g_t S_{t-1} + k_t (dt_t v_t)^T      o_t = q_t^T S_t + d v_t      y_t = norm(o_t * silu(W_z x_t))
//! ```
//!
//! RMSNorm over each head after the gate, since a group of MambaInLlama is a head. q is not divided by sqrt K. k and v are
//! convolved in their own heads and shared by query heads afterwards. A and dt start at one decay, 0.99 (dt = 0.01, the middle of Mamba's range), where Mamba draws
//! them at random: calibration sets them head by head. No RoPE.

use super::carry::Carry;
use super::delta_parts as delta;
use super::parts::{Convolutions, gate, gate_tensors};
use super::recurrent::{self, Recurrent};
use super::{Bound, Combine, Heads, How, Initial, Knob, NewTensor, Per, Registration, Scale, Site};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::{add, mul};
use crate::ops::map::{Map, map};
use crate::ops::norm::rms_norm_over;
use crate::ops::shape::repeat_heads;

/// silu(1.2785) = 1.
const OPEN: f32 = 1.278_464_5;
const EPS: f64 = 1e-5;
const NORM: &str = "norm_weight";

pub const REGISTRATION: Registration = Registration {
    name: "mamba2",
    summary: "state-space duality: a decay tied to the step size (Mamba-2)",
    formula: "S_t = e^(-e^A dt_t) S_{t-1} + k_t (dt_t v_t)^T;  o_t = norm((q_t^T S_t + d v_t) silu(W_z x_t));  dt = softplus(W x + b)",
    paper: "Mamba-2 (arXiv 2405.21060), seeded as in MambaInLlama (arXiv 2408.15237)",
    rope: false,
    seeding: "C <- q, B <- k, x <- v, through short convolutions",
    options: &[Convolutions::option("true")],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, site, window| {
        let convolutions = Convolutions::new(site, options.flag("convolution")).biased();
        Ok(recurrent::mixer(Mamba2 { site, convolutions }, site, window))
    },
};

struct Mamba2 {
    site: Site,
    convolutions: Convolutions,
}

impl Recurrent for Mamba2 {
    fn tensors(&self) -> Vec<NewTensor> {
        let Site { heads, width, .. } = self.site;
        let constant = |name, shape, value| NewTensor { name, shape, initial: Initial::Constant(value) };
        let mut all = vec![
            delta::log_rate(&self.site),
            constant("skip", vec![heads, 1], 1.0),
            constant(NORM, vec![heads, width], 1.0),
        ];
        all.extend(gate_tensors("dt_weight", "dt_bias", &self.site, heads, delta::DT_BIAS));
        all.extend(gate_tensors("output_gate_weight", "output_gate_bias", &self.site, heads * width, OPEN));
        all.extend(self.convolutions.tensors());
        all
    }

    fn mix(&self, heads: &Heads, bound: &Bound, carry: &mut Carry) -> Result<Var> {
        let h = self.site.heads;
        let (q, k, v) = self.convolutions.run(heads, bound, carry)?;
        let (k, v) = (repeat_heads(&k, h)?, repeat_heads(&v, h)?);
        let dt = delta::step_size(heads, bound, "dt_weight", h)?;
        let decay = delta::decay(&dt, bound)?;
        let o = carry.gated("s", (&q, &k, &mul(&v, &dt)?), Some(&decay), None)?;
        let o = add(&o, &mul(&v, bound.get("skip")?)?)?;
        let z = map(&gate(heads, bound, "output_gate_weight", "output_gate_bias", h)?, Map::Silu)?;
        // Values at padding are zero only after a convolution.
        carry.without_padding(&rms_norm_over(&mul(&o, &z)?, 1, Some(bound.get(NORM)?), EPS)?)
    }

    fn knobs(&self) -> Vec<Knob> {
        // Decays of 0.5 to 0.9998 a token; the values' own way past the state.
        let skip = Knob { tensor: "skip", per: Per::Head, values: &[0.0, 0.1, 1.0], how: How::Set };
        vec![delta::DECAY_KNOB, skip]
    }

    fn scale(&self) -> Scale {
        Scale::Own(NORM)
    }

    fn state_size(&self) -> usize {
        self.site.heads * self.site.width * self.site.width + self.convolutions.state_size()
    }
}
