//! The recipes for the models that people start from, planned against folders that have the model's config.json and tensor
//! headers and no weights: the files are sparse.
//!
//! `tests/fixtures/configs` are the published files. Names and shapes of tensors are written down here by hand, as the
//! published headers have them, rather than asked of `Spec`.

use std::fs::{self, File};
use std::path::Path;

use serde_json::{Value, json};
use subquad::Error;
use subquad::arch::Spec;
use subquad::checkpoint::{Checkpoint, HubId, Location};
use subquad::plan::{self, Machine, Plan};
use subquad::recipe::Recipe;

/// A teacher as it was published.
struct Published {
    recipe: &'static str,
    /// On its page.
    parameters: usize,
    /// In its headers.
    tensors: usize,
    /// Files of weights.
    shards: usize,
    /// Whether the file has the head beside the embedding although both are one.
    head_twice: bool,
}

const fn published(recipe: &'static str, parameters: usize, tensors: usize, shards: usize) -> Published {
    Published { recipe, parameters, tensors, shards, head_twice: false }
}

const ALL: [Published; 7] = [
    published("smollm2-135m", 134_515_008, 272, 1),
    published("qwen2.5-0.5b", 494_032_768, 290, 1),
    Published { head_twice: true, ..published("qwen3-0.6b", 596_049_920, 311, 1) },
    published("llama-3.2-1b", 1_235_814_400, 146, 1),
    published("llama-3.2-3b", 3_212_749_824, 254, 2),
    published("mistral-7b", 7_241_732_096, 291, 2),
    published("llama-3.1-8b", 8_030_261_248, 291, 4),
];

/// Names and shapes of all tensors.
fn tensors(config: &Value, head_twice: bool) -> Vec<(String, Vec<usize>)> {
    let n = |key: &str| config[key].as_u64().unwrap() as usize;
    let (width, inner, heads, kv) =
        (n("hidden_size"), n("intermediate_size"), n("num_attention_heads"), n("num_key_value_heads"));
    let head = config["head_dim"].as_u64().map_or(width / heads, |head| head as usize);
    let mut all = vec![
        ("model.embed_tokens.weight".to_string(), vec![n("vocab_size"), width]),
        ("model.norm.weight".to_string(), vec![width]),
    ];
    if head_twice || config["tie_word_embeddings"] == false {
        all.push(("lm_head.weight".into(), vec![n("vocab_size"), width]));
    }
    for layer in 0..n("num_hidden_layers") {
        let mut add = |name: &str, shape: &[usize]| all.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        add("input_layernorm.weight", &[width]);
        add("post_attention_layernorm.weight", &[width]);
        add("self_attn.q_proj.weight", &[heads * head, width]);
        add("self_attn.k_proj.weight", &[kv * head, width]);
        add("self_attn.v_proj.weight", &[kv * head, width]);
        add("self_attn.o_proj.weight", &[width, heads * head]);
        match config["model_type"].as_str().unwrap() {
            "qwen2" => {
                add("self_attn.q_proj.bias", &[heads * head]);
                add("self_attn.k_proj.bias", &[kv * head]);
                add("self_attn.v_proj.bias", &[kv * head]);
            }
            "qwen3" => {
                add("self_attn.q_norm.weight", &[head]);
                add("self_attn.k_norm.weight", &[head]);
            }
            _ => {}
        }
        add("mlp.gate_proj.weight", &[inner, width]);
        add("mlp.up_proj.weight", &[inner, width]);
        add("mlp.down_proj.weight", &[width, inner]);
    }
    all
}

/// A file of weights in bf16, all of it a hole but the header.
fn sparse(path: &Path, tensors: &[(String, Vec<usize>)]) {
    let (mut header, mut reached) = (serde_json::Map::new(), 0);
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    for (name, shape) in tensors {
        let end = reached + 2 * shape.iter().product::<usize>();
        header.insert(name.clone(), json!({ "dtype": "BF16", "shape": shape, "data_offsets": [reached, end] }));
        reached = end;
    }
    let header = Value::Object(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    fs::write(path, &bytes).unwrap();
    File::options().write(true).open(path).unwrap().set_len((bytes.len() + reached) as u64).unwrap();
}

fn folder(model: &Published, folder: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join(format!("tests/fixtures/configs/{}.json", model.recipe))).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    fs::write(folder.join("config.json"), text).unwrap();
    // A tokenizer of two tokens: plans look at the vocabulary's bounds and the end-of-text id.
    let vocab = json!({ "a": config["eos_token_id"].as_u64().unwrap() + 1, "<end>": config["eos_token_id"] });
    let tokenizer = json!({ "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "a" } });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let all = tensors(&config, model.head_twice);
    if model.shards == 1 {
        return sparse(&folder.join("model.safetensors"), &all);
    }
    let mut map = serde_json::Map::new();
    for (i, part) in all.chunks(all.len().div_ceil(model.shards)).enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", i + 1, model.shards);
        sparse(&folder.join(&file), part);
        map.extend(part.iter().map(|(name, _)| (name.clone(), json!(file))));
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn every_recipe_fits_its_teacher() {
    // Two cores of a Xeon, as `subquad plan` measured them.
    let machine = Machine { threads: 2, speed: 136e9, free_memory: None };
    for model in &ALL {
        let name = model.recipe;
        let here = tempfile::tempdir().unwrap();
        folder(model, here.path());
        let checkpoint = Checkpoint::open(&Location::Path(here.path().into())).unwrap();
        let spec = Spec::of(&checkpoint).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(spec.parameters(), model.parameters, "{name}");
        assert_eq!(checkpoint.tensors().len(), model.tensors, "{name}");
        let extra = if model.head_twice { 2 * spec.vocab * spec.width } else { 0 };
        assert_eq!(checkpoint.total_bytes(), (2 * model.parameters + extra) as u64, "{name}");

        // As it stands, the recipe names both on the Hub.
        let recipe = Recipe::load(name, &[]).unwrap();
        for text in [&recipe.teacher.model, &recipe.data.source] {
            assert!(HubId::parse(text).is_some(), "{name}: {text}");
        }
        assert!(recipe.text.contains("# Planned, not yet run with the real weights"), "{name}");

        let teacher = format!("teacher.model={}", here.path().display());
        let recipe = Recipe::load(name, &[teacher, "data.source=builtin:books-train".into()]).unwrap();
        assert_eq!(plan::check(&recipe).unwrap(), Vec::<String>::new(), "{name}");
        let plan = match Plan::new(&recipe, &here.path().join("run"), machine) {
            Ok(plan) => plan,
            // A small disk is no fault of the recipe; what it would take is right all the same.
            Err(Error::Disk { needed, .. }) => {
                assert!(needed > 2 * model.parameters as u64, "{name}");
                continue;
            }
            Err(error) => panic!("{name}: {error}"),
        };
        let totals = &plan.totals;
        // The text of this plan is six megabytes: the header says what comes on top.
        let (memory, disk) = (totals.memory as f64 / 1e9, totals.disk as f64 / 1e9);
        let hours = totals.seconds / 3600.0;
        let header =
            format!("# expected: memory {memory:.1} GB and twice the text, disk {disk:.1} GB, time {hours:.0} h:");
        assert!(recipe.text.contains(&header), "{name} does not say\n{header}");
        assert!((39_000_000..=40_100_000).contains(&totals.tokens), "{name}: {} tokens", totals.tokens);
        assert!(plan.export.bytes >= 2 * model.parameters as u64, "{name}");
        // The weights are held in f32.
        assert!(totals.memory >= 4 * model.parameters as u64, "{name}: {} bytes", totals.memory);
        assert_eq!(run_name(&plan), name);
    }
}

/// Names with dots stay whole.
fn run_name(plan: &Plan) -> String {
    let recipe = Recipe::load(&plan.recipe, &[]).unwrap();
    plan::run_folder(&recipe).file_name().unwrap().to_str().unwrap().to_string()
}
