//! Adapters of PEFT: what their settings may say, and what is refused because it would be added to the wrong weights.

use super::*;

/// What PEFT 0.21 writes beside a plain LoRA.
fn current() -> Value {
    json!({
        "alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null, "auto_mapping": null,
        "base_model_name_or_path": "someone/base", "bias": "none", "corda_config": null, "ensure_weight_tying": false,
        "eva_config": null, "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true,
        "init_lora_weights": true, "kasa_config": null, "layer_replication": null, "layers_pattern": null,
        "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 6, "lora_bias": false, "lora_dropout": 0.05,
        "lora_ga_config": null, "megatron_config": null, "megatron_core": "megatron.core", "modules_to_save": null,
        "monteclora_config": null, "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16, "r": 3,
        "rank_pattern": {}, "revision": null, "target_modules": ["q_proj", "down_proj"], "target_parameters": null,
        "task_type": "CAUSAL_LM", "trainable_token_indices": null, "use_bdlora": null, "use_dora": false,
        "use_qalora": false, "use_rslora": false, "velora_config": null
    })
}

/// What PEFT 0.10 writes.
fn old() -> Value {
    json!({
        "alpha_pattern": {}, "auto_mapping": null, "base_model_name_or_path": "x", "bias": "none",
        "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true, "layer_replication": null,
        "layers_pattern": null, "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 6, "lora_dropout": 0.0,
        "megatron_config": null, "megatron_core": "megatron.core", "modules_to_save": null, "peft_type": "LORA", "r": 3,
        "rank_pattern": {}, "revision": null, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "use_dora": false,
        "use_rslora": false
    })
}

struct Folder {
    case: Case,
    dir: TempDir,
}

impl Folder {
    fn new() -> Folder {
        let (mut case, dir) = (case(), TempDir::new().unwrap());
        let adapter = Adapter { rank: 3, alpha: 6.0, targets: vec![Target::Q, Target::Down] };
        case.student.adapt(adapter, &case.model.spec, 5).unwrap();
        case.plain(&dir.path().join("model"));
        Folder { case, dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("model/adapter")
    }

    fn read(&self, config: &Value) -> subquad::Result<Adapter> {
        fs::write(self.path().join("adapter_config.json"), config.to_string()).unwrap();
        read_adapter(&self.path(), &self.case.model.spec).map(|(adapter, _)| adapter)
    }

    fn with(&self, key: &str, value: Value) -> subquad::Result<Adapter> {
        let mut config = current();
        config[key] = value;
        self.read(&config)
    }
}

#[test]
fn settings_that_change_nothing_are_read() {
    let folder = Folder::new();
    for config in [current(), old()] {
        let adapter = folder.read(&config).unwrap();
        assert_eq!((adapter.rank, adapter.alpha), (3, 6.0));
    }
    for (key, value) in [
        ("init_lora_weights", json!(false)),
        ("init_lora_weights", json!("gaussian")),
        ("init_lora_weights", json!("eva")),
        ("init_lora_weights", json!("orthogonal")),
        // An adapter that PEFT has converted keeps the settings of its initialisation.
        ("corda_config", json!({"corda_method": "ipm"})),
        ("eva_config", json!({"rho": 2.0})),
        ("auto_mapping", json!({"base_model_class": "LlamaForCausalLM", "unsloth_fixed": true})),
        ("rank_pattern", json!({"q_proj": 3})),
        ("alpha_pattern", json!({"q_proj": 6})),
        ("modules_to_save", json!([])),
        ("a_setting_of_next_year", json!(null)),
        ("another", json!(false)),
    ] {
        assert!(folder.with(key, value.clone()).is_ok(), "{key}: {value}");
    }
}

/// alpha / sqrt(r), in terms of alpha / r.
#[test]
fn the_scale_of_rslora_is_read() {
    let adapter = Folder::new().with("use_rslora", json!(true)).unwrap();
    assert_eq!(adapter.scale(), (6.0 / 3f64.sqrt()) as f32);
}

#[test]
fn settings_that_change_the_base_or_the_update_are_refused() {
    let folder = Folder::new();
    let plain = "plain LoRA of one rank";
    let convert = "path_initial_model_for_weight_conversion";
    for (key, value, what, hint) in [
        ("init_lora_weights", json!("pissa"), "has changed the weights of the base", convert),
        ("init_lora_weights", json!("pissa_niter_16"), "has changed the weights of the base", convert),
        ("init_lora_weights", json!("olora"), "has changed the weights of the base", convert),
        ("init_lora_weights", json!("OLoRA"), "has changed the weights of the base", convert),
        ("init_lora_weights", json!("corda"), "has changed the weights of the base", convert),
        ("init_lora_weights", json!("lora_ga"), "has changed the weights of the base", convert),
        ("init_lora_weights", json!("loftq"), "quantised", "init_lora_weights=True"),
        ("init_lora_weights", json!("new_way"), "not known", "init_lora_weights=True"),
        ("init_lora_weights", json!(3), "not known", "init_lora_weights=True"),
        ("alora_invocation_tokens", json!([5, 6]), "aLoRA", plain),
        ("alora_invocation_string", json!("Answer:"), "aLoRA", plain),
        ("use_dora", json!(true), "DoRA", plain),
        ("use_qalora", json!(true), "QA-LoRA", plain),
        ("use_bdlora", json!({"nblocks": 2}), "BD-LoRA", plain),
        ("lora_bias", json!(true), "has a bias", plain),
        ("bias", json!("all"), "biases", plain),
        ("modules_to_save", json!(["lm_head"]), "whole modules", plain),
        ("trainable_token_indices", json!([1]), "rows of the embedding", plain),
        ("target_parameters", json!(["experts.w1"]), "no linear layers", plain),
        ("layer_replication", json!([[0, 4], [2, 5]]), "repeated", plain),
        ("arrow_config", json!({"top_k": 1}), "Arrow", plain),
        ("megatron_config", json!({"x": 1}), "Megatron", plain),
        ("velora_config", json!({"x": 1}), "VeLoRA", plain),
        ("monteclora_config", json!({"x": 1}), "MonteCLoRA", plain),
        ("kasa_config", json!({"x": 1}), "KaSA", plain),
        ("rank_pattern", json!({"q_proj": 4}), "differs between modules", plain),
        ("alpha_pattern", json!({"q_proj": 4}), "differs between modules", plain),
        ("use_rslora", json!("yes"), "not true or false", plain),
        ("peft_type", json!("ADALORA"), "not LORA", plain),
        ("r", json!(0), "`r` is 0", plain),
        ("lora_alpha", json!("6"), "`lora_alpha` is \"6\"", plain),
        ("a_setting_of_next_year", json!(true), "is not known, and may change", "train the adapter again without it"),
    ] {
        let error = folder.with(key, value.clone()).expect_err(key);
        let (message, advice) = (error.to_string(), error.hint().unwrap());
        assert!(message.contains(&format!("`{key}`")) && message.contains(what), "{message}");
        assert!(["peft_type", "r"].contains(&key) || message.contains(&value.to_string()), "{message}");
        assert!(advice.contains(hint) && error.exit_code() == 1, "{message}: {advice}");
    }
}

#[test]
fn adapters_that_are_not_finite_are_refused() {
    let folder = Folder::new();
    let path = folder.path().join("adapter_model.safetensors");
    let (whole, metadata) = load_tensors(&path).unwrap();
    let name = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight";
    for value in [f32::NAN, f32::NEG_INFINITY] {
        let mut tensors = whole.clone();
        let mut values = tensors[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values[64 + 7] = value;
        tensors.insert(name.into(), Tensor::from_vec(values, whole[name].dims(), &Device::Cpu).unwrap());
        subquad::checkpoint::save_tensors(&path, &tensors, &metadata).unwrap();
        says(folder.read(&current()), &format!("`{name}` holds {value} at [1, 7]"));
    }
}
