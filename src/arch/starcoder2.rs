//! StarCoder2: LayerNorm, biases, a plain MLP with GELU, rotary positions, and a window in every layer.

use super::common::{ABSENT, Absent, KEYS, Keys, UNGATED, activation, biases, decoder, window_everywhere};
use super::fields::Fields;
use super::names::{ATTENTION, LLAMA, NORM_BEFORE, NORM_BETWEEN, Names, Part, Stored, Target, whole};
use super::ropes::{WHOLE, everywhere};
use super::spec::NormKind;
use super::{Family, Spec};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "starcoder2",
    models: "StarCoder2",
    model_types: &["starcoder2"],
    supported: &["LayerNorm", "biases, or none", "a sliding window in every layer, or none", "RoPE scaling"],
    refused: &["StarCoder 1 (gpt_bigcode): another architecture", "quantised weights"],
    spec,
};

const MLP: &[Stored] = &[
    whole("model.layers.{}.mlp.c_fc.weight", &[Part::Weight(Target::Up)]),
    whole("model.layers.{}.mlp.c_fc.bias", &[Part::Bias(Target::Up)]),
    whole("model.layers.{}.mlp.c_proj.weight", &[Part::Weight(Target::Down)]),
    whole("model.layers.{}.mlp.c_proj.bias", &[Part::Bias(Target::Down)]),
];
const NAMES: Names = Names { block: &[NORM_BEFORE, ATTENTION, NORM_BETWEEN, MLP], ..LLAMA };

fn spec(fields: &Fields) -> Result<Spec> {
    let keys = Keys { eps: "norm_epsilon", ..KEYS };
    let mut spec = decoder(fields, FAMILY.name, NAMES, &keys, &Absent { eps: 1e-5, tied: true, ..ABSENT })?;
    spec.norm.kind = NormKind::Layer;
    spec.activation = activation(fields, "hidden_act", "gelu_pytorch_tanh")?;
    spec.gated = false;
    biases(&mut spec, fields, "use_bias", true, &UNGATED)?;
    window_everywhere(&mut spec, fields, None)?;
    everywhere(&mut spec, fields, &WHOLE)?;
    Ok(spec)
}
