//! PEFT's adapter_config.json: which keys are read, which cannot change what an adapter computes, and why all others are
//! refused. Fields are those of `LoraConfig` up to PEFT 0.21.

use std::path::Path;

use serde_json::{Map, Value};

use super::names::ADAPTER_CONFIG;
use crate::checkpoint::shown;
use crate::{Error, Result};

/// Largest adapter_config.json that is read.
const MAX_CONFIG: u64 = 1 << 20;

/// What is wrong where a folder holds no adapter.
pub(super) const FOLDER: &str = "give a folder with adapter_config.json and adapter_model.safetensors, as PEFT or \
                                 `subquad export --adapter` writes it";
const PLAIN: &str = "only plain LoRA of one rank can be trained further: train the adapter again as that";

/// Keys that say how an adapter was made, named or trained, or what the tensors say too: any value will do. The settings
/// of initialisations are among them, because `init_lora_weights` says whether one was used.
const HARMLESS: [&str; 20] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
];
/// Keys that [`Settings::of`] reads.
const READ: [&str; 8] =
    ["peft_type", "r", "lora_alpha", "use_rslora", "init_lora_weights", "bias", "rank_pattern", "alpha_pattern"];
/// Keys that change what an adapter computes, unless they are off, and how.
const CHANGES: [(&str, &str); 15] = [
    ("alora_invocation_tokens", "the adapter acts only behind these tokens (aLoRA)"),
    ("alora_invocation_string", "the adapter acts only behind this text (aLoRA)"),
    ("arrow_config", "it chooses between several adapters (Arrow)"),
    ("kasa_config", "the update is scaled by singular values (KaSA)"),
    ("layer_replication", "layers of the base are repeated"),
    ("lora_bias", "the update has a bias"),
    ("megatron_config", "it adapts the layers of Megatron"),
    ("modules_to_save", "it replaces whole modules of the base"),
    ("monteclora_config", "the update is drawn at random (MonteCLoRA)"),
    ("target_parameters", "it adapts parameters that are no linear layers"),
    ("trainable_token_indices", "it replaces rows of the embedding"),
    ("use_bdlora", "the update is block-diagonal (BD-LoRA)"),
    ("use_dora", "the rows of the weights are scaled (DoRA)"),
    ("use_qalora", "inputs are pooled before the update (QA-LoRA)"),
    ("velora_config", "inputs are projected before the update (VeLoRA)"),
];
/// Initialisations that leave the weights of the base as they are.
const KEEPING: [&str; 3] = ["gaussian", "eva", "orthogonal"];
/// Initialisations that take their part out of the weights of the base, by how their names begin; PEFT can give it back.
const CONVERTIBLE: [&str; 4] = ["pissa", "olora", "corda", "lora_ga"];

/// What an adapter_config.json says of an adapter that can be trained further.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub rank: usize,
    /// The update is alpha / rank times the product; where `use_rslora` is true, this is `lora_alpha` times the root of
    /// the rank.
    pub alpha: f64,
    /// What it names as the model below it.
    pub base: Option<String>,
}

impl Settings {
    /// Reads the adapter_config.json of a folder.
    pub fn open(folder: &Path) -> Result<Settings> {
        let path = folder.join(ADAPTER_CONFIG);
        let wrong = |what: String| Error::file(&path, what, FOLDER);
        let found = std::fs::metadata(&path).map_err(|e| wrong(format!("cannot be read: {e}")))?;
        if !found.is_file() || found.len() > MAX_CONFIG {
            return Err(wrong(format!("is no file of at most {MAX_CONFIG} bytes")));
        }
        let bytes = std::fs::read(&path).map_err(|e| wrong(format!("cannot be read: {e}")))?;
        let config = serde_json::from_slice(&bytes).map_err(|e| wrong(format!("is no JSON object: {e}")))?;
        Settings::of(&config, &path)
    }

    fn of(config: &Map<String, Value>, path: &Path) -> Result<Settings> {
        let refused = |what: String, hint: &str| Error::file(path, what, hint);
        let wrong = |key: &str, expected: &str| refused(format!("{}, and not {expected}", said(config, key)), PLAIN);
        if config.get("peft_type").and_then(Value::as_str) != Some("LORA") {
            return Err(refused("`peft_type` is not LORA".into(), PLAIN));
        }
        let rank = config.get("r").and_then(Value::as_u64).filter(|r| *r > 0).and_then(|r| usize::try_from(r).ok());
        let rank = rank.ok_or_else(|| wrong("r", "a rank"))?;
        let alpha = config.get("lora_alpha").and_then(Value::as_f64).filter(|a| *a > 0.0);
        let alpha = alpha.ok_or_else(|| wrong("lora_alpha", "a scale"))?;
        initial(config).map_err(|(what, hint)| refused(what, &hint))?;
        if config.get("bias").is_some_and(|bias| !off(bias) && bias != "none") {
            return Err(refused(format!("{}: it changes biases of the base", said(config, "bias")), PLAIN));
        }
        for (key, one) in [("rank_pattern", rank as f64), ("alpha_pattern", alpha)] {
            let same = |value: &Value| value.as_f64() == Some(one);
            let alike = |value: &Value| off(value) || value.as_object().is_some_and(|map| map.values().all(same));
            if config.get(key).is_some_and(|value| !alike(value)) {
                return Err(refused(format!("{}: it differs between modules", said(config, key)), PLAIN));
            }
        }
        others(config).map_err(|(what, hint)| refused(what, hint))?;
        let root = match config.get("use_rslora") {
            Some(Value::Bool(true)) => (rank as f64).sqrt(),
            Some(value) if !off(value) => return Err(wrong("use_rslora", "true or false")),
            _ => 1.0,
        };
        let base = config.get("base_model_name_or_path").and_then(Value::as_str).filter(|base| !base.is_empty());
        Ok(Settings { rank, alpha: alpha * root, base: base.map(String::from) })
    }
}

/// Whether the initialisation has left the base as it was; what it did else, and what to do about it.
fn initial(config: &Map<String, Value>) -> Result<(), (String, String)> {
    let key = "init_lora_weights";
    let word = match config.get(key) {
        None | Some(Value::Null | Value::Bool(_)) => return Ok(()),
        Some(value) => value.as_str().unwrap_or_default().to_lowercase(),
    };
    if KEEPING.contains(&word.as_str()) {
        return Ok(());
    }
    let said = said(config, key);
    if CONVERTIBLE.iter().any(|name| word.starts_with(name)) {
        return Err((
            format!("{said}: this initialisation has changed the weights of the base, and the adapter fits only those"),
            "convert it to plain LoRA with PEFT: `model.save_pretrained(OUT, \
             path_initial_model_for_weight_conversion=INITIAL)`, where INITIAL is the adapter as it was saved before its \
             training"
                .into(),
        ));
    }
    let how = match word.as_str() {
        "loftq" => "the base was quantised for it (LoftQ), and the adapter fits only those weights",
        _ => "this initialisation is not known, and may have changed the weights of the base",
    };
    Err((format!("{said}: {how}"), "train the adapter again with `init_lora_weights=True`".into()))
}

/// Whether all keys that are not read are harmless or off; the first that is not, and what to do about it.
fn others(config: &Map<String, Value>) -> Result<(), (String, &'static str)> {
    let harmless = |key: &str| HARMLESS.contains(&key) || READ.contains(&key);
    let Some((key, value)) = config.iter().find(|(key, value)| !off(value) && !harmless(key)) else { return Ok(()) };
    let said = format!("`{}` is {}", shown(key), shown(&value.to_string()));
    Err(match CHANGES.iter().find(|(name, _)| name == key) {
        Some((_, how)) => (format!("{said}: {how}"), PLAIN),
        None => (
            format!("{said}: this setting is not known, and may change what the adapter computes"),
            "train the adapter again without it; if it changes nothing about a trained adapter, remove it from this file",
        ),
    })
}

/// What PEFT writes of a setting that is not used.
fn off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn said(config: &Map<String, Value>, key: &str) -> String {
    match config.get(key) {
        None => format!("`{key}` is missing"),
        Some(value) => format!("`{key}` is {}", shown(&value.to_string())),
    }
}
