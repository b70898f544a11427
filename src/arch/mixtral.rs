//! Mixtral: Mistral with experts in every layer. Attention is converted, the experts stay as they are.

use super::common::{ABSENT, Absent, KEYS, activation, decoder, window_everywhere};
use super::fields::Fields;
use super::names::{ATTENTION, LLAMA, NORM_BEFORE, NORM_BETWEEN, Names, Part, Stored, Target, whole};
use super::qwen3_moe::{experts, per_token};
use super::ropes::{Positions, WHOLE, everywhere};
use super::spec::Experts;
use super::{Family, Spec};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "mixtral",
    models: "Mixtral 8x7B and 8x22B",
    model_types: &["mixtral"],
    supported: &["experts, which stay as they are", "a sliding window in every layer, or none", "RoPE scaling"],
    refused: &["LoRA on gate, up or down: all layers have experts", "quantised weights"],
    spec,
};

const MOE: &[Stored] = &[
    whole("model.layers.{}.block_sparse_moe.gate.weight", &[Part::Router]),
    whole("model.layers.{}.block_sparse_moe.experts.{e}.w1.weight", &[Part::Expert(Target::Gate, 0)]),
    whole("model.layers.{}.block_sparse_moe.experts.{e}.w2.weight", &[Part::Expert(Target::Down, 0)]),
    whole("model.layers.{}.block_sparse_moe.experts.{e}.w3.weight", &[Part::Expert(Target::Up, 0)]),
];

const NAMES: Names = Names { block: &[NORM_BEFORE, ATTENTION, NORM_BETWEEN, MOE], ..LLAMA };

fn spec(fields: &Fields) -> Result<Spec> {
    let mut spec = decoder(fields, FAMILY.name, NAMES, &KEYS, &Absent { eps: 1e-5, ..ABSENT })?;
    spec.activation = activation(fields, "hidden_act", "silu")?;
    let count = experts(fields, &["num_local_experts", "num_experts"], spec.layers)?;
    let per_token = per_token(fields, count, 2)?;
    spec.experts = Some(Experts { count, per_token, ffn: spec.ffn, normalised: true });
    spec.blocks.iter_mut().for_each(|block| block.experts = true);
    window_everywhere(&mut spec, fields, None)?;
    everywhere(&mut spec, fields, &Positions { theta: 1e6, ..WHOLE })?;
    Ok(spec)
}
