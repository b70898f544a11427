//! Linear maps of q and k before a feature map: one per head, or one that all heads share.

use super::{Initial, LayerDims, NewTensor, OptionKind, OptionSpec, Params};
use crate::Result;
use crate::ops::Var;
use crate::ops::linear::linear;
use crate::ops::per_head_linear::per_head_linear;
use crate::ops::shape::repeat_heads;

/// Maps from K to f columns, rows of the weight being columns of the result.
pub struct Maps {
    pub layer_dims: LayerDims,
    /// f
    pub columns: usize,
    pub shared: bool,
    pub initial: Initial,
}

impl Maps {
    /// The option that says whether heads share a map.
    pub const SHARED: OptionSpec = OptionSpec {
        name: "maps",
        kind: OptionKind::Choice(&["per-head", "shared"]),
        default: "\"per-head\"",
        help: "one map for each query head (LoLCATs), or one for all (flash-linear-attention)",
    };

    /// The weight `name`, [H, f, K] or [f, K].
    pub fn tensor(&self, name: &'static str) -> NewTensor {
        let mut shape = vec![self.columns, self.layer_dims.width];
        if !self.shared {
            shape.insert(0, self.layer_dims.heads);
        }
        NewTensor { name, shape, initial: self.initial }
    }

    /// `x` [B, T, H or G, K] by the weight `name` -> [B, T, H, f].
    pub fn run(&self, x: &Var, params: &Params, name: &str) -> Result<Var> {
        match self.shared {
            true => repeat_heads(&linear(x, params.get(name)?)?, self.layer_dims.heads),
            false => per_head_linear(x, params.get(name)?),
        }
    }
}
