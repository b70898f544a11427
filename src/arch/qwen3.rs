//! Qwen3: Llama with RMSNorm of each head's queries and keys, and a head width of its own.

use super::common::{ABSENT, Absent, KEYS, QKVO, activation, biases, decoder};
use super::fields::Fields;
use super::names::LLAMA;
use super::qwen2::windows;
use super::ropes::{WHOLE, everywhere};
use super::spec::QkNorm;
use super::{Family, Spec};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "qwen3",
    models: "Qwen3, dense",
    model_types: &["qwen3"],
    supported: &[
        "norms of queries and keys, head by head",
        "any head width",
        "biases of attention",
        "windows in the upper layers",
        "RoPE scaling",
    ],
    refused: &["Qwen3-VL and Qwen3-Next: other architectures", "quantised weights"],
    spec,
};

fn spec(fields: &Fields) -> Result<Spec> {
    let mut spec = body(fields, FAMILY.name)?;
    windows(&mut spec, fields)?;
    Ok(spec)
}

/// What Qwen3's dense and sparse models share.
pub(super) fn body(fields: &Fields, family: &'static str) -> Result<Spec> {
    let mut spec = decoder(fields, family, LLAMA, &KEYS, &Absent { head_width: 128, ..ABSENT })?;
    spec.activation = activation(fields, "hidden_act", "silu")?;
    spec.qk_norm = Some(QkNorm::Head);
    biases(&mut spec, fields, "attention_bias", false, &QKVO)?;
    everywhere(&mut spec, fields, &WHOLE)?;
    Ok(spec)
}
