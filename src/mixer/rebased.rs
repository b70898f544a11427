//! ReBased (arXiv 2402.10644): a quadratic kernel with a learned affine map.
//!
//! x' = gamma LayerNorm(W x) + beta of f = 16 columns, phi(q').phi(k') = (q'.k')^2 / f;
//! o_t = phi(q'_t) S_t / (phi(q'_t).z_t + 1e-5), on q and k after RoPE. As in `based`, W_q, W_k [H, f, K] reduce a teacher's
//! heads. gamma and beta serve q and k, as in flash-linear-attention, but each head has its own.

use super::based::WIDTH;
use super::maps::Maps;
use super::recurrent::{self, Recurrent};
use super::stateful_ops::StatefulOps;
use super::{
    CalibrationParam, Combine, Incompatibility, Initial, LayerDims, LayerInputs, NewTensor, OptionKind, OptionSpec,
    OutputScale, Params, Registration,
};
use crate::Result;
use crate::ops::Var;
use crate::ops::norm::layer_norm;
use crate::ops::normalize::normalize;
use crate::ops::polynomial::quadratic;

/// Of the LayerNorm, and what is added to the normaliser.
const EPS: f64 = 1e-5;

pub const REGISTRATION: Registration = Registration {
    name: "rebased",
    summary: "quadratic kernel over normalised, reduced q and k",
    formula: "phi(q).phi(k) = (q'.k')^2 / f, x' = gamma LayerNorm(W x) + beta;  o_t = phi(q_t) S_t / phi(q_t).z_t",
    paper: "ReBased (arXiv 2402.10644)",
    rope: true,
    inherits: "q and k through learned maps that start as their first channels",
    options: &[
        OptionSpec { kind: OptionKind::Integer { min: 2, max: 64 }, ..WIDTH },
        Maps::SHARED,
        OutputScale::OPTION,
    ],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, layer_dims, window| {
        let columns = options.integer("feature_width", layer_dims.width.min(16));
        let maps = Maps { layer_dims, columns, shared: options.word("maps") == "shared", initial: Initial::Identity };
        Ok(recurrent::mixer(
            Rebased { maps, scale: OutputScale::added(options.flag("output_scale")) },
            layer_dims,
            window,
        ))
    },
};

struct Rebased {
    maps: Maps,
    scale: OutputScale,
}

impl Recurrent for Rebased {
    fn tensors(&self) -> Vec<NewTensor> {
        let shape = vec![self.maps.layer_dims.heads, self.maps.columns];
        let affine = |name, start| NewTensor { name, shape: shape.clone(), initial: Initial::Constant(start) };
        let maps = [self.maps.tensor("q_map"), self.maps.tensor("k_map")];
        maps.into_iter().chain([affine("gamma", 1.0), affine("beta", 0.0)]).collect()
    }

    fn mix(&self, heads: &LayerInputs, params: &Params, ops: &mut StatefulOps) -> Result<Var> {
        let features = |x: &Var, map: &str| -> Result<Var> {
            let x = self.maps.run(x, params, map)?;
            quadratic(&layer_norm(&x, 1, Some(params.get("gamma")?), Some(params.get("beta")?), EPS)?)
        };
        let (q, k) = heads.rotated()?;
        let (num, den) = ops.linear(("s", "z"), &features(q, "q_map")?, &features(k, "k_map")?, &heads.v)?;
        normalize(&num, &den, EPS as f32)
    }

    fn incompatibilities(&self, _: usize) -> Vec<Incompatibility> {
        Incompatibility::wide_identity(WIDTH.name, self.maps.columns, &self.maps.layer_dims, "").into_iter().collect()
    }

    fn calibration_params(&self) -> Vec<CalibrationParam> {
        vec![]
    }

    fn scale(&self) -> OutputScale {
        self.scale
    }

    fn state_size(&self) -> usize {
        let (LayerDims { heads, width, .. }, f) = (self.maps.layer_dims, self.maps.columns);
        heads * f * (f + 1) / 2 * (width + 1)
    }
}
