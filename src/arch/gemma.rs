//! Gemma: norms that multiply by one plus their weight, an embedding scaled by the square root of its width, GELU.

use super::common::{ABSENT, Absent, KEYS, QKVO, activation, biases, decoder, refuse_flag};
use super::fields::Fields;
use super::names::{LLAMA, Names};
use super::ropes::{WHOLE, everywhere};
use super::spec::{Activation, NormKind};
use super::{Family, Spec};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "gemma",
    models: "Gemma 1, CodeGemma",
    model_types: &["gemma"],
    supported: &["norms with one plus their weight", "the scaled embedding", "any head width", "biases of attention"],
    refused: &["`use_bidirectional_attention`", "RecurrentGemma: another architecture", "quantised weights"],
    spec,
};

fn spec(fields: &Fields) -> Result<Spec> {
    let mut spec = body(fields, FAMILY.name, LLAMA)?;
    spec.activation = match activation(fields, "hidden_act", "gelu_pytorch_tanh")? {
        // What the first configs call `gelu` means the approximation.
        Activation::Gelu => Activation::GeluTanh,
        other => other,
    };
    everywhere(&mut spec, fields, &WHOLE)?;
    Ok(spec)
}

/// What all generations share.
pub(super) fn body(fields: &Fields, family: &'static str, names: Names) -> Result<Spec> {
    let absent = Absent { tied: true, head_width: 256, ..ABSENT };
    let mut spec = decoder(fields, family, names, &KEYS, &absent)?;
    refuse_flag(fields, "use_bidirectional_attention", "a model that looks ahead cannot be converted")?;
    spec.norm.kind = NormKind::RmsPlusOne;
    spec.multipliers.embedding = (spec.width as f64).sqrt();
    biases(&mut spec, fields, "attention_bias", false, &QKVO)?;
    Ok(spec)
}
