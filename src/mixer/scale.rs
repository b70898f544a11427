//! What calibration may set in a mixer before any training.

use super::{Initial, LayerDims, NewTensor, OptionKind, OptionSpec, Params};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::mul;

/// The tensor by which a mixer's linear branch is multiplied (under a joint normaliser its output), one number or row of numbers per head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputScale {
    /// None: the published form has no such tensor and the recipe wants it so.
    None,
    /// A tensor of the mechanism's own, [H, 1] or [H, V], such as the weight of its output norm.
    Existing(&'static str),
    /// One number per head, added beside the mechanism. It folds into the o projection exactly where there is no window.
    Extra,
}

const ADDED: &str = "output_scale";

impl OutputScale {
    /// The option of mechanisms without a scale of their own.
    pub const OPTION: OptionSpec = OptionSpec {
        name: "output_scale",
        kind: OptionKind::Flag,
        default: "true",
        help: "a learned scale per head on the linear branch, or on the output under a joint normaliser, which calibration \
               sets; false: the published form, which has none",
    };

    /// By the value of [`OutputScale::OPTION`].
    pub fn added(on: bool) -> Self {
        if on { OutputScale::Extra } else { OutputScale::None }
    }

    pub(super) fn tensor(self, layer_dims: &LayerDims) -> Option<NewTensor> {
        let tensor = NewTensor { name: ADDED, shape: vec![layer_dims.heads, 1], initial: Initial::Constant(1.0) };
        (self == OutputScale::Extra).then_some(tensor)
    }

    pub(super) fn apply(self, output: &Var, params: &Params) -> Result<Var> {
        if self == OutputScale::Extra { mul(output, params.get(ADDED)?) } else { Ok(output.clone()) }
    }

    /// The tensor's name.
    pub fn name(self) -> Option<&'static str> {
        match self {
            OutputScale::None => None,
            OutputScale::Existing(name) => Some(name),
            OutputScale::Extra => Some(ADDED),
        }
    }
}

/// A number per head that multiplies the features of q: how far weights are from equal ones, which no learned map of
/// the mechanism's own can set.
pub struct FeatureScale;

impl FeatureScale {
    const NAME: &'static str = "feature_scale";

    pub fn tensor(layer_dims: &LayerDims) -> NewTensor {
        NewTensor { name: Self::NAME, shape: vec![layer_dims.heads, 1], initial: Initial::Constant(1.0) }
    }

    pub fn calibration_param() -> CalibrationParam {
        let values = &[0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.5, 3.0];
        CalibrationParam {
            tensor: Self::NAME,
            granularity: Granularity::Head,
            values,
            update: CalibrationUpdate::Multiply,
        }
    }

    pub fn apply(features: &Var, params: &Params) -> Result<Var> {
        mul(features, params.get(Self::NAME)?)
    }
}

/// A tensor whose start decides what a mechanism does before training: calibration tries these values, head by head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CalibrationParam {
    pub tensor: &'static str,
    /// Whose equal parts of the tensor's elements are turned by themselves.
    pub granularity: Granularity,
    pub values: &'static [f32],
    pub update: CalibrationUpdate,
}

/// Granularity of the search: per query head or per KV head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granularity {
    /// H
    Head,
    /// G
    KvHead,
}

/// Effect of a tried value on a head's part of the tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CalibrationUpdate {
    /// Every element becomes the value: biases of gates.
    Set,
    /// The initial values are multiplied: feature maps.
    Multiply,
}
