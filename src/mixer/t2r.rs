//! T2R (arXiv 2103.13076): phi(x) = relu(x W + b), in LoLCATs' form (arXiv 2410.10254; a map per head, a bias per head if
//! any) or flash-linear-attention's (one map for all heads, no bias).
//!
//! o_t = phi(q_t) S_t / (phi(q_t).z_t + eps) on q and k after RoPE, eps = 1e-10 sqrt K as flash-linear-attention's 1e-10
//! beside a q divided by sqrt K. A query that meets no key gives 0.

use super::feature_map::{self, FeatureMap, Side};
use super::maps::Maps;
use super::{Combine, Incompatibility, Initial, NewTensor, OptionKind, OptionSpec, OutputScale, Params, Registration};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::add;
use crate::ops::unary::{Unary, unary};

pub const REGISTRATION: Registration = Registration {
    name: "t2r",
    summary: "learned feature maps with relu",
    formula: "phi(x) = relu(x W + b);  o_t = phi(q_t) S_t / phi(q_t).z_t",
    paper: "T2R (arXiv 2103.13076)",
    rope: true,
    inherits: "q and k through learned maps that start as the identity",
    options: &[
        Maps::SHARED,
        OptionSpec {
            name: "feature_width",
            kind: OptionKind::Integer { min: 1, max: 4096 },
            default: "null",
            help: "features of a head (default: the head width, as flash-linear-attention)",
        },
        OptionSpec {
            name: "bias",
            kind: OptionKind::Flag,
            default: "false",
            help: "add one learned number per head before the relu (LoLCATs: off)",
        },
        OptionSpec {
            name: "init",
            kind: OptionKind::Choice(&["identity", "kaiming"]),
            default: "\"identity\"",
            help: "how maps start: a (rectangular) identity, as near to the teacher as relu lets it be, or \
                   Kaiming-uniform (LoLCATs' and flash-linear-attention's default)",
        },
        OutputScale::OPTION,
    ],
    combine: Combine::ALL,
    build: |options, layer_dims, window| {
        let initial = match options.word("init") {
            "identity" => Initial::Identity,
            _ => Initial::Kaiming { fan_in: layer_dims.width },
        };
        let columns = options.integer("feature_width", layer_dims.width);
        let kernel = T2r {
            maps: Maps { layer_dims, columns, shared: options.word("maps") == "shared", initial },
            bias: options.flag("bias"),
            scale: OutputScale::added(options.flag("output_scale")),
        };
        Ok(feature_map::mixer(kernel, layer_dims, window))
    },
};

struct T2r {
    maps: Maps,
    bias: bool,
    scale: OutputScale,
}

impl FeatureMap for T2r {
    fn tensors(&self) -> Vec<NewTensor> {
        let mut all = vec![self.maps.tensor("q_map"), self.maps.tensor("k_map")];
        if self.bias {
            let shape = vec![self.maps.layer_dims.heads, 1];
            let bias = |name| NewTensor { name, shape: shape.clone(), initial: Initial::Constant(0.0) };
            all.extend([bias("q_bias"), bias("k_bias")]);
        }
        all
    }

    fn incompatibilities(&self) -> Vec<Incompatibility> {
        let Maps { layer_dims, columns, initial, .. } = &self.maps;
        let identity =
            Incompatibility::wide_identity("feature_width", *columns, layer_dims, " or `init = \"kaiming\"`");
        identity.filter(|_| *initial == Initial::Identity).into_iter().collect()
    }

    fn features(&self) -> usize {
        self.maps.columns
    }

    fn eps(&self) -> f32 {
        1e-10 * (self.maps.layer_dims.width as f32).sqrt()
    }

    fn scale(&self) -> OutputScale {
        self.scale
    }

    fn map(&self, side: Side, x: &Var, params: &Params) -> Result<Var> {
        let (weight, bias) = if side == Side::Query { ("q_map", "q_bias") } else { ("k_map", "k_bias") };
        let mut y = self.maps.run(x, params, weight)?;
        if self.bias {
            y = add(&y, params.get(bias)?)?;
        }
        unary(&y, Unary::Relu)
    }
}
