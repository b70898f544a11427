//! Granite 3: Llama with factors of the embedding, the scores, what blocks add, and the logits.

use super::common::{ABSENT, KEYS, MAX_FACTOR, QKVO, activation, biases, decoder};
use super::fields::Fields;
use super::names::{LLAMA, Target};
use super::ropes::{WHOLE, everywhere};
use super::{Family, Spec};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "granite",
    models: "Granite 3, dense",
    model_types: &["granite"],
    supported: &["its four multipliers", "biases", "RoPE scaling"],
    refused: &["granitemoe and Granite 4: other architectures", "quantised weights"],
    spec,
};

fn spec(fields: &Fields) -> Result<Spec> {
    let mut spec = decoder(fields, FAMILY.name, LLAMA, &KEYS, &ABSENT)?;
    spec.activation = activation(fields, "hidden_act", "silu")?;
    biases(&mut spec, fields, "attention_bias", false, &QKVO)?;
    biases(&mut spec, fields, "mlp_bias", false, &[Target::Gate, Target::Up, Target::Down])?;
    let factor = |key| -> Result<f64> { Ok(fields.optional_positive(key, MAX_FACTOR)?.unwrap_or(1.0)) };
    spec.multipliers.embedding = factor("embedding_multiplier")?;
    spec.multipliers.residual = factor("residual_multiplier")?;
    spec.multipliers.logits = 1.0 / factor("logits_scaling")?;
    let scale = factor("attention_multiplier")?;
    spec.blocks.iter_mut().for_each(|block| block.scale = scale);
    everywhere(&mut spec, fields, &WHOLE)?;
    Ok(spec)
}
