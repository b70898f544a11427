//! Mechanisms that replace softmax attention: one file each, one line in [`MIXERS`].
//!
//! A mixer sees a layer's heads and nothing else: no architecture, no device. Softmax attention is one more mixer, the
//! one that every layer of a teacher uses.

mod based;
mod cosformer;
mod delta_parts;
mod delta_product;
mod deltanet;
mod feature_map;
mod flowformer;
mod gla;
mod gsa;
mod heads;
mod hedgehog;
mod hedgehog_fla;
mod hgrn2;
mod incompatibility;
pub mod initial;
mod inline;
mod kda;
mod liger;
mod lightning;
mod mala;
mod mamba2;
mod maps;
mod mlstm;
mod nalaformer;
pub mod options;
mod parts;
mod performer;
mod pointwise;
mod rebased;
mod recurrent;
mod retention;
mod rwkv6;
mod rwkv7;
mod scale;
mod simple_gla;
mod softmax;
mod state;
mod stateful_ops;
mod t2r;
mod titans;
mod transnormer;
mod window;

use crate::checkpoint::shown;
use crate::ops::Var;
use crate::{Error, Result};
use candle_core::Tensor;

pub use heads::{LayerInputs, Params};
pub use incompatibility::Incompatibility;
pub use initial::{Initial, NewTensor};
pub use options::{OptionKind, OptionSpec, Options};
pub use scale::{CalibrationParam, CalibrationUpdate, Granularity, OutputScale};
pub use softmax::Softmax;
pub use state::State;
pub use window::{Combine, Window};

/// What is known of a mixer before any model is loaded.
pub struct Registration {
    pub name: &'static str,
    /// One line for lists.
    pub summary: &'static str,
    /// The mathematics in one line.
    pub formula: &'static str,
    /// Paper or code that defines it.
    pub paper: &'static str,
    /// Whether it takes q and k after the teacher's RoPE, with its options at their defaults.
    pub rope: bool,
    /// What becomes of the teacher's q, k and v, in a few words; v passes as it is unless they say otherwise.
    pub inherits: &'static str,
    pub options: &'static [OptionSpec],
    /// How a window beside it can become one output with it; the first is the default.
    pub combine: &'static [Combine],
    /// Builds the mixer of one layer.
    pub build: Build,
}

/// Makes a mixer from its options, its place and the window beside it.
pub type Build = fn(&Options, LayerDims, Option<Window>) -> Result<Box<dyn Mixer>>;

/// All mixers.
pub static MIXERS: &[Registration] = &[
    hedgehog::REGISTRATION,
    hedgehog_fla::REGISTRATION,
    t2r::REGISTRATION,
    pointwise::ELU_PLUS_ONE,
    pointwise::SQUARED_RELU,
    pointwise::SLAB,
    performer::REGISTRATION,
    cosformer::REGISTRATION,
    based::REGISTRATION,
    rebased::REGISTRATION,
    flowformer::REGISTRATION,
    mala::REGISTRATION,
    inline::REGISTRATION,
    nalaformer::REGISTRATION,
    transnormer::REGISTRATION,
    gla::REGISTRATION,
    deltanet::GATED,
    simple_gla::REGISTRATION,
    retention::REGISTRATION,
    lightning::REGISTRATION,
    liger::GLA,
    liger::HGRN2,
    liger::GSA,
    hgrn2::REGISTRATION,
    gsa::REGISTRATION,
    mamba2::REGISTRATION,
    mlstm::REGISTRATION,
    rwkv6::REGISTRATION,
    deltanet::DELTANET,
    kda::REGISTRATION,
    delta_product::REGISTRATION,
    titans::REGISTRATION,
    rwkv7::REGISTRATION,
];

/// Builds the mixer `name` for a layer that it can serve.
pub fn build(
    name: &str,
    options: &serde_json::Map<String, serde_json::Value>,
    layer_dims: LayerDims,
    window: Option<Window>,
) -> Result<Box<dyn Mixer>> {
    let registration = known(name)?;
    if let Some(window) = window.filter(|w| !registration.combine.contains(&w.combine)) {
        let names: Vec<_> = registration.combine.iter().map(|c| format!("`{}`", c.name())).collect();
        return Err(Error::usage(
            format!("`{name}` cannot be combined with a window as `{}`", window.combine.name()),
            format!("set `window.combine` to {}", names.join(" or ")),
        ));
    }
    let mixer = (registration.build)(&Options::new(registration.options, options)?, layer_dims, window)?;
    match mixer.incompatibilities(0).into_iter().next() {
        Some(incompatibility) => Err(Error::usage(format!("`{name}`: {}", incompatibility.what), incompatibility.hint)),
        None => Ok(mixer),
    }
}

/// The mixer of that name, or an error that says which there are.
pub fn known(name: &str) -> Result<&'static Registration> {
    find(name).ok_or_else(|| {
        let names = MIXERS.iter().map(|m| m.name);
        Error::usage(format!("unknown mixer `{}`", shown(name)), options::suggestion(name, names))
    })
}

/// The mixer of that name.
pub fn find(name: &str) -> Option<&'static Registration> {
    MIXERS.iter().find(|m| m.name == name)
}

/// Where a mixer stands: sizes and depth of its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerDims {
    /// H
    pub heads: usize,
    /// G
    pub kv_heads: usize,
    /// K, and V of the teachers that we know.
    pub width: usize,
    /// D
    pub model_width: usize,
    /// Counted from 0, of `layers`.
    pub layer: usize,
    pub layers: usize,
}

/// What to do about a mixer without attention weights.
pub const NO_WEIGHTS: &str = "set `loss.weights = 0` in the attention-transfer stage";

/// The branches of a mixer that take part: evaluation shows what each of them does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Branches {
    Both,
    /// The window as it was trained: a scale of the joint output stays.
    WindowOnly,
    LinearOnly,
    /// Plain softmax over the window's keys, without any tensor of the mixer.
    UntrainedWindow,
}

impl Branches {
    /// True if the window takes part.
    pub fn window(self) -> bool {
        self != Branches::LinearOnly
    }

    /// True if the linear branch takes part.
    pub fn linear(self) -> bool {
        matches!(self, Branches::Both | Branches::LinearOnly)
    }
}

/// A sequence mixer of one layer.
pub trait Mixer: Send + Sync {
    /// Tensors that it adds to the model.
    fn tensors(&self) -> Vec<NewTensor> {
        vec![]
    }

    /// Output [B, T, H, V] of T tokens in chunked form. With a state it continues from it and leaves the state after
    /// the last token; without one it starts from nothing.
    fn mix(&self, heads: &LayerInputs, params: &Params, state: Option<&mut State>, branches: Branches) -> Result<Var>;

    /// One token, T = 1, recurrent form.
    fn step(&self, heads: &LayerInputs, params: &Params, state: &mut State) -> Result<Tensor>;

    /// Output, and the cross-entropy of its attention weights against softmax attention over the same heads, where
    /// the mixer has weights and `weights` asks for it.
    fn transfer(&self, heads: &LayerInputs, params: &Params, weights: bool) -> Result<(Var, Option<Var>)> {
        if let Some(what) = self.without_weights().filter(|_| weights) {
            return Err(Error::usage(what, NO_WEIGHTS));
        }
        Ok((self.mix(heads, params, None, Branches::Both)?, None))
    }

    /// Why its site, or texts of so many tokens, are not for it; with 0 its site alone.
    fn incompatibilities(&self, _tokens: usize) -> Vec<Incompatibility> {
        vec![]
    }

    /// Why it has no attention weights that could be compared with softmax attention's; none: it has.
    fn without_weights(&self) -> Option<&'static str> {
        Some("this mixer has no attention weights to compare with the teacher's")
    }

    /// What calibration may try, in this order.
    fn calibration_params(&self) -> Vec<CalibrationParam> {
        vec![]
    }

    /// What the linear branch is multiplied by, or the output under a joint normaliser.
    fn scale(&self) -> OutputScale {
        OutputScale::None
    }

    /// The tensor `[H]` whose sigmoid is the window's share of the output, where it has a learned one.
    fn window_gate(&self) -> Option<&'static str> {
        None
    }

    /// State bytes of one sequence after `context` tokens.
    fn state_bytes(&self, context: usize) -> usize;
}
