//! SmolLM3: Llama with layers that have no positions at all.

use super::common::{ABSENT, Absent, DAMAGED, KEYS, QKVO, activation, biases, decoder, layer_types, window};
use super::fields::Fields;
use super::names::{LLAMA, Target};
use super::ropes::{Positions, WHOLE, everywhere};
use super::{Family, Spec};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "smollm3",
    models: "SmolLM3",
    model_types: &["smollm3"],
    supported: &["layers without RoPE", "windows in these layers", "biases", "RoPE scaling"],
    refused: &["quantised weights"],
    spec,
};

fn spec(fields: &Fields) -> Result<Spec> {
    let mut spec = decoder(fields, FAMILY.name, LLAMA, &KEYS, &Absent { tied: true, ..ABSENT })?;
    spec.activation = activation(fields, "hidden_act", "silu")?;
    biases(&mut spec, fields, "attention_bias", false, &QKVO)?;
    biases(&mut spec, fields, "mlp_bias", false, &[Target::Gate, Target::Up, Target::Down])?;
    everywhere(&mut spec, fields, &Positions { theta: 2e6, ..WHOLE })?;
    let interval = fields.optional_size("no_rope_layer_interval", 1 << 12)?.unwrap_or(4);
    let turns = match fields.list("no_rope_layers", 1)? {
        Some(list) if list.len() < spec.layers => {
            let what = format!("`no_rope_layers` has {} numbers for {} layers", list.len(), spec.layers);
            return Err(fields.wrong(what, DAMAGED));
        }
        Some(list) => list.iter().take(spec.layers).map(|turns| *turns == 1).collect(),
        None => (0..spec.layers).map(|layer| !(layer + 1).is_multiple_of(interval)).collect::<Vec<bool>>(),
    };
    for (block, turns) in spec.blocks.iter_mut().zip(&turns) {
        block.rope = turns.then_some(0);
    }
    let window = if fields.flag("use_sliding_window")? { window(fields, None)? } else { None };
    layer_types(&mut spec, fields, window, |layer| window.is_some() && !turns[layer])?;
    Ok(spec)
}
