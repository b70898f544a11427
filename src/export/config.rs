//! config.json and generation_config.json of a converted model.

use candle_core::DType;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::card::published;
use super::python;
use crate::arch::{DECODER, MODEL_TYPE, NormKind, OF_TEACHER, REUSED, Rope, Scaling, Spec, TIED};
use crate::checkpoint::Checkpoint;
use crate::model::{Conversion, Model, Student};
use crate::{Error, Result};

/// Keys of a teacher's config.json that say what a converted model no longer is, or how and by what it was saved.
const DROPPED: [&str; 8] = [
    "auto_map",
    "_name_or_path",
    "transformers_version",
    "_attn_implementation",
    MODEL_TYPE,
    OF_TEACHER,
    DECODER,
    TENSORS,
];
/// Names and shapes of the mixers' tensors: `kinds` of layers, and the kind of each layer. Nothing here reads it.
const TENSORS: &str = "subquad_tensors";
/// Keys whose place `rope_theta` at the top level takes where nothing else is said of rotary positions: transformers 4
/// reads no theta from `rope_parameters`.
const ROPE: [&str; 2] = ["rope_parameters", "rope_scaling"];
const PLAIN: [&str; 3] = ["rope_type", "type", "rope_theta"];

/// The name that transformers and torch give a type; `None` for types that weights are not exported in.
pub(super) fn dtype_word(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F32 => Some("float32"),
        DType::BF16 => Some("bfloat16"),
        DType::F16 => Some("float16"),
        _ => None,
    }
}

/// config.json. A `model_type` of our own: under the teacher's, other programs would load it as a plain softmax model.
pub(super) fn config(
    model: &Model,
    student: &Student,
    checkpoint: &Checkpoint,
    dtype: DType,
) -> Result<Map<String, Value>> {
    let (spec, conversion, teacher) = (&model.spec, &student.conversion, checkpoint.config());
    let published = &Conversion { teacher: published(&conversion.teacher, checkpoint), ..conversion.clone() };
    let of_teacher = |key: &str| teacher.get(key).cloned().unwrap_or(Value::Null);
    let word = dtype_word(dtype).ok_or_else(|| Error::Internal(format!("weights as {}", dtype.as_str())))?;
    let mut config = object([
        ("architectures", json!(["SubquadForCausalLM"])),
        ("model_type", json!(MODEL_TYPE)),
        ("auto_map", python::auto_map()),
        ("vocab_size", json!(spec.vocab)),
        ("hidden_size", json!(spec.width)),
        ("num_hidden_layers", json!(spec.layers)),
        ("num_attention_heads", json!(spec.heads)),
        ("num_key_value_heads", json!(spec.kv_heads)),
        ("head_dim", json!(spec.head_width)),
        ("intermediate_size", json!(spec.ffn)),
        ("max_position_embeddings", json!(spec.context)),
        (TIED, json!(spec.tied)),
        ("bos_token_id", of_teacher("bos_token_id")),
        ("eos_token_id", of_teacher("eos_token_id")),
        ("pad_token_id", of_teacher("pad_token_id")),
        ("dtype", json!(word)),
        ("torch_dtype", json!(word)),
        ("use_cache", json!(true)),
        ("layer_types", json!(layer_types(spec, conversion))),
    ]);
    if spec.norm.kind != NormKind::Layer {
        config.insert("rms_norm_eps".into(), json!(spec.norm.eps));
    }
    let plain = |rope: &Rope| rope.scaling == Scaling::None && rope.width == spec.head_width;
    let plain = matches!(&spec.ropes[..], [rope] if plain(rope));
    if let [rope] = &spec.ropes[..] {
        config.insert("rope_theta".into(), json!(rope.theta));
    }
    // What else the teacher's file says, such as `hidden_act`, belongs to its architecture and is kept.
    let said = |value: &Value| value.as_object().is_none_or(|map| map.keys().all(|key| PLAIN.contains(&key.as_str())));
    let dropped = |key: &str, value: &Value| {
        DROPPED.contains(&key) || REUSED.contains(&key) || plain && ROPE.contains(&key) && said(value)
    };
    for (key, value) in teacher.iter().filter(|(key, value)| !dropped(key, value)) {
        config.entry(key.clone()).or_insert_with(|| value.clone());
    }
    // Where its windows are, which the keys of the same names say of the converted layers.
    let own = teacher.iter().filter(|(key, _)| REUSED.contains(&key.as_str()));
    let own: Map<String, Value> = own.map(|(key, value)| (key.clone(), value.clone())).collect();
    if !own.is_empty() {
        config.insert(OF_TEACHER.into(), Value::Object(own));
    }
    if let Some(window) = conversion.window {
        config.insert("sliding_window".into(), json!(window.size));
    }
    let decoder = serde_json::to_value(spec).map_err(|e| Error::Internal(e.to_string()))?;
    config.insert(DECODER.into(), decoder);
    config.insert(TENSORS.into(), tensors(student, spec.layers));
    let block = serde_json::to_value(published).map_err(|e| Error::Internal(e.to_string()))?;
    config.insert(MODEL_TYPE.into(), block);
    Ok(config)
}

/// What [`TENSORS`] says.
fn tensors(student: &Student, layers: usize) -> Value {
    let mut kinds: Vec<Value> = vec![];
    let mut kind_of = |layer: usize| {
        if !student.replaced(layer) {
            return None;
        }
        let tensors = student.mixer(layer).tensors().into_iter().map(|t| (t.name.to_string(), json!(t.shape)));
        let kind = Value::Object(tensors.collect());
        let known = kinds.iter().position(|k| *k == kind);
        Some(known.unwrap_or_else(|| {
            kinds.push(kind);
            kinds.len() - 1
        }))
    };
    let layers: Vec<Option<usize>> = (0..layers).map(&mut kind_of).collect();
    json!({ "kinds": kinds, "layers": layers })
}

/// transformers' words for the kinds of layers: which cache each of them needs.
fn layer_types(spec: &Spec, conversion: &Conversion) -> Vec<&'static str> {
    let replaced = if conversion.window.is_some() { "hybrid_sliding" } else { "linear_attention" };
    let word = |layer| match conversion.softmax_layers.contains(&layer) {
        true if spec.blocks[layer].window.is_some() => "sliding_attention",
        true => "full_attention",
        false => replaced,
    };
    (0..spec.layers).map(word).collect()
}

/// generation_config.json of a model whose teacher has none.
pub(super) fn generation(spec: &Spec, config: &Map<String, Value>) -> Map<String, Value> {
    object([
        ("bos_token_id", json!(spec.bos)),
        ("eos_token_id", config.get("eos_token_id").cloned().unwrap_or(Value::Null)),
        ("pad_token_id", config.get("pad_token_id").cloned().unwrap_or(Value::Null)),
    ])
}

/// JSON for a file, indented.
pub(super) fn text(map: &Map<String, Value>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    map.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, serde_json::ser::PrettyFormatter::new()))
        .map_err(|e| Error::Internal(e.to_string()))?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn object<const N: usize>(entries: [(&str, Value); N]) -> Map<String, Value> {
    entries.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}
