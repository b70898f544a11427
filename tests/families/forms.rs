//! The same model in the forms that stand on the Hub: configs of older versions, files without a head.

use super::*;
use serde_json::{Map, Value, json};

fn config(folder: &Path) -> Map<String, Value> {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

/// The Spec of a case under another config.json.
fn spec_of(case: &Case, config: Map<String, Value>) -> Spec {
    let dir = TempDir::new().unwrap();
    fs::copy(case.folder.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    fs::write(dir.path().join("config.json"), Value::Object(config).to_string()).unwrap();
    open(dir.path()).1.spec
}

/// Cases whose kinds of layers follow no rule.
const IRREGULAR: [&str; 2] = ["gemma2-plain", "smollm3-window"];

/// config.json as transformers 4 wrote it: rotary positions at the top level, kinds of layers by their rules.
fn older(config: &Map<String, Value>, irregular: bool) -> Map<String, Value> {
    let mut old = config.clone();
    let Some(Value::Object(rope)) = old.remove("rope_parameters") else { return old };
    let neox = config["model_type"] == "gpt_neox";
    if let (Some(full), Some(sliding)) = (rope.get("full_attention"), rope.get("sliding_attention")) {
        old.insert("rope_theta".into(), full["rope_theta"].clone());
        old.insert("rope_local_base_freq".into(), sliding["rope_theta"].clone());
        old.insert("rope_scaling".into(), json!({ "rope_type": full["rope_type"], "factor": full["factor"] }));
    } else {
        old.insert(if neox { "rotary_emb_base" } else { "rope_theta" }.into(), rope["rope_theta"].clone());
        if let Some(partial) = rope.get("partial_rotary_factor") {
            old.insert(if neox { "rotary_pct" } else { "partial_rotary_factor" }.into(), partial.clone());
        }
        let mut scaling = rope.clone();
        scaling.retain(|key, _| key != "rope_theta" && key != "partial_rotary_factor");
        let kind = scaling.remove("rope_type").unwrap();
        if kind != "default" {
            scaling.insert("type".into(), kind);
            old.insert("rope_scaling".into(), Value::Object(scaling));
        }
    }
    if !irregular {
        old.remove("layer_types");
        old.remove("no_rope_layers");
    }
    old
}

#[test]
fn configs_of_older_versions_mean_the_same() {
    let mut changed = 0;
    for case in Case::all() {
        let new = config(&case.folder);
        let old = older(&new, IRREGULAR.contains(&case.name.as_str()));
        changed += usize::from(old != new);
        assert_eq!(spec_of(&case, old), spec_of(&case, new), "{}", case.name);
    }
    assert!(changed > 30, "{changed}");
}

/// GPT-2 on the Hub was saved without a head, so without a prefix, and with the masks of its attention.
#[test]
fn files_without_a_head() {
    for name in ["gpt2", "opt", "llama-biases", "falcon"] {
        let case = Case::all().into_iter().find(|case| case.name == name).unwrap();
        let (checkpoint, model) = open(&case.folder);
        let base = model.spec.names.base;
        let bare = |name: &str| name.strip_prefix(base).unwrap_or(name).to_string();
        let mask = ("h.0.attn.bias".to_string(), DType::F32, vec![1, 1, 64, 64]);
        let tensors = model.spec.tensors();
        let mut declared: Vec<_> =
            tensors.iter().map(|(name, shape)| (bare(name), DType::BF16, shape.clone())).collect();
        declared.extend((name == "gpt2").then(|| mask.clone()));
        let dir = TempDir::new().unwrap();
        let mut writer = Writer::create(dir.path(), declared, 1 << 30).unwrap();
        for (name, _) in &tensors {
            writer.write(&bare(name), &checkpoint.tensor(name, DType::BF16).unwrap()).unwrap();
        }
        if name == "gpt2" {
            let zeros = Tensor::zeros(mask.2, DType::F32, &candle_core::Device::Cpu).unwrap();
            writer.write(&mask.0, &zeros).unwrap();
        }
        writer.finish().unwrap();
        fs::copy(case.folder.join("config.json"), dir.path().join("config.json")).unwrap();
        let (_, again) = open(dir.path());
        assert!(again.spec.bare && again.spec.mixer_prefix(1) == bare(&model.spec.mixer_prefix(1)), "{name}");
        case.logits(&again);
        case.generation(&again);
    }
}
