//! Llama: RMSNorm before attention and MLP, rotary positions, grouped key-value heads, SwiGLU.
//!
//! Defaults of absent keys are those of transformers' `LlamaConfig`.

use super::common::{ABSENT, KEYS, QKVO, activation, biases, decoder, layer_types};
use super::fields::Fields;
use super::names::{LLAMA, Target};
use super::ropes::{WHOLE, everywhere};
use super::{Family, Spec};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "llama",
    models: "Llama 1, 2, 3, 3.1 and 3.2, TinyLlama, SmolLM and SmolLM2, Yi, and others of its type",
    model_types: &["llama"],
    supported: &[
        "grouped key-value heads, any head width",
        "biases of attention and MLP",
        "RoPE scaling: linear, dynamic, llama3, yarn, longrope",
        "tied and untied heads",
    ],
    refused: &["sliding windows: the type has none", "quantised weights"],
    spec,
};

fn spec(fields: &Fields) -> Result<Spec> {
    let mut spec = decoder(fields, FAMILY.name, LLAMA, &KEYS, &ABSENT)?;
    spec.activation = activation(fields, "hidden_act", "silu")?;
    biases(&mut spec, fields, "attention_bias", false, &QKVO)?;
    biases(&mut spec, fields, "mlp_bias", false, &[Target::Gate, Target::Up, Target::Down])?;
    if fields.get("sliding_window").is_some() {
        return Err(fields.unsupported("`sliding_window` is set: Llama has no windows in transformers"));
    }
    if layer_types(&mut spec, fields, Some(1), |_| false)?.contains(&true) {
        return Err(fields.unsupported("`layer_types` has others than `full_attention`: Llama has no windows"));
    }
    everywhere(&mut spec, fields, &WHOLE)?;
    Ok(spec)
}
