//! Qwen3 with a mixture of experts in all layers, or in some. Attention is converted, the experts stay as they are.

use super::common::{MAX_FFN, window_everywhere};
use super::fields::Fields;
use super::spec::Experts;
use super::{Family, Spec, qwen3};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "qwen3_moe",
    models: "Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder",
    model_types: &["qwen3_moe"],
    supported: &[
        "as qwen3, but windows in all layers or in none",
        "experts in all layers or in some, which stay as they are",
    ],
    refused: &["LoRA on gate, up or down where all layers have experts", "quantised weights"],
    spec,
};

const WINDOW: usize = 4096;
/// Of all layers together; far above every model that exists.
const MAX_EXPERTS: usize = 1 << 16;

fn spec(fields: &Fields) -> Result<Spec> {
    let mut spec = qwen3::body(fields, FAMILY.name)?;
    // Unlike the dense models, in all layers or in none.
    if fields.flag("use_sliding_window")? {
        window_everywhere(&mut spec, fields, Some(WINDOW))?;
    }
    let count = experts(fields, &["num_experts", "num_local_experts"], spec.layers)?;
    spec.experts = Some(Experts {
        count,
        per_token: per_token(fields, count, 8)?,
        ffn: fields.optional_size("moe_intermediate_size", MAX_FFN)?.unwrap_or(768),
        normalised: fields.flag_or("norm_topk_prob", false)?,
    });
    let step = fields.optional_size("decoder_sparse_step", 1 << 12)?.unwrap_or(1);
    let dense = fields.list("mlp_only_layers", 1 << 12)?.unwrap_or_default();
    for (layer, block) in spec.blocks.iter_mut().enumerate() {
        block.experts = (layer + 1).is_multiple_of(step) && !dense.contains(&layer);
    }
    Ok(spec)
}

/// The number of experts, under the first of the keys that is there; all layers' together stay countable.
pub(super) fn experts(fields: &Fields, keys: &[&str], layers: usize) -> Result<usize> {
    let key = keys.iter().find(|key| fields.get(key).is_some()).unwrap_or(&keys[0]);
    fields.size(key, MAX_EXPERTS / layers)
}

/// `num_experts_per_tok`, at most all of them.
pub(super) fn per_token(fields: &Fields, count: usize, absent: usize) -> Result<usize> {
    Ok(fields.optional_size("num_experts_per_tok", count)?.unwrap_or(absent.min(count)))
}
