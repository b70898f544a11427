//! Llama: RMSNorm before attention and MLP, rotary positions, grouped key-value heads, SwiGLU, no biases.
//!
//! Defaults of absent keys are those of transformers' `LlamaConfig`.

use std::path::Path;

use serde_json::{Map, Value};

use super::fields::Fields;
use super::{Family, Names, Rope, Spec};
use crate::checkpoint::shown;
use crate::error::Result;

pub(super) const FAMILY: Family = Family { name: "llama", model_types: &["llama"], spec };

const NAMES: Names = Names {
    embed: "model.embed_tokens.weight",
    final_norm: "model.norm.weight",
    head: "lm_head.weight",
    attn_norm: "model.layers.{}.input_layernorm.weight",
    q: "model.layers.{}.self_attn.q_proj.weight",
    k: "model.layers.{}.self_attn.k_proj.weight",
    v: "model.layers.{}.self_attn.v_proj.weight",
    o: "model.layers.{}.self_attn.o_proj.weight",
    mlp_norm: "model.layers.{}.post_attention_layernorm.weight",
    gate: "model.layers.{}.mlp.gate_proj.weight",
    up: "model.layers.{}.mlp.up_proj.weight",
    down: "model.layers.{}.mlp.down_proj.weight",
};

/// Bounds far above every model that exists; beyond them a number is a mistake, and products stay countable.
const MOST_VOCAB: usize = 1 << 24;
const MOST_WIDTH: usize = 1 << 18;
const MOST_LAYERS: usize = 1 << 12;
const MOST_HEADS: usize = 1 << 12;
const MOST_HEAD_WIDTH: usize = 1 << 12;
const MOST_FFN: usize = 1 << 20;
const MOST_CONTEXT: usize = 1 << 30;

fn spec(config: &Map<String, Value>, path: &Path) -> Result<Spec> {
    let fields = Fields { map: config, path };
    refuse(&fields)?;

    let width = fields.size("hidden_size", MOST_WIDTH)?;
    let heads = fields.size("num_attention_heads", MOST_HEADS)?;
    let kv_heads = fields.optional_size("num_key_value_heads", MOST_HEADS)?.unwrap_or(heads);
    let sizes = "`config.json` is damaged: download or copy it again";
    if !heads.is_multiple_of(kv_heads) {
        let what = format!("`num_attention_heads`, {heads}, is no multiple of `num_key_value_heads`, {kv_heads}");
        return Err(fields.wrong(what, sizes));
    }
    let head_width = match fields.optional_size("head_dim", MOST_HEAD_WIDTH)? {
        Some(head_width) => head_width,
        None if width.is_multiple_of(heads) => width / heads,
        None => {
            let what = format!(
                "`hidden_size`, {width}, is no multiple of `num_attention_heads`, {heads}, and `head_dim` is missing"
            );
            return Err(fields.wrong(what, sizes));
        }
    };
    if !head_width.is_multiple_of(2) {
        return Err(fields.wrong(format!("the head width, {head_width}, is odd: rotary positions need pairs"), sizes));
    }
    let vocab = fields.size("vocab_size", MOST_VOCAB)?;
    Ok(Spec {
        family: FAMILY.name,
        vocab,
        width,
        layers: fields.size("num_hidden_layers", MOST_LAYERS)?,
        heads,
        kv_heads,
        head_width,
        ffn: fields.size("intermediate_size", MOST_FFN)?,
        context: fields.size("max_position_embeddings", MOST_CONTEXT)?,
        norm_eps: fields.number("rms_norm_eps", f64::MIN_POSITIVE, 1.0, 1e-6)?,
        rope: Rope { theta: theta(&fields)? },
        tied: fields.flag("tie_word_embeddings")?,
        bos: fields.tokens("bos_token_id", vocab)?.first().copied(),
        eos: fields.tokens("eos_token_id", vocab)?,
        names: NAMES,
    })
}

/// Refuses what the decoder does not do.
fn refuse(fields: &Fields) -> Result<()> {
    for key in ["attention_bias", "mlp_bias"] {
        if fields.flag(key)? {
            return Err(fields.unsupported(format!("`{key}` is true: projections with biases are not supported")));
        }
    }
    let activation = fields.text("hidden_act", "silu")?;
    if !["silu", "swish"].contains(&activation) {
        let what = format!("`hidden_act` is `{}`: only `silu` is supported", shown(activation));
        return Err(fields.unsupported(what));
    }
    if fields.get("sliding_window").is_some() {
        return Err(fields.unsupported("`sliding_window` is set: teachers with a sliding window are not supported"));
    }
    if let Some(types) = fields.get("layer_types") {
        let full = types.as_array().is_some_and(|list| list.iter().all(|t| t == "full_attention"));
        if !full {
            return Err(fields.unsupported("`layer_types` has others than `full_attention`, which are not supported"));
        }
    }
    if fields.get("quantization_config").is_some() {
        return Err(fields
            .wrong("`quantization_config` is set: quantised weights are not read", "give the unquantised checkpoint"));
    }
    whole_head(fields)
}

/// Rotary positions must turn the whole head.
fn whole_head(fields: &Fields) -> Result<()> {
    match fields.get("partial_rotary_factor") {
        Some(factor) if factor.as_f64() != Some(1.0) => Err(fields.unsupported(format!(
            "`partial_rotary_factor` is {}: rotary positions on a part of the head are not supported",
            shown(&factor.to_string())
        ))),
        _ => Ok(()),
    }
}

/// The base of the rotary frequencies, which stands at the top level or, since transformers 5, in `rope_parameters`.
fn theta(fields: &Fields) -> Result<f64> {
    const LEAST: f64 = 1.0;
    const MOST: f64 = 1e15;
    const ABSENT: f64 = 10_000.0;
    let top = fields.number("rope_theta", LEAST, MOST, ABSENT)?;
    let mut found = fields.get("rope_theta").map(|_| top);
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(value) = fields.get(key) else { continue };
        let Some(map) = value.as_object() else { return Err(fields.impossible(key, value, "an object")) };
        let block = Fields { map, path: fields.path };
        let kind = block.text("rope_type", block.text("type", "default")?)?;
        if kind != "default" {
            let what = format!("`{key}` is of the kind `{}`: scaled rotary positions are not supported", shown(kind));
            return Err(fields.unsupported(what));
        }
        if map.values().any(Value::is_object) {
            return Err(fields.unsupported(format!("`{key}` differs between layers, which is not supported")));
        }
        whole_head(&block)?;
        if block.get("rope_theta").is_some() {
            let inner = block.number("rope_theta", LEAST, MOST, ABSENT)?;
            if found.is_some_and(|outer| outer != inner) {
                let what = format!("`rope_theta` is {} in one place and {inner} in `{key}`", found.unwrap_or(top));
                return Err(fields.wrong(what, "keep the one that the model was trained with"));
            }
            found = Some(inner);
        }
    }
    Ok(found.unwrap_or(ABSENT))
}
