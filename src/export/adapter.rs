//! Adapters in PEFT's format: adapter_config.json and adapter_model.safetensors.
//!
//! A projection that has a tensor of its own is an adapter of the same name. Projections that share one (GPT-2's `c_attn`)
//! are one adapter of it: their A below each other, their B in blocks, rank and alpha as many times as large.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor};
use serde_json::{Map, Value, json};

use super::config::text;
use super::names::{ADAPTER_CONFIG, ADAPTER_WEIGHTS};
use crate::arch::{Arrangement, Part, Spec, StoredTensor, Target};
use crate::checkpoint::{device, save_tensors, write_atomically};
use crate::model::{Adapter, Model, Student, join};
use crate::{Error, Result};

/// What PEFT puts before the names of modules.
pub(super) const PREFIX: &str = "base_model.model.";

/// The targets that a tensor holds weights of, one for each of its parts.
fn targets(stored: &StoredTensor) -> Vec<Target> {
    let target = |(part, _): &(Part, Vec<usize>)| match part {
        Part::Weight(target) => Some(*target),
        _ => None,
    };
    stored.parts.iter().filter_map(target).collect()
}

/// Writes the student's adapter to `folder`; `base` is what config names as the model below it.
pub(super) fn write(folder: &Path, model: &Model, student: &Student, base: &str) -> Result<()> {
    let Some(adapter) = &student.adapter else { return Ok(()) };
    let spec = &model.spec;
    let mut tensors = BTreeMap::new();
    let (mut modules, mut ranks, mut alphas) = (vec![], Map::new(), Map::new());
    let mut transposed = false;
    for stored in spec.stored() {
        let (Some(layer), all) = (stored.layer, targets(&stored)) else { continue };
        let adapted: Vec<Target> = all.iter().copied().filter(|t| adapter.targets.contains(t)).collect();
        let Some(module) = stored.name.strip_suffix(".weight").filter(|_| !adapted.is_empty()) else { continue };
        let (a, b) = kv(spec, &stored, adapter, student, layer, &all, &adapted)?;
        tensors.insert(format!("{PREFIX}{module}.lora_A.weight"), a);
        tensors.insert(format!("{PREFIX}{module}.lora_B.weight"), b);
        let block = spec.name(spec.names.attention.split_inclusive("{}.").next().unwrap_or_default(), layer);
        let short = module.strip_prefix(&block).unwrap_or(module).to_string();
        transposed |= stored.arrangement == Arrangement::Transposed;
        if adapted.len() > 1 {
            ranks.insert(short.clone(), json!(adapter.rank * adapted.len()));
            alphas.insert(short.clone(), json!(adapter.alpha * adapted.len() as f64));
        }
        if !modules.contains(&short) {
            modules.push(short);
        }
    }
    let Value::Object(config) = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "target_modules": modules,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "use_rslora": false,
        "use_dora": false,
        "inference_mode": true,
    }) else {
        return Err(Error::Internal("an object is one".into()));
    };
    std::fs::create_dir_all(folder).map_err(Error::io(folder, "make the folder"))?;
    write_atomically(&folder.join(ADAPTER_CONFIG), &text(&config)?)?;
    save_tensors(&folder.join(ADAPTER_WEIGHTS), &tensors, &BTreeMap::from([("format".into(), "pt".into())]))
}

/// A and B of one tensor.
fn kv(
    spec: &Spec,
    stored: &StoredTensor,
    adapter: &Adapter,
    student: &Student,
    layer: usize,
    all: &[Target],
    adapted: &[Target],
) -> Result<(Tensor, Tensor)> {
    let rank = adapter.rank;
    let columns = rank * adapted.len();
    let tensor = |target: Target, which: usize| -> Result<&Tensor> {
        let names = Adapter::names(spec, layer, target);
        let found = names.and_then(|names| student.tensors.get(&names[which]));
        found.ok_or_else(|| Error::Internal(format!("layer {layer} has no adapter of `{}`", target.word())))
    };
    let a = adapted.iter().map(|t| tensor(*t, 0)).collect::<Result<Vec<_>>>()?;
    let device = a.first().map_or_else(device, |a| a.device().clone());
    let zeros = |rows: usize, columns: usize| Tensor::zeros((rows, columns), DType::F32, &device);
    let mut rows = vec![];
    for ((_, shape), target) in stored.parts.iter().zip(all) {
        rows.push(match adapted.iter().position(|t| t == target) {
            None => zeros(shape[0], columns)?,
            Some(i) => {
                let (before, after) = (zeros(shape[0], i * rank)?, zeros(shape[0], columns - (i + 1) * rank)?);
                let parts = [&before, tensor(*target, 1)?, &after];
                let parts: Vec<&Tensor> = parts.into_iter().filter(|t| t.elem_count() > 0).collect();
                Tensor::cat(&parts, 1)?
            }
        });
    }
    // B is [out, r] where the weight is [in, out] too.
    let parts = stored.parts.iter().map(|(part, shape)| (*part, vec![shape[0], columns])).collect();
    let arrangement = match stored.arrangement {
        Arrangement::Transposed => Arrangement::Rows,
        other => other,
    };
    let b = StoredTensor { parts, arrangement, ..stored.clone() };
    Ok((Tensor::cat(&a, 0)?, join(spec, &b, &rows.iter().collect::<Vec<_>>())?))
}
