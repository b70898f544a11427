//! What calibration may set in a mixer before any training.

use super::{Bound, Initial, NewTensor, OptionKind, OptionSpec, Site};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::mul;

/// The tensor by which a mixer's linear branch is multiplied (under a joint normaliser its output), one number or row of numbers per head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// None: the published form has no such tensor and the recipe wants it so.
    Absent,
    /// A tensor of the mechanism's own, [H, 1] or [H, V], such as the weight of its output norm.
    Own(&'static str),
    /// One number per head, added beside the mechanism. It folds into the o projection exactly where there is no window.
    Added,
}

const ADDED: &str = "output_scale";

impl Scale {
    /// The option of mechanisms without a scale of their own.
    pub const OPTION: OptionSpec = OptionSpec {
        name: "output_scale",
        kind: OptionKind::Flag,
        default: "true",
        help: "a learned scale per head on the linear branch, or on the output under a joint normaliser, which calibration \
               sets; false: the published form, which has none",
    };

    /// By the value of [`Scale::OPTION`].
    pub fn added(on: bool) -> Self {
        if on { Scale::Added } else { Scale::Absent }
    }

    pub(super) fn tensor(self, site: &Site) -> Option<NewTensor> {
        let tensor = NewTensor { name: ADDED, shape: vec![site.heads, 1], initial: Initial::Constant(1.0) };
        (self == Scale::Added).then_some(tensor)
    }

    pub(super) fn apply(self, output: &Var, bound: &Bound) -> Result<Var> {
        if self == Scale::Added { mul(output, bound.get(ADDED)?) } else { Ok(output.clone()) }
    }

    /// The tensor's name.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Scale::Absent => None,
            Scale::Own(name) => Some(name),
            Scale::Added => Some(ADDED),
        }
    }
}

/// A number per head that multiplies the features of q: how far weights are from equal ones, which no learned map of
/// the mechanism's own can set.
pub struct FeatureScale;

impl FeatureScale {
    const NAME: &'static str = "feature_scale";

    pub fn tensor(site: &Site) -> NewTensor {
        NewTensor { name: Self::NAME, shape: vec![site.heads, 1], initial: Initial::Constant(1.0) }
    }

    pub fn knob() -> Knob {
        let values = &[0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.5, 3.0];
        Knob { tensor: Self::NAME, per: Per::Head, values, how: How::Multiply }
    }

    pub fn apply(features: &Var, bound: &Bound) -> Result<Var> {
        mul(features, bound.get(Self::NAME)?)
    }
}

/// A tensor whose start decides what a mechanism does before training: calibration tries these values, head by head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Knob {
    pub tensor: &'static str,
    /// Whose equal parts of the tensor's elements are turned by themselves.
    pub per: Per,
    pub values: &'static [f32],
    pub how: How,
}

/// What a knob is turned for, one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Per {
    /// H
    Head,
    /// G
    KvHead,
}

/// What a knob's value does to a head's part of the tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Every element becomes the value: biases of gates.
    Set,
    /// The initial values are multiplied: feature maps.
    Multiply,
}
