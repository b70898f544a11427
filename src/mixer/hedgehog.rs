//! Hedgehog (arXiv 2402.04347) as LoLCATs defines it (arXiv 2410.10254; HazyResearch/lolcats 375df84).
//!
//! phi(x) = [softmax(x W), softmax(-x W)] with one map per query head for q and one for k, after RoPE. Without a window
//! o_i = phi(q_i) S_i / (phi(q_i).z_i + 1e-12). With a window of w keys both branches share one normaliser:
//!
//! ```text
//! o_i = (gamma sum_{i-w<j<=i} e^(s_ij - m_i) v_j + phi(q_i) S_{i-w}) / (the same with v replaced by 1)
//! ```
//!
//! s_ij = q_i.k_j / sqrt K, m_i its maximum in the window, gamma = sigmoid(factor) learned per head, 0.1 at the start.
//! The linear term is not multiplied by e^-m_i, as in the published code.

use super::feature_map::{self, FeatureMap, Side};
use super::{
    CalibrationParam, CalibrationUpdate, Combine, Granularity, Incompatibility, Initial, LayerDims, NewTensor,
    OutputScale, Params,
};
use super::{OptionKind, OptionSpec, Registration};
use crate::Result;
use crate::ops::{Var, paired_softmax};

/// LoLCATs' addition to the normaliser without a window.
const EPS: f32 = 1e-12;

pub const REGISTRATION: Registration = Registration {
    name: "hedgehog",
    summary: "learned softmax feature maps, one per head (LoLCATs)",
    formula: "phi(x) = [softmax(x W), softmax(-x W)];  o_t = phi(q_t) S_t / phi(q_t).z_t",
    paper: "Hedgehog (arXiv 2402.04347), as in LoLCATs (arXiv 2410.10254)",
    rope: true,
    inherits: "q and k through learned maps that start as the identity",
    options: &[
        OptionSpec {
            name: "feature_width",
            kind: OptionKind::Integer { min: 2, max: 1024 },
            default: "null",
            help: "columns of each head's map; the head has twice as many features (default: the head width, as \
                   LoLCATs' 8B configs); of one alone the softmax is always 1",
        },
        OptionSpec {
            name: "init",
            kind: OptionKind::Choice(&["identity", "kaiming"]),
            default: "\"identity\"",
            help: "how maps start: a (rectangular) identity, which LoLCATs' published commands select, or \
                   Kaiming-uniform",
        },
        OptionSpec {
            help: "a learned scale per head on the output, which calibration sets; false: the published form, which has \
                   none; never beside a window under a joint normaliser (LoLCATs)",
            ..OutputScale::OPTION
        },
    ],
    combine: Combine::ALL,
    build: |options, layer_dims, window| {
        let kernel = Hedgehog {
            layer_dims,
            half: options.integer("feature_width", layer_dims.width),
            identity: options.word("init") == "identity",
            scale: OutputScale::added(options.flag("output_scale")),
        };
        Ok(feature_map::mixer(kernel, layer_dims, window))
    },
};

struct Hedgehog {
    layer_dims: LayerDims,
    /// Columns of a map; a head has twice as many features.
    half: usize,
    identity: bool,
    scale: OutputScale,
}

impl FeatureMap for Hedgehog {
    fn tensors(&self) -> Vec<NewTensor> {
        let LayerDims { heads, width, .. } = self.layer_dims;
        let initial = if self.identity { Initial::Identity } else { Initial::Kaiming { fan_in: width } };
        let map = |name| NewTensor { name, shape: vec![heads, width, self.half], initial };
        vec![map("q_map"), map("k_map")]
    }

    fn incompatibilities(&self) -> Vec<Incompatibility> {
        let identity =
            Incompatibility::wide_identity("feature_width", self.half, &self.layer_dims, " or `init = \"kaiming\"`");
        identity.filter(|_| self.identity).into_iter().collect()
    }

    fn features(&self) -> usize {
        2 * self.half
    }

    fn calibration_params(&self) -> Vec<CalibrationParam> {
        let map = |tensor| CalibrationParam {
            tensor,
            granularity: Granularity::Head,
            values: &[0.5, 1.0, 1.5, 2.0, 3.0, 4.0],
            update: CalibrationUpdate::Multiply,
        };
        vec![map("q_map"), map("k_map")]
    }

    fn scale(&self) -> OutputScale {
        self.scale
    }

    fn unit_features(&self) -> bool {
        true
    }

    fn eps(&self) -> f32 {
        EPS
    }

    fn map(&self, side: Side, x: &Var, params: &Params) -> Result<Var> {
        let map = if side == Side::Query { "q_map" } else { "k_map" };
        paired_softmax::two_softmaxes(x, params.get(map)?)
    }
}
