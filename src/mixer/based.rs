//! Based's linear attention (arXiv 2402.18668): the exponential's Taylor polynomial of second order.
//!
//! q' = W_q q, k' = W_k k of f = 16 columns; phi(q').phi(k') = 1 + s + s^2 / 2, s = q'.k' / sqrt f;
//! o_t = phi(q'_t) S_t / (phi(q'_t).z_t + 1e-6), on q and k after RoPE. The paper's q and k projections are f wide; here a
//! head of a teacher keeps its width and W_q, W_k [H, f, K] reduce it, the first f elements at the start.

use super::carry::Carry;
use super::maps::Maps;
use super::recurrent::{self, Recurrent};
use super::{
    Bound, Combine, Heads, How, Initial, Knob, Misfit, NewTensor, OptionKind, OptionSpec, Per, Registration, Scale,
    Site,
};
use crate::Result;
use crate::ops::Var;
use crate::ops::polynomial::taylor;
use crate::ops::quotient::quotient;

/// What is added to the normaliser.
const EPS: f32 = 1e-6;

/// f, shared with ReBased.
pub(super) const WIDTH: OptionSpec = OptionSpec {
    name: "feature_width",
    kind: OptionKind::Integer { min: 1, max: 64 },
    default: "null",
    help: "columns that q and k are reduced to, about half the square of which are features (default: 16, as the paper, \
           or the head width if that is less)",
};

pub const REGISTRATION: Registration = Registration {
    name: "based",
    summary: "Taylor polynomial of the exponential over reduced q and k",
    formula: "phi(q).phi(k) = 1 + s + s^2 / 2, s = (W_q q).(W_k k) / sqrt f;  o_t = phi(q_t) S_t / phi(q_t).z_t",
    paper: "Based (arXiv 2402.18668)",
    rope: true,
    seeding: "q and k through learned maps that start as their first channels",
    options: &[WIDTH, Maps::SHARED, Scale::OPTION],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, site, window| {
        let columns = options.integer("feature_width", site.width.min(16));
        let maps = Maps { site, columns, shared: options.word("maps") == "shared", initial: Initial::Identity };
        Ok(recurrent::mixer(Based { maps, scale: Scale::added(options.flag("output_scale")) }, site, window))
    },
};

struct Based {
    maps: Maps,
    scale: Scale,
}

impl Recurrent for Based {
    fn tensors(&self) -> Vec<NewTensor> {
        vec![self.maps.tensor("q_map"), self.maps.tensor("k_map")]
    }

    fn mix(&self, heads: &Heads, bound: &Bound, carry: &mut Carry) -> Result<Var> {
        let (q, k) = heads.rotated()?;
        let (a, b) = (taylor(&self.maps.run(q, bound, "q_map")?)?, taylor(&self.maps.run(k, bound, "k_map")?)?);
        let (num, den) = carry.linear(("s", "z"), &a, &b, &heads.v)?;
        quotient(&num, &den, EPS)
    }

    fn misfits(&self, _: usize) -> Vec<Misfit> {
        Misfit::wide_identity(WIDTH.name, self.maps.columns, &self.maps.site, "").into_iter().collect()
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

    fn state_size(&self) -> usize {
        let (Site { heads, width, .. }, f) = (self.maps.site, self.maps.columns);
        heads * (1 + f + f * (f + 1) / 2) * (width + 1)
    }
}
