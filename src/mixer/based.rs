//! Based's linear attention (arXiv 2402.18668): the exponential's Taylor polynomial of second order.
//!
//! q' = W_q q, k' = W_k k of f = 16 columns; phi(q').phi(k') = 1 + s + s^2 / 2, s = q'.k' / sqrt f;
//! o_t = phi(q'_t) S_t / (phi(q'_t).z_t + 1e-6), on q and k after RoPE. The paper's q and k projections are f wide; here a
//! head of a teacher keeps its width and W_q, W_k [H, f, K] reduce it, the first f elements at the start.

use super::maps::Maps;
use super::recurrent::{self, Recurrent};
use super::stateful_ops::StatefulOps;
use super::{
    CalibrationParam, CalibrationUpdate, Combine, Granularity, Incompatibility, Initial, LayerDims, LayerInputs,
    NewTensor, OptionKind, OptionSpec, OutputScale, Params, Registration,
};
use crate::Result;
use crate::ops::Var;
use crate::ops::normalize::normalize;
use crate::ops::polynomial::taylor;

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
    inherits: "q and k through learned maps that start as their first channels",
    options: &[WIDTH, Maps::SHARED, OutputScale::OPTION],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, layer_dims, window| {
        let columns = options.integer("feature_width", layer_dims.width.min(16));
        let maps = Maps { layer_dims, columns, shared: options.word("maps") == "shared", initial: Initial::Identity };
        Ok(recurrent::mixer(
            Based { maps, scale: OutputScale::added(options.flag("output_scale")) },
            layer_dims,
            window,
        ))
    },
};

struct Based {
    maps: Maps,
    scale: OutputScale,
}

impl Recurrent for Based {
    fn tensors(&self) -> Vec<NewTensor> {
        vec![self.maps.tensor("q_map"), self.maps.tensor("k_map")]
    }

    fn mix(&self, heads: &LayerInputs, params: &Params, ops: &mut StatefulOps) -> Result<Var> {
        let (q, k) = heads.rotated()?;
        let (a, b) = (taylor(&self.maps.run(q, params, "q_map")?)?, taylor(&self.maps.run(k, params, "k_map")?)?);
        let (num, den) = ops.linear(("s", "z"), &a, &b, &heads.v)?;
        normalize(&num, &den, EPS)
    }

    fn incompatibilities(&self, _: usize) -> Vec<Incompatibility> {
        Incompatibility::wide_identity(WIDTH.name, self.maps.columns, &self.maps.layer_dims, "").into_iter().collect()
    }

    fn calibration_params(&self) -> Vec<CalibrationParam> {
        let map = |tensor| CalibrationParam {
            tensor,
            granularity: Granularity::Head,
            values: &[0.25, 0.5, 0.75, 1.0, 1.5, 2.0],
            update: CalibrationUpdate::Multiply,
        };
        // A shared map has no part of each head.
        if self.maps.shared { vec![] } else { vec![map("q_map"), map("k_map")] }
    }

    fn scale(&self) -> OutputScale {
        self.scale
    }

    fn state_size(&self) -> usize {
        let (LayerDims { heads, width, .. }, f) = (self.maps.layer_dims, self.maps.columns);
        heads * (1 + f + f * (f + 1) / 2) * (width + 1)
    }
}
