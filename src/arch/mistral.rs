//! Mistral: Llama with a sliding window in every layer, unless it is switched off.

use super::common::{ABSENT, KEYS, activation, decoder, window_everywhere};
use super::fields::Fields;
use super::names::LLAMA;
use super::ropes::{WHOLE, everywhere};
use super::{Family, Spec};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "mistral",
    models: "Mistral 7B, Mistral Nemo, Mistral Small and others of its type",
    model_types: &["mistral"],
    supported: &["a sliding window in every layer, or none", "any head width", "RoPE scaling"],
    refused: &["`layer_types`: the type has one kind of layers", "quantised weights"],
    spec,
};

/// transformers' default of a key that is absent.
const WINDOW: usize = 4096;
const KV_HEADS: usize = 8;

fn spec(fields: &Fields) -> Result<Spec> {
    let mut spec = decoder(fields, FAMILY.name, LLAMA, &KEYS, &ABSENT)?;
    if !fields.map.contains_key("num_key_value_heads") && spec.heads.is_multiple_of(KV_HEADS) {
        spec.kv_heads = KV_HEADS;
    }
    spec.activation = activation(fields, "hidden_act", "silu")?;
    super::common::refuse_set(fields, "layer_types", "Mistral has one kind of layers in transformers")?;
    window_everywhere(&mut spec, fields, Some(WINDOW))?;
    everywhere(&mut spec, fields, &WHOLE)?;
    Ok(spec)
}
