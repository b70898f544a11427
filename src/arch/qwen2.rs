//! Qwen2 and Qwen2.5: Llama with biases of q, k and v, and windows in the upper layers where they are switched on.

use super::common::{ABSENT, KEYS, activation, decoder, layer_types, window};
use super::fields::Fields;
use super::names::{LLAMA, Target};
use super::ropes::{WHOLE, everywhere};
use super::{Family, Spec};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "qwen2",
    models: "Qwen2 and Qwen2.5 with their Coder and Math forms, QwQ",
    model_types: &["qwen2"],
    supported: &["biases of q, k and v", "windows in the upper layers", "RoPE scaling", "tied and untied heads"],
    refused: &["Qwen2-VL and other models that see images", "quantised weights"],
    spec,
};

fn spec(fields: &Fields) -> Result<Spec> {
    let mut spec = decoder(fields, FAMILY.name, LLAMA, &KEYS, &ABSENT)?;
    spec.activation = activation(fields, "hidden_act", "silu")?;
    spec.biases.extend([Target::Q, Target::K, Target::V]);
    windows(&mut spec, fields)?;
    everywhere(&mut spec, fields, &WHOLE)?;
    Ok(spec)
}

/// Windows in the layers from `max_window_layers` on, if `use_sliding_window` says so.
pub(super) fn windows(spec: &mut Spec, fields: &Fields) -> Result<()> {
    const WINDOW: usize = 4096;
    const FIRST: usize = 28;
    let window = if fields.flag("use_sliding_window")? { window(fields, Some(WINDOW))? } else { None };
    let first = match fields.get("max_window_layers") {
        // 0 is common: all layers.
        Some(value) if value.as_u64() == Some(0) => 0,
        _ => fields.optional_size("max_window_layers", 1 << 20)?.unwrap_or(FIRST),
    };
    layer_types(spec, fields, window, |layer| window.is_some() && layer >= first).map(drop)
}
