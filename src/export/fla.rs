//! A converted model as one of flash-linear-attention's own model types, where it is exactly that: GLA without an output
//! gate and window, on a body like Llama's.
//!
//! Its layer shares one norm weight among heads; ours has one for each, which goes into the output projection.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use serde_json::{Map, Value, json};

use super::config::{GENERATION, generation, text};
use super::files::Copies;
use super::forms::without_fla;
use super::place::Place;
use crate::arch::{NormAt, NormKind, Part, Target};
use crate::checkpoint::{CONFIG, Checkpoint, Writer, write_atomically};
use crate::mixer::Bound;
use crate::model::{Model, Student};
use crate::ops::Var;
use crate::{Error, Result};

/// Of our norm of heads, which its configuration shares with the other norms.
const EPS: f64 = 1e-5;
/// The rank of the gate's projection, which its configuration cannot set.
const RANK: u64 = 16;

/// Writes `model` with the mixers of `student` to the folder `to`, or says why that cannot be.
pub fn export_fla(model: &Model, student: &Student, from: &Checkpoint, to: &Path) -> Result<PathBuf> {
    let (spec, conversion) = (&model.spec, &student.conversion);
    let mut reasons = without_fla(spec, conversion);
    if reasons.is_empty() {
        if spec.norm.kind != NormKind::Rms || spec.norm.eps != EPS {
            reasons.push(format!("its norms share one epsilon: ours is {EPS}, the teacher's {}", spec.norm.eps));
        }
        if conversion.options.get("gate_rank").and_then(Value::as_u64) != Some(RANK) {
            reasons.push(format!("the rank of its gates is always {RANK}"));
        }
        if !(spec.heads * spec.head_width).is_multiple_of(spec.width) && !spec.width.is_multiple_of(spec.heads) {
            reasons.push("the width of its heads is a share of the model's".into());
        }
    }
    if !reasons.is_empty() {
        let what = format!("this model is none of flash-linear-attention's own: {}", reasons.join("; "));
        return Err(Error::usage(what, "`subquad export` without `--format` writes a folder that transformers loads"));
    }
    let tensors = tensors(model, student)?;
    let copies = Copies::of(from)?;
    let place = Place::prepare(to)?;
    let folder = place.folder();
    for (name, bytes) in &copies.files {
        write_atomically(&folder.join(name), bytes)?;
    }
    let config = config(model, student, from.config());
    write_atomically(&folder.join(CONFIG), &text(&config)?)?;
    if !copies.contains(GENERATION) {
        write_atomically(&folder.join(GENERATION), &text(&generation(spec, &config))?)?;
    }
    let declared = tensors.iter().map(|(name, t)| (name.clone(), DType::F32, t.dims().to_vec())).collect();
    let mut writer = Writer::create(folder, declared, u64::MAX)?;
    for (name, tensor) in &tensors {
        writer.write(name, tensor)?;
    }
    writer.finish()?;
    place.finish()
}

fn config(model: &Model, student: &Student, own: &Map<String, Value>) -> Map<String, Value> {
    let spec = &model.spec;
    let of_own = |key: &str| own.get(key).cloned().unwrap_or(Value::Null);
    let value = json!({
        "architectures": ["GLAForCausalLM"],
        "model_type": "gla",
        "hidden_size": spec.width,
        "num_hidden_layers": spec.layers,
        "num_heads": spec.heads,
        "num_kv_heads": spec.kv_heads,
        "intermediate_size": spec.ffn,
        "vocab_size": spec.vocab,
        "max_position_embeddings": spec.context,
        "expand_k": (spec.heads * spec.head_width) as f64 / spec.width as f64,
        "expand_v": (spec.heads * spec.head_width) as f64 / spec.width as f64,
        "use_short_conv": student.conversion.options.get("convolution"),
        "conv_size": 4,
        "use_output_gate": false,
        "feature_map": null,
        "hidden_act": "swish",
        "norm_eps": EPS,
        "tie_word_embeddings": spec.tied,
        "bos_token_id": of_own("bos_token_id"),
        "eos_token_id": of_own("eos_token_id"),
        "pad_token_id": of_own("pad_token_id"),
        "dtype": "float32",
        "torch_dtype": "float32",
    });
    value.as_object().cloned().unwrap_or_default()
}

fn tensors(model: &Model, student: &Student) -> Result<BTreeMap<String, Tensor>> {
    let spec = &model.spec;
    let mut all = BTreeMap::from([
        ("model.embeddings.weight".to_string(), model.embed.clone()),
        ("model.norm.weight".to_string(), model.final_norm()?.0.clone()),
    ]);
    if !spec.tied {
        all.insert("lm_head.weight".into(), model.head.weight.clone());
    }
    for (layer, weights) in model.layers.iter().enumerate() {
        let bound: Bound = Bound(
            student.mixer_tensors(layer).map(|(name, _, t)| (name.to_string(), Var::constant(t.clone()))).collect(),
        );
        let own = |name: &str| -> Result<Tensor> { Ok(bound.get(name)?.value().clone()) };
        let mut put = |name: &str, tensor: Tensor| all.insert(format!("model.layers.{layer}.{name}"), tensor);
        put("attn_norm.weight", weights.need(Part::Norm(NormAt::Attention))?.clone());
        put("mlp_norm.weight", weights.need(Part::Norm(NormAt::Mlp))?.clone());
        for (name, target) in [("q", Target::Q), ("k", Target::K), ("v", Target::V)] {
            put(&format!("attn.{name}_proj.weight"), weights.weight(target)?.clone());
        }
        for (name, target) in [("gate", Target::Gate), ("up", Target::Up), ("down", Target::Down)] {
            put(&format!("mlp.{name}_proj.weight"), weights.weight(target)?.clone());
        }
        put("attn.gk_proj.0.weight", own("gate_down")?);
        put("attn.gk_proj.1.weight", own("gate_up")?);
        put("attn.gk_proj.1.bias", own("gate_bias")?);
        // o W^T with o = norm * weight of each head and channel.
        let scale = own("norm_weight")?.reshape((1, spec.heads * spec.head_width))?;
        put("attn.o_proj.weight", weights.weight(Target::O)?.broadcast_mul(&scale)?);
        put("attn.g_norm.weight", Tensor::ones(spec.head_width, DType::F32, scale.device())?);
        if let Ok(taps) = own("q_convolution") {
            put("attn.q_conv1d.weight", taps.unsqueeze(1)?);
            put("attn.k_conv1d.weight", own("k_convolution")?.unsqueeze(1)?);
            put("attn.v_conv1d.weight", own("v_convolution")?.unsqueeze(1)?);
        }
    }
    Ok(all)
}
