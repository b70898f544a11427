//! Phi-3 and Phi-4: Llama with q, k and v in one tensor and gate and up in another, rotary positions on a part of the
//! head and, in the long models, with factors for every pair.

use super::common::{ABSENT, Absent, KEYS, activation, decoder, window_everywhere};
use super::fields::Fields;
use super::names::{LLAMA, NORM_BEFORE, NORM_BETWEEN, Names, Part, Stored, Target, rows, whole};
use super::ropes::{Positions, WHOLE, everywhere};
use super::{Family, Spec};
use crate::error::Result;
use Part::Weight;

pub(super) const FAMILY: Family = Family {
    name: "phi3",
    models: "Phi-3 mini and medium, Phi-3.5 mini, Phi-4 and Phi-4 mini",
    model_types: &["phi3"],
    supported: &[
        "joined tensors of q, k, v and of gate, up",
        "RoPE on a part of the head",
        "longrope: short or long factors by the length of the text",
        "a sliding window in every layer",
    ],
    refused: &["Phi-3 small and Phi-3.5 MoE: other architectures", "quantised weights"],
    spec,
};

const ATTENTION: &[Stored] = &[
    rows("model.layers.{}.self_attn.qkv_proj.weight", &[Weight(Target::Q), Weight(Target::K), Weight(Target::V)]),
    whole("model.layers.{}.self_attn.o_proj.weight", &[Weight(Target::O)]),
];
const MLP: &[Stored] = &[
    rows("model.layers.{}.mlp.gate_up_proj.weight", &[Weight(Target::Gate), Weight(Target::Up)]),
    whole("model.layers.{}.mlp.down_proj.weight", &[Weight(Target::Down)]),
];
const NAMES: Names = Names { block: &[NORM_BEFORE, ATTENTION, NORM_BETWEEN, MLP], ..LLAMA };

fn spec(fields: &Fields) -> Result<Spec> {
    let mut spec = decoder(fields, FAMILY.name, NAMES, &KEYS, &Absent { eps: 1e-5, ..ABSENT })?;
    spec.activation = activation(fields, "hidden_act", "silu")?;
    window_everywhere(&mut spec, fields, None)?;
    everywhere(&mut spec, fields, &Positions { partial: Some(1.0), original: Some(4096), ..WHOLE })?;
    Ok(spec)
}
