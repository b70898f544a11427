//! What a folder holds.

use super::*;

#[test]
fn in_f32_nothing_changes() {
    let dir = TempDir::new().unwrap();
    let (case, to) = (case(), dir.path().join("deep/er/model"));
    let exported = case.plain(&to);
    assert_eq!(exported.largest_difference, 0.0);
    assert_eq!(exported.rounding, None);
    assert_eq!(exported.folder, fs::canonicalize(&to).unwrap());
    assert_eq!(entries(to.parent().unwrap()), ["model"]);
    let names: Vec<&str> = exported.files.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, entries(&to));
    assert_eq!(
        names,
        [
            "README.md",
            "config.json",
            "configuration_subquad.py",
            "generation_config.json",
            "model.safetensors",
            "modeling_subquad.py",
            "recipe.toml",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    for file in &exported.files {
        assert_eq!(fs::metadata(to.join(&file.name)).unwrap().len(), file.bytes, "{}", file.name);
    }
    assert_eq!(exported.bytes, exported.files.iter().map(|f| f.bytes).sum::<u64>());
    assert_eq!(exported.absent.len() + 2, TOKENIZER.len());
    assert!(exported.absent.contains(&"tokenizer.model"));

    let again = open(&to);
    assert_eq!(largest(&logits(&again), &logits(&case)), 0.0);
    assert_eq!(again.student.conversion, case.student.conversion);
    assert_eq!(again.model.spec, case.model.spec);
    assert_eq!(again.student.tensors.keys().collect::<Vec<_>>(), case.student.tensors.keys().collect::<Vec<_>>());
    // The teacher's own weights would not do: the adapter is in them.
    let unmerged = case_of(builtin(), Some(16), &[]).teacher.tensor("model.layers.0.mlp.up_proj.weight", DType::F32);
    let merged = again.teacher.tensor("model.layers.0.mlp.up_proj.weight", DType::F32).unwrap();
    assert!(largest(&merged, &unmerged.unwrap()) > 1e-3);
}

#[test]
fn files_are_copied_byte_for_byte() {
    let odd = b"{ \"added\" :\t[ ] }\r\n";
    let teacher = teacher_folder(&[
        ("added_tokens.json", Some(odd)),
        ("generation_config.json", Some(b"{\"eos_token_id\": [2, 7]  }\n\n")),
        ("LICENSE", Some(b"Do as you like.\n")),
        ("NOTICE.txt", Some(b"Made by someone.\n")),
        ("weights.py", Some(b"import os\n")),
    ]);
    let case = case_of(Location::Path(teacher.path().into()), Some(16), &[]);
    let dir = TempDir::new().unwrap();
    let to = dir.path().join("model");
    let exported = case.plain(&to);
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "added_tokens.json",
        "generation_config.json",
        "LICENSE",
        "NOTICE.txt",
    ] {
        assert_eq!(fs::read(to.join(name)).unwrap(), fs::read(teacher.path().join(name)).unwrap(), "{name}");
    }
    assert_eq!(fs::read_to_string(to.join("recipe.toml")).unwrap(), RECIPE);
    assert!(!exported.absent.contains(&"added_tokens.json"));
    assert!(!to.join("weights.py").exists());
    assert_eq!(open(&to).model.spec.eos, [2, 7]);
}

#[test]
fn config_describes_the_student() {
    let dir = TempDir::new().unwrap();
    let to = dir.path().join("model");
    case_of(builtin(), Some(16), &[0, 4]).plain(&to);
    let config = json_of(&to.join("config.json"));
    let expected = json!({
        "architectures": ["SubquadForCausalLM"], "model_type": "subquad", "hidden_size": 64, "num_hidden_layers": 5,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8, "intermediate_size": 172,
        "vocab_size": 512, "max_position_embeddings": 512, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": null, "dtype": "float32", "torch_dtype": "float32",
        "use_cache": true, "hidden_act": "silu", "sliding_window": 16,
        "layer_types": ["full_attention", "hybrid_sliding", "hybrid_sliding", "hybrid_sliding", "full_attention"],
        "subquad": {
            "format": 1, "teacher_model_type": "llama", "teacher": NAME, "mixer": "hedgehog",
            "options": { "feature_width": null, "init": "identity", "output_scale": true },
            "window": { "size": 16, "combine": "joint" }, "softmax_layers": [0, 4]
        }
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(config.get(key), Some(value), "{key}");
    }
    assert_eq!(config["auto_map"]["AutoConfig"], json!("configuration_subquad.SubquadConfig"));
    assert_eq!(config["auto_map"]["AutoModelForCausalLM"], json!("modeling_subquad.SubquadForCausalLM"));
    // A softmax layer has no tensors of a mixer; the others are of one kind.
    assert_eq!(config["subquad_tensors"]["layers"], json!([null, 0, 0, 0, null]));
    let kind = json!({ "q_map": [8, 8, 8], "k_map": [8, 8, 8], "window_factor": [8] });
    assert_eq!(config["subquad_tensors"]["kinds"], json!([kind]));

    let bare = dir.path().join("bare");
    case_of(builtin(), None, &[]).plain(&bare);
    let config = json_of(&bare.join("config.json"));
    assert_eq!(config["layer_types"], json!(vec!["linear_attention"; 5]));
    assert!(!config.contains_key("sliding_window"));
}

/// What transformers 5 writes is turned into what all versions read; what made or served the teacher is dropped.
#[test]
fn newer_and_foreign_keys_of_the_teacher() {
    let mut config = builtin_config();
    config.remove("rope_theta");
    config.insert("rope_parameters".into(), json!({ "rope_type": "default", "rope_theta": 20000.0 }));
    config.insert("auto_map".into(), json!({ "AutoModel": "evil.Model" }));
    config.insert("transformers_version".into(), json!("5.23.0"));
    config.insert("eos_token_id".into(), json!([2, 5]));
    let text = serde_json::to_vec(&config).unwrap();
    let teacher = teacher_folder(&[("config.json", Some(&text)), ("generation_config.json", None)]);
    let case = case_of(Location::Path(teacher.path().into()), Some(16), &[]);
    let dir = TempDir::new().unwrap();
    let to = dir.path().join("model");
    case.plain(&to);
    let config = json_of(&to.join("config.json"));
    assert_eq!(config["rope_theta"], json!(20000.0));
    for key in ["rope_parameters", "transformers_version"] {
        assert!(!config.contains_key(key), "{key}");
    }
    assert_eq!(config["auto_map"]["AutoModel"], json!("modeling_subquad.SubquadModel"));
    let generation = json_of(&to.join("generation_config.json"));
    assert_eq!(Value::from(generation), json!({ "bos_token_id": 1, "eos_token_id": [2, 5], "pad_token_id": null }));
    assert_eq!(open(&to).model.spec, case.model.spec);
}

#[test]
fn the_card_tells_what_it_is() {
    let teacher = teacher_folder(&[("README.md", Some(b"---\nlicense: mit\ntags: [x]\n---\n# A model\n"))]);
    let mut case = case_of(Location::Path(teacher.path().into()), Some(16), &[1]);
    case.student.conversion.teacher = "someone/a-model".into();
    let dir = TempDir::new().unwrap();
    let card = |case: &Case, name: &str| {
        case.plain(&dir.path().join(name));
        fs::read_to_string(dir.path().join(name).join("README.md")).unwrap()
    };
    let text = card(&case, "hub");
    let front = "---\nbase_model: someone/a-model\nbase_model_relation: finetune\nlicense: mit\nlibrary_name: transformers\n\
                 pipeline_tag: text-generation\ntags:\n- linear-attention\n- hedgehog\n- custom_code\n---\n";
    assert!(text.starts_with(front), "{text}");
    for part in [
        "4 of 5 layers",
        "the last 16 keys",
        "keep softmax attention: 1 ",
        "subquad generate DIR",
        "subquad evaluate DIR",
        "trust_remote_code=True",
        "transformers 4.57.6 and 5.23.0",
        "| teacher | 5.000 | | |",
        "| **this model** | 5.500 | 0.1250 | 75.0% |",
        "| window only | 7.250 | 0.1250 | 75.0% |",
        "1.1000",
    ] {
        assert!(text.contains(part), "`{part}` is not in\n{text}");
    }
    case.student.conversion.teacher = "someone/a-model@refs/pr/1".into();
    assert!(card(&case, "revision").starts_with("---\nbase_model: someone/a-model\n"));
    // A path that looks like a Hub id, a builtin, and a name that would break the front matter.
    case.student.conversion.teacher = teacher.path().file_name().unwrap().to_str().unwrap().into();
    assert!(!card(&case, "path").contains("base_model"));
    let parent = teacher.path().parent().unwrap().file_name().unwrap().to_str().unwrap();
    case.student.conversion.teacher = format!("{parent}/{}", case.student.conversion.teacher);
    assert!(!card(&case, "relative").contains("base_model"));
    case.student.conversion.teacher = "/home/jo/.cache/models--some-one--Llama-1.2/snapshots/0123".into();
    assert!(card(&case, "cached").starts_with("---\nbase_model: some-one/Llama-1.2\n"));
    case.student.conversion.teacher = "/home/jo/my-model".into();
    let text = card(&case, "private");
    assert!(text.contains("# `my-model` with linear attention") && !text.contains("/home"), "{text}");
    let config = json_of(&dir.path().join("private/config.json"));
    assert_eq!(config["subquad"]["teacher"], json!("my-model"), "no way to a folder leaves the machine");
    case.student.conversion.teacher = "a/b\nlicense: none".into();
    let text = card(&case, "hostile");
    assert!(!text.contains("base_model") && !text.contains("\nlicense: none"), "{text}");
    let plain = card(&crate::case(), "builtin");
    assert!(plain.starts_with("---\nlibrary_name: transformers\n"), "{plain}");
}

/// An adapter stands beside the model, is read again as it was, and goes with the next export.
#[test]
fn an_adapter_beside_the_model() {
    let mut case = case();
    let adapter = Adapter { rank: 3, alpha: 6.0, targets: vec![Target::Q, Target::V, Target::Down] };
    case.student.adapt(adapter.clone(), &case.model.spec, 5).unwrap();
    let dir = TempDir::new().unwrap();
    let to = dir.path().join("model");
    let exported = case.plain(&to);
    assert!(exported.files.iter().any(|file| file.name == "adapter/adapter_model.safetensors"));
    let (read, tensors) = read_adapter(&to.join("adapter"), &case.model.spec).unwrap();
    assert_eq!(read, adapter);
    assert_eq!(tensors.len(), 2 * 3 * case.model.spec.layers);
    for (name, tensor) in &tensors {
        assert_eq!(largest(tensor, &case.student.tensors[name]), 0.0, "{name}");
    }
    let config = json_of(&to.join("adapter/adapter_config.json"));
    assert_eq!(config["target_modules"], json!(["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"]));

    let copied = dir.path().join("copied");
    copy(&to, &copied, &mut Silent).unwrap();
    let from = |folder: &Path| fs::read(folder.join("adapter/adapter_model.safetensors")).unwrap();
    assert_eq!(from(&copied), from(&to));
    case.student.merge(&mut case.model).unwrap();
    case.plain(&to);
    assert!(!to.join("adapter").exists(), "an earlier adapter is not left beside another model");
    says(read_adapter(&to.join("adapter"), &case.model.spec), "cannot be read");
    says(copy(dir.path(), &copied, &mut Silent), "no converted model");
}
