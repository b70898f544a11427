//! ReBased (arXiv 2402.10644): a quadratic kernel with a learned affine map.
//!
//! x' = gamma LayerNorm(W x) + beta of f = 16 columns, phi(q').phi(k') = (q'.k')^2 / f;
//! o_t = phi(q'_t) S_t / (phi(q'_t).z_t + 1e-5), on q and k after RoPE. As in `based`, W_q, W_k [H, f, K] reduce a teacher's
//! heads. gamma and beta serve q and k, as in flash-linear-attention, but each head has its own.

use super::based::WIDTH;
use super::carry::Carry;
use super::maps::Maps;
use super::recurrent::{self, Recurrent};
use super::{
    Bound, Combine, Heads, Initial, Knob, Misfit, NewTensor, OptionKind, OptionSpec, Registration, Scale, Site,
};
use crate::Result;
use crate::ops::Var;
use crate::ops::norm::layer_norm;
use crate::ops::polynomial::quadratic;
use crate::ops::quotient::quotient;

/// Of the LayerNorm, and what is added to the normaliser.
const EPS: f64 = 1e-5;

pub const REGISTRATION: Registration = Registration {
    name: "rebased",
    summary: "quadratic kernel over normalised, reduced q and k",
    formula: "phi(q).phi(k) = (q'.k')^2 / f, x' = gamma LayerNorm(W x) + beta;  o_t = phi(q_t) S_t / phi(q_t).z_t",
    paper: "ReBased (arXiv 2402.10644)",
    rope: true,
    seeding: "q and k through learned maps that start as their first channels",
    options: &[OptionSpec { kind: OptionKind::Integer { min: 2, max: 64 }, ..WIDTH }, Maps::SHARED, Scale::OPTION],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, site, window| {
        let columns = options.integer("feature_width", site.width.min(16));
        let maps = Maps { site, columns, shared: options.word("maps") == "shared", initial: Initial::Identity };
        Ok(recurrent::mixer(Rebased { maps, scale: Scale::added(options.flag("output_scale")) }, site, window))
    },
};

struct Rebased {
    maps: Maps,
    scale: Scale,
}

impl Recurrent for Rebased {
    fn tensors(&self) -> Vec<NewTensor> {
        let shape = vec![self.maps.site.heads, self.maps.columns];
        let affine = |name, start| NewTensor { name, shape: shape.clone(), initial: Initial::Constant(start) };
        let maps = [self.maps.tensor("q_map"), self.maps.tensor("k_map")];
        maps.into_iter().chain([affine("gamma", 1.0), affine("beta", 0.0)]).collect()
    }

    fn mix(&self, heads: &Heads, bound: &Bound, carry: &mut Carry) -> Result<Var> {
        let features = |x: &Var, map: &str| -> Result<Var> {
            let x = self.maps.run(x, bound, map)?;
            quadratic(&layer_norm(&x, 1, Some(bound.get("gamma")?), Some(bound.get("beta")?), EPS)?)
        };
        let (q, k) = heads.rotated()?;
        let (num, den) = carry.linear(("s", "z"), &features(q, "q_map")?, &features(k, "k_map")?, &heads.v)?;
        quotient(&num, &den, EPS as f32)
    }

    fn misfits(&self, _: usize) -> Vec<Misfit> {
        Misfit::wide_identity(WIDTH.name, self.maps.columns, &self.maps.site, "").into_iter().collect()
    }

    fn knobs(&self) -> Vec<Knob> {
        vec![]
    }

    fn scale(&self) -> Scale {
        self.scale
    }

    fn state_size(&self) -> usize {
        let (Site { heads, width, .. }, f) = (self.maps.site, self.maps.columns);
        heads * f * (f + 1) / 2 * (width + 1)
    }
}
