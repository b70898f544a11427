//! OLMoE: Llama with norms of queries and keys over all heads together, and experts in every layer. Attention is
//! converted, the experts stay as they are.

use super::common::{ABSENT, Absent, KEYS, QKVO, activation, biases, decoder, refuse_set};
use super::fields::Fields;
use super::names::LLAMA;
use super::qwen3_moe::{experts, per_token};
use super::ropes::{WHOLE, everywhere};
use super::spec::{Experts, QkNorm};
use super::{Family, Spec};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "olmoe",
    models: "OLMoE 1B-7B",
    model_types: &["olmoe"],
    supported: &["experts, which stay as they are", "norms of queries and keys over all heads", "biases of attention"],
    refused: &["`clip_qkv`", "LoRA on gate, up or down: all layers have experts", "quantised weights"],
    spec,
};

fn spec(fields: &Fields) -> Result<Spec> {
    let mut spec = decoder(fields, FAMILY.name, LLAMA, &KEYS, &Absent { eps: 1e-5, ..ABSENT })?;
    spec.activation = activation(fields, "hidden_act", "silu")?;
    spec.qk_norm = Some(QkNorm::Full);
    refuse_set(fields, "clip_qkv", "queries, keys and values that are cut off are not supported")?;
    refuse_set(fields, "sliding_window", "windows of this family are not supported")?;
    biases(&mut spec, fields, "attention_bias", false, &QKVO)?;
    let count = experts(fields, &["num_experts", "num_local_experts"], spec.layers)?;
    spec.experts = Some(Experts {
        count,
        per_token: per_token(fields, count, 8)?,
        ffn: spec.ffn,
        normalised: fields.flag_or("norm_topk_prob", false)?,
    });
    spec.blocks.iter_mut().for_each(|block| block.experts = true);
    everywhere(&mut spec, fields, &WHOLE)?;
    Ok(spec)
}
