//! A converted model as one of flash-linear-attention's own model types, where it is exactly that: a layer of
//! [`super::fla_layers`] without window, on a body like Llama's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use serde_json::{Map, Value, json};

use super::config::{generation, text};
use super::files::Copies;
use super::fla_layers::Form;
use super::forms::without_fla;
use super::names::GENERATION;
use super::place::Place;
use crate::arch::{NormAt, NormKind, Part, Spec, Target};
use crate::checkpoint::{CONFIG, Checkpoint, Writer, write_atomically};
use crate::mixer::Params;
use crate::model::{Conversion, Model, Student};
use crate::ops::Var;
use crate::{Error, Result};

/// Of our norm of heads, which its configuration shares with the other norms.
const EPS: f64 = 1e-5;
/// Writes `model` with the mixers of `student` to the folder `to`, or says why that cannot be.
pub fn export_fla(model: &Model, student: &Student, from: &Checkpoint, to: &Path) -> Result<PathBuf> {
    let (spec, conversion) = (&model.spec, &student.conversion);
    let (form, mut reasons) = (Form::of(&conversion.mixer), without_fla(spec, conversion));
    if spec.norm.kind != NormKind::Rms || spec.norm.eps != EPS {
        reasons.push(format!("its norms share one epsilon: ours is {EPS}, the teacher's {}", spec.norm.eps));
    }
    let (Some(form), true) = (form, reasons.is_empty()) else {
        let what = format!("this model is none of flash-linear-attention's own: {}", reasons.join("; "));
        return Err(Error::usage(what, "`subquad export` without `--format` writes a folder that transformers loads"));
    };
    let tensors = tensors(form, model, student)?;
    let copies = Copies::of(from)?;
    let place = Place::prepare(to)?;
    let folder = place.folder();
    for (name, bytes) in &copies.files {
        write_atomically(&folder.join(name), bytes)?;
    }
    let config = config(form, spec, conversion, from.config());
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

fn config(form: &Form, spec: &Spec, conversion: &Conversion, own: &Map<String, Value>) -> Map<String, Value> {
    let of_own = |key: &str| own.get(key).cloned().unwrap_or(Value::Null);
    let value = json!({
        "architectures": [form.architecture],
        "model_type": form.model_type,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.layers,
        "num_heads": spec.heads,
        "intermediate_size": spec.ffn,
        "vocab_size": spec.vocab,
        "max_position_embeddings": spec.context,
        "use_short_conv": true,
        "conv_size": 4,
        "hidden_act": "swish",
        "norm_eps": EPS,
        "tie_word_embeddings": spec.tied,
        "bos_token_id": of_own("bos_token_id"),
        "eos_token_id": of_own("eos_token_id"),
        "pad_token_id": of_own("pad_token_id"),
        "dtype": "float32",
        "torch_dtype": "float32",
    });
    let mut config = value.as_object().cloned().unwrap_or_default();
    config.extend((form.settings)(spec, conversion).as_object().cloned().unwrap_or_default());
    config
}

fn tensors(form: &Form, model: &Model, student: &Student) -> Result<BTreeMap<String, Tensor>> {
    let spec = &model.spec;
    let mut all = BTreeMap::from([
        ("model.embeddings.weight".to_string(), model.embed.clone()),
        ("model.norm.weight".to_string(), model.final_norm()?.0.clone()),
    ]);
    if !spec.tied {
        all.insert("lm_head.weight".into(), model.head.weight.clone());
    }
    for (layer, weights) in model.layers.iter().enumerate() {
        let bound: Params = Params(
            student.mixer_tensors(layer).map(|(name, _, t)| (name.to_string(), Var::constant(t.clone()))).collect(),
        );
        let mut put = |name: &str, tensor: Tensor| all.insert(format!("model.layers.{layer}.{name}"), tensor);
        put("attn_norm.weight", weights.need(Part::Norm(NormAt::Attention))?.clone());
        put("mlp_norm.weight", weights.need(Part::Norm(NormAt::Mlp))?.clone());
        for (name, target) in [("gate", Target::Gate), ("up", Target::Up), ("down", Target::Down)] {
            put(&format!("mlp.{name}_proj.weight"), weights.weight(target)?.clone());
        }
        for (name, tensor) in form.layer(spec, &student.conversion, weights, &bound)? {
            put(&format!("attn.{name}"), tensor);
        }
    }
    Ok(all)
}
