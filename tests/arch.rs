//! From config.json to a Spec, held to the headers.

use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use subquad::Error;
use subquad::arch::{Part, Scaling, Spec, Target};
use subquad::checkpoint::{Checkpoint, Location, Writer};
use subquad::model::Model;
use tempfile::TempDir;

type Tensors = Vec<(String, DType, Vec<usize>)>;

/// The smallest Llama: two layers, two heads on one key-value head.
fn config() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 6, "max_position_embeddings": 16, "tie_word_embeddings": true,
        "eos_token_id": [2, 3]
    })
}

/// Its tensors.
fn tensors() -> Tensors {
    let mut all = vec![("model.embed_tokens.weight".to_string(), vec![8, 4]), ("model.norm.weight".into(), vec![4])];
    for layer in 0..2 {
        let block = [
            ("input_layernorm", vec![4]),
            ("self_attn.q_proj", vec![4, 4]),
            ("self_attn.k_proj", vec![2, 4]),
            ("self_attn.v_proj", vec![2, 4]),
            ("self_attn.o_proj", vec![4, 4]),
            ("post_attention_layernorm", vec![4]),
            ("mlp.gate_proj", vec![6, 4]),
            ("mlp.up_proj", vec![6, 4]),
            ("mlp.down_proj", vec![4, 6]),
        ];
        all.extend(block.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
    }
    all.into_iter().map(|(name, shape)| (name, DType::F32, shape)).collect()
}

fn write(folder: &Path, config: &Value, tensors: Tensors) {
    let mut writer = Writer::create(folder, tensors.clone(), 1 << 30).unwrap();
    for (name, dtype, shape) in tensors {
        writer.write(&name, &Tensor::zeros(shape, dtype, &Device::Cpu).unwrap()).unwrap();
    }
    writer.finish().unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

fn spec(config: &Value, tensors: Tensors) -> Result<Spec, Error> {
    let dir = TempDir::new().unwrap();
    write(dir.path(), config, tensors);
    Spec::of(&Checkpoint::open(&Location::Path(dir.path().into()))?)
}

/// `config()` with one key changed; `Null` removes it.
fn with(key: &str, value: Value) -> Value {
    let mut config = config();
    match value {
        Value::Null => drop(config.as_object_mut().unwrap().remove(key)),
        value => config[key] = value,
    }
    config
}

#[track_caller]
fn says(result: Result<Spec, Error>, what: &str, hint: &str) {
    let error = result.expect_err("an error");
    let (message, advice) = (error.to_string(), error.hint().expect("a hint"));
    assert!(message.contains(what), "`{message}` does not say `{what}`");
    assert!(advice.contains(hint), "the hint `{advice}` does not say `{hint}`");
    assert_eq!(error.exit_code(), 1);
}

#[test]
fn builtin_teachers() {
    let of = |name| Spec::of(&Checkpoint::open(&Location::resolve(name, None).unwrap()).unwrap()).unwrap();
    let stories = of("builtin:stories260K");
    assert_eq!((stories.vocab, stories.width, stories.layers, stories.ffn, stories.context), (512, 64, 5, 172, 512));
    assert_eq!((stories.heads, stories.kv_heads, stories.head_width), (8, 4, 8));
    assert_eq!((stories.bos, stories.eos.as_slice()), (Some(1), [2].as_slice()));
    assert_eq!((stories.norm.eps, stories.ropes[0].theta, stories.tied), (1e-5, 10_000.0, true));
    assert_eq!(stories.parameters(), 260_032);

    let books = of("builtin:books-llama-7m");
    assert_eq!((books.vocab, books.width, books.layers, books.ffn, books.context), (8192, 256, 6, 704, 1024));
    assert_eq!((books.heads, books.kv_heads, books.head_width), (4, 2, 64));
    assert_eq!((books.bos, books.eos.as_slice(), books.family), (Some(0), [0].as_slice(), "llama"));
    assert_eq!(books.parameters(), 6_524_160);
    let place = books.place(3, Part::Weight(Target::Q));
    assert_eq!(place, Some(("model.layers.3.self_attn.q_proj.weight".into(), 1)));
}

#[test]
fn absent_keys_take_the_defaults_of_transformers() {
    let spec = spec(&config(), tensors()).unwrap();
    assert_eq!((spec.head_width, spec.norm.eps, spec.ropes[0].theta), (2, 1e-6, 10_000.0));
    assert_eq!((spec.bos, spec.eos), (None, vec![2, 3]));
}

#[test]
fn generation_config_adds_ends() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), &config(), tensors());
    let open = || Spec::of(&Checkpoint::open(&Location::Path(dir.path().into()))?);
    let generation = dir.path().join("generation_config.json");
    fs::write(&generation, r#"{"eos_token_id": [5, 2]}"#).unwrap();
    assert_eq!(open().unwrap().eos, [2, 3, 5]);
    fs::write(&generation, r#"{"eos_token_id": 8}"#).unwrap();
    says(open(), "generation_config.json: `eos_token_id` is 8", "download");
    fs::write(&generation, "x").unwrap();
    says(open(), "generation_config.json: this is not a JSON object", "again");
}

#[test]
fn rope_theta_stands_in_either_place() {
    let theta = |config: &Value| spec(config, tensors()).unwrap().ropes[0].theta;
    assert_eq!(theta(&with("rope_theta", json!(500.5))), 500.5);
    assert_eq!(theta(&with("rope_parameters", json!({"rope_type": "default", "rope_theta": 5e5}))), 5e5);
    assert_eq!(theta(&with("rope_scaling", json!({"type": "default"}))), 1e4);
    let mut both = with("rope_parameters", json!({"rope_theta": 5e5}));
    both["rope_theta"] = json!(1e4);
    says(spec(&both, tensors()), "`rope_theta` is 10000 in one place and 500000", "trained with");
    both["rope_theta"] = json!(5e5);
    assert_eq!(theta(&both), 5e5);
}

#[test]
fn unknown_architectures() {
    says(spec(&with("model_type", json!("lama")), tensors()), "`lama` is not known", "did you mean `llama`?");
    says(
        spec(&with("model_type", json!("qwen9_vl")), tensors()),
        "`qwen9_vl` is not known",
        "near it are `qwen2`, `qwen3`",
    );
    says(
        spec(&with("model_type", json!("mamba2")), tensors()),
        "`mamba2` is not known",
        "CONTRIBUTING.md walks through",
    );
    says(spec(&with("model_type", Value::Null), tensors()), "`model_type` is missing", "`llama`");
    says(spec(&with("model_type", json!(3)), tensors()), "`model_type` is missing or not a text", "`llama`");
}

#[test]
fn what_the_decoder_does_not_do_is_refused_with_the_reason() {
    for (key, value, what) in [
        ("hidden_act", json!("mish"), "`hidden_act` is `mish`"),
        ("sliding_window", json!(4096), "`sliding_window` is set"),
        ("layer_types", json!(["full_attention", "sliding_attention"]), "`layer_types`"),
        ("layer_types", json!(["full_attention", "mamba"]), "`layer_types` has \"mamba\""),
        ("partial_rotary_factor", json!(0.5), "`partial_rotary_factor` is 0.5"),
        ("rope_scaling", json!({"type": "mrope", "mrope_section": [1, 1]}), "of the kind `mrope`"),
        ("rope_parameters", json!({"full_attention": {"rope_theta": 1e4}}), "differs between kinds of layers"),
        ("rope_parameters", json!({"partial_rotary_factor": 0.25}), "`partial_rotary_factor` is 0.25"),
    ] {
        says(spec(&with(key, value), tensors()), what, "choose another teacher");
    }
    says(spec(&with("quantization_config", json!({})), tensors()), "quantised weights", "unquantised");
    let kept = with("layer_types", json!(["full_attention", "full_attention"]));
    assert!(spec(&kept, tensors()).is_ok());
}

/// Every number of a scaling is held to bounds, and what must be there is asked for.
#[test]
fn impossible_scalings() {
    let scaled = |scaling: Value| spec(&with("rope_scaling", scaling), tensors());
    for (scaling, what) in [
        (json!({"type": "linear"}), "`factor` is missing"),
        (json!({"type": "linear", "factor": 0}), "`factor` is 0"),
        (json!({"type": "linear", "factor": "2"}), "`factor` is \"2\""),
        (json!({"type": "dynamic", "factor": 2.0}), "need more than one pair"),
        (json!({"type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}), "is not below"),
        (json!({"type": "yarn", "factor": 1e300}), "`factor` is 1e+300"),
        (json!({"type": "yarn", "factor": 2.0, "rope_theta": 1.0}), "`rope_theta` is 1"),
        (json!({"type": "yarn", "original_max_position_embeddings": 1}), "nothing can be scaled from it"),
        (json!({"type": "longrope", "short_factor": [1.0]}), "`long_factor` is missing"),
        (json!({"type": "longrope", "short_factor": [1.0], "long_factor": [1.0, 2.0]}), "have 1 and 2 numbers"),
        (json!({"type": "longrope", "short_factor": [-1.0], "long_factor": [1.0]}), "`short_factor` is [-1.0]"),
    ] {
        says(scaled(scaling), what, "download");
    }
    let kept = scaled(json!({"type": "linear", "factor": 2.0})).unwrap();
    assert_eq!(kept.ropes[0].scaling, Scaling::Linear { factor: 2.0 });
    let mut both = with("rope_scaling", json!({"type": "linear", "factor": 2.0}));
    both["rope_parameters"] = json!({"rope_type": "linear", "factor": 4.0});
    says(spec(&both, tensors()), "`rope_parameters` and `rope_scaling` scale", "trained with");
}

#[test]
fn impossible_sizes() {
    for (key, value, what) in [
        ("hidden_size", json!(0), "`hidden_size` is 0; it must be a whole number from 1"),
        ("hidden_size", json!(-4), "`hidden_size` is -4"),
        ("hidden_size", json!(4.5), "`hidden_size` is 4.5"),
        ("hidden_size", json!("4"), "`hidden_size` is \"4\""),
        ("hidden_size", json!(1u64 << 63), "`hidden_size` is 9223372036854775808"),
        ("hidden_size", Value::Null, "`hidden_size` is missing"),
        ("hidden_size", json!(5), "no multiple of `num_attention_heads`"),
        ("num_hidden_layers", json!(1_000_000_000), "`num_hidden_layers` is 1000000000"),
        ("num_key_value_heads", json!(3), "`num_attention_heads`, 2, is no multiple of `num_key_value_heads`, 3"),
        ("head_dim", json!(3), "rotary positions on 3 channels"),
        ("vocab_size", json!(u64::MAX), "`vocab_size` is 18446744073709551615"),
        ("max_position_embeddings", json!(0), "`max_position_embeddings` is 0"),
        ("rms_norm_eps", json!(0.0), "`rms_norm_eps` is 0"),
        ("rope_theta", json!(-1.0), "`rope_theta` is -1"),
        ("rope_scaling", json!("llama3"), "`rope_scaling` is \"llama3\"; it must be an object"),
        ("tie_word_embeddings", json!("yes"), "`tie_word_embeddings` is \"yes\"; it must be true or false"),
        ("eos_token_id", json!(8), "`eos_token_id` is 8; it must be token ids below the vocabulary's 8"),
        ("bos_token_id", json!("<s>"), "`bos_token_id` is \"<s>\""),
    ] {
        says(spec(&with(key, value), tensors()), what, "download");
    }
}

#[test]
fn tied_and_untied_heads() {
    let head = |shape: &[usize]| ("lm_head.weight".to_string(), DType::F32, shape.to_vec());
    let untied = with("tie_word_embeddings", json!(false));
    let with_head = |shape: &[usize]| [tensors(), vec![head(shape)]].concat();

    assert!(spec(&config(), tensors()).unwrap().tied);
    assert!(spec(&config(), with_head(&[8, 4])).unwrap().tied, "present and tied is tolerated");
    let free = spec(&untied, with_head(&[8, 4])).unwrap();
    assert_eq!(free.parameters(), spec(&config(), tensors()).unwrap().parameters() + 32);
    says(
        spec(&untied, tensors()),
        "no tensor `lm_head.weight`, and `tie_word_embeddings`",
        "set `tie_word_embeddings`",
    );
    says(spec(&untied, with_head(&[8, 5])), "`lm_head.weight` has the shape [8, 5]", "different models");
    says(spec(&config(), with_head(&[9, 4])), "`lm_head.weight` has the shape [9, 4]", "different models");
}

/// A tied model of `vocab` words whose files have a head too, in types of their own; at `at` the head has another number.
fn with_head(config: &Value, vocab: usize, dtypes: [DType; 2], at: Option<usize>) -> TempDir {
    let dir = TempDir::new().unwrap();
    let mut all = tensors();
    (all[0].1, all[0].2) = (dtypes[0], vec![vocab, 4]);
    all.push(("lm_head.weight".into(), dtypes[1], vec![vocab, 4]));
    let mut writer = Writer::create(dir.path(), all.clone(), 1 << 30).unwrap();
    for (name, _, shape) in all {
        let mut values: Vec<f32> = (0..shape.iter().product()).map(|i| (i % 100) as f32 / 8.0).collect();
        if let Some(at) = at.filter(|_| name == "lm_head.weight") {
            values[at] += 0.25;
        }
        writer.write(&name, &Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap();
    }
    writer.finish().unwrap();
    let mut config = config.clone();
    config["vocab_size"] = json!(vocab);
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

fn load(dir: &TempDir) -> Result<Spec, Error> {
    let checkpoint = Checkpoint::open(&Location::Path(dir.path().into()))?;
    let spec = Spec::of(&checkpoint)?;
    Model::load(&checkpoint, &spec)?;
    Ok(spec)
}

/// transformers 4 drops such a head and transformers 5 uses it: what its owner meant is not known.
#[test]
fn a_tied_head_with_other_numbers_is_refused() {
    let types = [DType::F32, DType::F16, DType::BF16];
    for (embed, head) in types.into_iter().flat_map(|embed| types.map(|head| (embed, head))) {
        assert!(
            load(&with_head(&config(), 8, [embed, head], None)).unwrap().tied,
            "the same numbers, {embed:?}, {head:?}"
        );
        let error = load(&with_head(&config(), 8, [embed, head], Some(13)));
        let what = "`lm_head.weight` and `model.embed_tokens.weight` differ, first at [3, 1] (1.875 and 1.625), and \
                    `tie_word_embeddings` in `config.json` is true";
        says(error, what, "`\"tie_word_embeddings\": false` in `config.json`; to use the embedding for both");
    }
    let absent = json!({ "model_type": "gemma", "head_dim": 2, "hidden_act": "gelu_pytorch_tanh" });
    let mut gemma = with("tie_word_embeddings", Value::Null);
    gemma.as_object_mut().unwrap().extend(absent.as_object().unwrap().clone());
    says(load(&with_head(&gemma, 8, [DType::F32; 2], Some(0))), "is missing, which means true", "remove the tensor");
    let untied = with("tie_word_embeddings", json!(false));
    assert!(!load(&with_head(&untied, 8, [DType::F32; 2], Some(13))).unwrap().tied);

    // Headers alone show what differs from the beginning; all of both is read with the weights.
    let late = with_head(&config(), 70_000, [DType::F32; 2], Some(4 * 70_000 - 1));
    assert!(Spec::of(&Checkpoint::open(&Location::Path(late.path().into())).unwrap()).is_ok());
    says(load(&late), "differ, first at [69999, 3]", "remove the tensor `lm_head.weight`");
}

#[test]
fn headers_are_held_to_the_config() {
    let swap = |at: usize, tensor: (&str, DType, Vec<usize>)| {
        let mut all = tensors();
        all[at] = (tensor.0.into(), tensor.1, tensor.2);
        all
    };
    let name = "model.layers.0.self_attn.q_proj.weight";
    says(spec(&config(), swap(3, (name, DType::F32, vec![4, 2]))), "has the shape [4, 2]", "different models");
    says(spec(&config(), swap(3, (name, DType::U8, vec![4, 4]))), "stored as U8", "unquantised");
    let misspelt = swap(3, ("model.layers.0.self_attn.qproj.weight", DType::F32, vec![4, 4]));
    says(spec(&config(), misspelt), &format!("no tensor `{name}`"), "the nearest is `model.layers.0.self_attn.qproj");

    let extra = |name: &str| [tensors(), vec![(name.into(), DType::F32, vec![4])]].concat();
    says(spec(&config(), extra("model.layers.0.self_attn.q_proj.bias")), "has no place", "another teacher");
    says(spec(&config(), extra("model.layers.2.input_layernorm.weight")), "has no place", "another teacher");
    assert!(spec(&config(), extra("model.layers.0.self_attn.rotary_emb.inv_freq")).is_ok(), "older files have it");
}

#[test]
fn converted_models_keep_the_teachers_spec() {
    let teacher = spec(&config(), tensors()).unwrap();
    let block = json!({"format": 1, "teacher_model_type": "llama", "mixer": "hedgehog"});
    let mut converted = with("model_type", json!("subquad"));
    converted["subquad"] = block.clone();
    converted["sliding_window"] = json!(64);
    converted["layer_types"] = json!(["hybrid_sliding", "full_attention"]);
    let extra = |name: &str| [tensors(), vec![(name.into(), DType::F32, vec![4])]].concat();
    let mixer = "model.layers.1.self_attn.mixer.map_q";
    assert_eq!(spec(&converted, extra(mixer)).unwrap(), teacher);
    says(spec(&config(), extra(mixer)), "has no place", "another teacher");
    for stray in ["model.layers.2.self_attn.mixer.map_q", "model.layers.x.self_attn.mixer.map_q", "mixer.map_q"] {
        says(spec(&converted, extra(stray)), "has no place", "another teacher");
    }

    let change = |key: &str, value: Value| {
        let mut config = converted.clone();
        config["subquad"][key] = value;
        config
    };
    says(spec(&change("format", json!(2)), tensors()), "newer subquad (format 2; this one reads 1)", "update");
    says(spec(&change("format", json!("1")), tensors()), "`subquad.format` is missing or impossible", "again");
    says(spec(&change("teacher_model_type", json!("gpt5")), tensors()), "`gpt5` is not known", "gpt2");
    says(spec(&change("teacher_model_type", json!("subquad")), tensors()), "`subquad` is not known", "teachers");
    says(spec(&with("model_type", json!("subquad")), tensors()), "the block `subquad` is missing", "again");
}
