//! Configs made by strangers: whatever a key says, reading ends in a Spec or in an error with a hint, never in a panic.

use super::*;
use serde_json::{Map, Value, json};
use subquad::Error;

/// What a key is replaced by.
fn values() -> Vec<Value> {
    let deep = (0..40).fold(json!(1), |inner, _| json!({ "full_attention": inner, "rope_type": "yarn" }));
    vec![
        Value::Null,
        json!(true),
        json!(false),
        json!(0),
        json!(1),
        json!(-1),
        json!(3),
        json!(1u64 << 62),
        json!(1e308),
        json!(-1e-308),
        json!(0.3),
        json!(""),
        json!("yarn"),
        json!([]),
        json!([0, 1, -1, "x", null]),
        json!(vec![1u64 << 40; 3]),
        json!({}),
        json!({"rope_type": "longrope", "short_factor": [0], "long_factor": "x", "rope_theta": 1e300}),
        json!({"rope_type": "yarn", "factor": 1e-3, "original_max_position_embeddings": 2, "beta_fast": 1e6}),
        json!({"rope_type": "dynamic", "factor": 1e6, "rope_theta": 1e15}),
        json!({"rope_type": "llama3", "factor": 1, "low_freq_factor": 1, "high_freq_factor": 1.0000001}),
        deep,
    ]
}

const EXTRA: [&str; 14] = [
    "rope_scaling",
    "rope_theta",
    "partial_rotary_factor",
    "rotary_pct",
    "quantization_config",
    "layer_types",
    "sliding_window",
    "max_window_layers",
    "no_rope_layers",
    "mlp_only_layers",
    "decoder_sparse_step",
    "query_pre_attn_scalar",
    "logits_scaling",
    "original_max_position_embeddings",
];

#[test]
fn no_config_makes_a_panic() {
    let dir = TempDir::new().unwrap();
    let (mut read, mut refused) = (0, 0);
    // One of each family.
    for case in Case::all().into_iter().filter(|case| !case.name.contains('-')) {
        fs::copy(case.folder.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
        let config: Map<String, Value> =
            serde_json::from_slice(&fs::read(case.folder.join("config.json")).unwrap()).unwrap();
        let keys: Vec<String> = config.keys().cloned().chain(EXTRA.map(String::from)).collect();
        for key in keys {
            for value in values() {
                let mut changed = config.clone();
                changed.insert(key.clone(), value.clone());
                fs::write(dir.path().join("config.json"), Value::Object(changed).to_string()).unwrap();
                let checkpoint = Checkpoint::open(&Location::Path(dir.path().into())).unwrap();
                match Spec::of(&checkpoint) {
                    Ok(spec) => {
                        read += 1;
                        assert_eq!(spec.blocks.len(), spec.layers);
                        // What fits the headers computes something, or says why not.
                        if Model::load(&checkpoint, &spec)
                            .is_ok_and(|m| View::teacher(&m).logits(&[3, 4, 5], 1).is_err())
                        {
                            assert!(spec.positions.is_some(), "{}: {key} = {value}", case.name);
                        }
                    }
                    Err(error) => {
                        refused += 1;
                        assert!(
                            error.hint().is_some() && error.exit_code() == 1,
                            "{}: {key} = {value}: {error}",
                            case.name
                        );
                        assert!(!matches!(error, Error::Internal(_) | Error::Tensor(_)), "{error}");
                    }
                }
            }
        }
    }
    assert!(read > 1000 && refused > 1000, "{read} read, {refused} refused");
}
