//! The comparison.

use super::*;

/// The place of a tensor's last byte in the only file of a folder.
fn last_byte(folder: &Path, name: &str) -> (PathBuf, usize) {
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let end = header[name]["data_offsets"][1].as_u64().unwrap() as usize;
    (path, 8 + length + end - 1)
}

#[test]
fn one_byte_of_any_weight_is_noticed() {
    for dtype in [DType::F32, DType::BF16] {
        let (case, dir) = (case(), TempDir::new().unwrap());
        let to = dir.path().join("model");
        case.export(&to, Form { dtype: Some(dtype), ..PLAIN }, &mut Silent).unwrap();
        assert_eq!(parity(&to, &case).unwrap(), 0.0);
        for name in [
            "model.embed_tokens.weight",
            "model.norm.weight",
            "model.layers.4.mlp.down_proj.weight",
            "model.layers.2.input_layernorm.weight",
            "model.layers.3.self_attn.mixer.k_map",
        ] {
            let (path, at) = last_byte(&to, name);
            let whole = fs::read(&path).unwrap();
            // The sign, the lowest bit of the last number, and an exponent that makes it infinite or no number.
            let width = if name.contains(".mixer.") { 4 } else { dtype.size_in_bytes() };
            for (place, flip) in [(at, 0x80), (at + 1 - width, 0x01), (at, !whole[at] & 0x7f)] {
                let mut bytes = whole.clone();
                bytes[place] ^= flip;
                fs::write(&path, bytes).unwrap();
                differs(parity(&to, &case), name);
            }
            fs::write(&path, whole).unwrap();
        }
        assert_eq!(parity(&to, &case).unwrap(), 0.0);
    }
}

#[test]
fn another_description_is_noticed() {
    let (case, dir) = (case_of(builtin(), Some(16), &[1]), TempDir::new().unwrap());
    let to = dir.path().join("model");
    case.plain(&to);
    let whole = json_of(&to.join("config.json"));
    let with = |change: &dyn Fn(&mut Map<String, Value>)| {
        let mut config = whole.clone();
        change(&mut config);
        fs::write(to.join("config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
        parity(&to, &case)
    };
    differs(with(&|c| c["subquad"]["window"]["size"] = json!(17)), "logits");
    differs(with(&|c| c["subquad"]["softmax_layers"] = json!([1, 2])), "cannot be opened again");
    differs(with(&|c| c["rope_theta"] = json!(10001.0)), "architecture");
    differs(with(&|c| c["eos_token_id"] = json!(3)), "architecture");
    differs(with(&|c| c["subquad"]["softmax_layers"] = json!([])), "cannot be opened again");
    differs(with(&|c| c["hidden_size"] = json!(65)), "cannot be opened again");
    differs(with(&|c| c["model_type"] = json!("llama")), "cannot be opened again");
    differs(with(&|c| drop(c.remove("subquad"))), "cannot be opened again");
    assert_eq!(with(&|_| ()).unwrap(), 0.0);
    fs::remove_file(to.join("model.safetensors")).unwrap();
    differs(parity(&to, &case), "cannot be opened again");
}

/// Found before anything is written, with the tensor and the place; the largest number that fits is no fault.
#[test]
fn numbers_that_are_none_or_do_not_fit_are_refused() {
    let (mut case, dir) = (case(), TempDir::new().unwrap());
    let to = dir.path().join("model");
    let weight = case.model.layers[0].weight(Target::V).unwrap().clone();
    let mut with = |value: f32, dtype: DType| {
        let mut values = weight.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values[weight.dims()[1] + 2] = value;
        case.model.set_weight(0, Target::V, Tensor::from_vec(values, weight.dims(), &Device::Cpu).unwrap());
        assert_eq!(require_range(&case.model, DType::F16).is_ok(), value.abs() < 65520.0, "{value}");
        case.export(&to, Form { dtype: Some(dtype), ..PLAIN }, &mut Silent)
    };
    let name = "`model.layers.0.self_attn.v_proj.weight`";
    for value in [65520.0, -1e9] {
        let error = with(value, DType::F16).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.hint().unwrap().contains("`export.dtype` to \"bf16\" or \"f32\""));
        let what = format!("tensor {name} holds {value} at [1, 2], which is infinite as float16");
        says::<Exported>(Err(error), &what);
    }
    says(with(f32::MAX, DType::BF16), "which is infinite as bfloat16");
    for value in [f32::NAN, f32::INFINITY] {
        let error = with(value, DType::F32).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        says::<Exported>(Err(error), &format!("export: {name} at [1, 2] is not finite"));
    }
    assert!(entries(dir.path()).is_empty());
    with(65519.0, DType::F16).unwrap();
}
