//! Hedgehog (arXiv 2402.04347) as flash-linear-attention defines it: one softmax over both signs.
//!
//! phi(x) = softmax([2y, -2y]), y = W x + b, so that all 2K features sum to 1; its weights cannot be exchanged with
//! LoLCATs' (`hedgehog`, two softmaxes). W starts as the identity, b at zero. o_t = phi(q_t) S_t / (phi(q_t).z_t + eps) on q
//! and k after RoPE, eps = 1e-10 sqrt K as its 1e-10 beside a q divided by sqrt K.

use super::feature_map::{self, FeatureMap, Side};
use super::maps::Maps;
use super::{
    CalibrationParam, CalibrationUpdate, Combine, Granularity, Initial, LayerDims, NewTensor, OutputScale, Params,
    Registration,
};
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
    inherits: "q and k through learned maps that start as the identity",
    options: &[Maps::SHARED, OutputScale::OPTION],
    combine: Combine::ALL,
    build: |options, layer_dims, window| {
        let shared = options.word("maps") == "shared";
        let kernel = HedgehogFla {
            layer_dims,
            maps: Maps { layer_dims, columns: layer_dims.width, shared, initial: Initial::Identity },
            scale: OutputScale::added(options.flag("output_scale")),
        };
        Ok(feature_map::mixer(kernel, layer_dims, window))
    },
};

struct HedgehogFla {
    layer_dims: LayerDims,
    maps: Maps,
    scale: OutputScale,
}

impl FeatureMap for HedgehogFla {
    fn tensors(&self) -> Vec<NewTensor> {
        let LayerDims { heads, width, .. } = self.layer_dims;
        let shape = if self.maps.shared { vec![width] } else { vec![heads, width] };
        let bias = |name| NewTensor { name, shape: shape.clone(), initial: Initial::Constant(0.0) };
        vec![self.maps.tensor("q_map"), self.maps.tensor("k_map"), bias("q_bias"), bias("k_bias")]
    }

    fn features(&self) -> usize {
        2 * self.layer_dims.width
    }

    fn eps(&self) -> f32 {
        1e-10 * (self.layer_dims.width as f32).sqrt()
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

    fn map(&self, side: Side, x: &Var, params: &Params) -> Result<Var> {
        let (weight, bias) = if side == Side::Query { ("q_map", "q_bias") } else { ("k_map", "k_bias") };
        let y = add(&self.maps.run(x, params, weight)?, params.get(bias)?)?;
        softmax(&concat_last(&[&scale(&y, 2.0, 0.0)?, &scale(&y, -2.0, 0.0)?])?, None)
    }
}
