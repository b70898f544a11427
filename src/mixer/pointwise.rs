//! Linear attention whose feature map is one function of every channel: nothing is learned.
//!
//! o_t = phi(q_t) S_t / (phi(q_t).z_t + eps) on q and k after RoPE, with
//!
//! ```text
//! elu-plus-one    phi(x) = elu(x) + 1       arXiv 2006.16236
//! squared-relu    phi(x) = max(x, 0)^2      as in Primer, arXiv 2109.08668
//! slab            phi(x) = max(x, 0)        SLAB's simplified linear attention, arXiv 2405.11582
//! ```
//!
//! The first two are flash-linear-attention's, which divides q by sqrt K and adds 1e-10: eps = 1e-10 sqrt K without that
//! factor. SLAB adds 1e-6; RoPE takes the place of its learned positions, and its convolution over the image and its
//! replacement of the layer's norm are not parts of the mixer. A query without positive parts that meets no key gives 0.

use super::feature_map::{self, FeatureMap, Side};
use super::{Combine, LayerDims, Mixer, Options, OutputScale, Params, Registration, Window};
use crate::Result;
use crate::ops::Var;
use crate::ops::shape::repeat_heads;
use crate::ops::unary::{Unary, unary};

pub const ELU_PLUS_ONE: Registration = Registration {
    name: "elu-plus-one",
    summary: "linear attention with elu + 1, nothing learned",
    formula: "phi(x) = elu(x) + 1;  o_t = phi(q_t) S_t / phi(q_t).z_t",
    paper: "Transformers are RNNs (arXiv 2006.16236)",
    rope: true,
    inherits: "elu + 1 of q and k",
    options: &[OutputScale::OPTION],
    combine: Combine::ALL,
    build: |options, layer_dims, window| build(Unary::EluPlusOne, small(layer_dims), options, layer_dims, window),
};

pub const SQUARED_RELU: Registration = Registration {
    name: "squared-relu",
    summary: "linear attention with squared positive parts, nothing learned",
    formula: "phi(x) = max(x, 0)^2;  o_t = phi(q_t) S_t / phi(q_t).z_t",
    paper: "Transformers are RNNs (arXiv 2006.16236), with the activation of Primer (arXiv 2109.08668)",
    rope: true,
    inherits: "squared positive parts of q and k",
    options: &[OutputScale::OPTION],
    combine: Combine::ALL,
    build: |options, layer_dims, window| build(Unary::ReluSquared, small(layer_dims), options, layer_dims, window),
};

pub const SLAB: Registration = Registration {
    name: "slab",
    summary: "linear attention with positive parts, nothing learned",
    formula: "phi(x) = max(x, 0);  o_t = phi(q_t) S_t / phi(q_t).z_t",
    paper: "SLAB (arXiv 2405.11582)",
    rope: true,
    inherits: "positive parts of q and k",
    options: &[OutputScale::OPTION],
    combine: Combine::ALL,
    build: |options, layer_dims, window| build(Unary::Relu, 1e-6, options, layer_dims, window),
};

/// flash-linear-attention's addition to the normaliser.
fn small(layer_dims: LayerDims) -> f32 {
    1e-10 * (layer_dims.width as f32).sqrt()
}

fn build(
    phi: Unary,
    eps: f32,
    options: &Options,
    layer_dims: LayerDims,
    window: Option<Window>,
) -> Result<Box<dyn Mixer>> {
    let scale = OutputScale::added(options.flag("output_scale"));
    Ok(feature_map::mixer(Pointwise { phi, eps, layer_dims, scale }, layer_dims, window))
}

struct Pointwise {
    phi: Unary,
    eps: f32,
    layer_dims: LayerDims,
    scale: OutputScale,
}

impl FeatureMap for Pointwise {
    fn features(&self) -> usize {
        self.layer_dims.width
    }

    fn eps(&self) -> f32 {
        self.eps
    }

    fn scale(&self) -> OutputScale {
        self.scale
    }

    fn map(&self, _: Side, x: &Var, _: &Params) -> Result<Var> {
        repeat_heads(&unary(x, self.phi)?, self.layer_dims.heads)
    }
}
