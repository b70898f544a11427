//! Models that are missing, damaged, or not what they say.

use std::fs;

use super::transcript::Transcript;

const SETS: &[&str] = &["teacher.model=model"];
const WEIGHTS: &str = "model/model.safetensors";
const INDEX: &str = "model/model.safetensors.index.json";

/// Replaces a part of a text file.
fn edit(t: &Transcript, name: &str, from: &str, to: &str) {
    let text = fs::read_to_string(t.path(name)).unwrap();
    assert!(text.contains(from), "{name}: {from}");
    fs::write(t.path(name), text.replacen(from, to, 1)).unwrap();
}

#[test]
fn weights() {
    let mut t = Transcript::new();
    t.model("model");
    let whole = fs::read(t.path(WEIGHTS)).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;

    fs::remove_file(t.path(WEIGHTS)).unwrap();
    t.refused_conversion("no weights", SETS);
    t.write("model/pytorch_model.bin", "");
    t.refused_conversion("weights of another format", SETS);
    for (heading, length) in [
        ("an empty file", 0),
        ("cut in the length", 5),
        ("cut in the header", header / 2),
        ("cut in the tensors", whole.len() / 2),
    ] {
        t.write(WEIGHTS, &whole[..length]);
        t.refused_conversion(heading, SETS);
        t.refused(heading, &["inspect", "model"]);
    }

    let mut long = whole.clone();
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    t.write(WEIGHTS, long);
    t.refused_conversion("a header longer than any file", SETS);
    let text = String::from_utf8(whole[8..header].to_vec()).unwrap();
    for (heading, from, to) in [
        ("a shape that its bytes do not fill", "\"shape\":[512,64]", "\"shape\":[512,65]"),
        ("another type", "\"dtype\":\"F32\"", "\"dtype\":\"F16\""),
        ("another shape than config.json asks for", "\"shape\":[512,64]", "\"shape\":[64,512]"),
        ("no JSON", "{", "["),
    ] {
        assert!(text.contains(from), "{text}");
        let lie = text.replacen(from, to, 1);
        let bytes = [&(lie.len() as u64).to_le_bytes()[..], lie.as_bytes(), &whole[header..]].concat();
        t.write(WEIGHTS, bytes);
        t.refused_conversion(heading, SETS);
    }
    t.compare("weights");
}

#[test]
fn index() {
    let mut t = Transcript::new();
    t.model("model");
    fs::rename(t.path(WEIGHTS), t.path("model/model-00001-of-00002.safetensors")).unwrap();
    t.refused_conversion("a shard without an index", SETS);
    let index = |shard: &str| format!(r#"{{"metadata":{{}},"weight_map":{{"model.norm.weight":"{shard}"}}}}"#);
    t.write(INDEX, index("model-00002-of-00002.safetensors"));
    t.refused_conversion("a shard that is not there", SETS);
    t.write(INDEX, index("../model-00001-of-00002.safetensors"));
    t.refused_conversion("a shard of another folder", SETS);
    t.write(INDEX, index("/etc/passwd"));
    t.refused_conversion("a shard anywhere", SETS);
    t.write(INDEX, r#"{"weight_map":{"model.nrom.weight":"model-00001-of-00002.safetensors"}}"#);
    t.refused_conversion("a tensor that its shard does not have", SETS);
    t.write(INDEX, "{}");
    t.refused_conversion("no map", SETS);
    t.compare("index");
}

#[test]
fn description() {
    let mut t = Transcript::new();
    t.model("model");
    let config = "model/config.json";
    let whole = fs::read_to_string(t.path(config)).unwrap();
    for (heading, from, to) in [
        ("an unknown architecture", "\"model_type\": \"llama\"", "\"model_type\": \"mamba2\""),
        ("no architecture", "\"model_type\": \"llama\"", "\"model\": \"llama\""),
        ("heads that do not divide", "\"num_key_value_heads\": 4", "\"num_key_value_heads\": 3"),
        ("more layers than weights", "\"num_hidden_layers\": 5", "\"num_hidden_layers\": 6"),
        ("another vocabulary", "\"vocab_size\": 512", "\"vocab_size\": 1024"),
        ("a context of nothing", "\"max_position_embeddings\": 512", "\"max_position_embeddings\": 0"),
        ("half a file", "}", ""),
    ] {
        edit(&t, config, from, to);
        t.refused_conversion(heading, SETS);
        t.write(config, &whole);
    }
    fs::remove_file(t.path(config)).unwrap();
    t.refused_conversion("no config.json", SETS);
    t.compare("description");
}

#[test]
fn tokenizer() {
    let mut t = Transcript::new();
    t.model("model");
    let other = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/books-llama-7m/tokenizer.json");
    fs::copy(other, t.path("model/tokenizer.json")).unwrap();
    t.refused_conversion("of another model", SETS);
    t.refused("of another model", &["generate", "model", "--prompt", "Once"]);
    t.write("model/tokenizer.json", "{\"version\": \"1.0\"");
    t.refused_conversion("half a file", SETS);
    fs::remove_file(t.path("model/tokenizer.json")).unwrap();
    t.refused_conversion("none", SETS);
    t.compare("tokenizer");
}

/// Bytes of one tensor in the file of weights, changed.
fn change(t: &Transcript, name: &str, new: impl Fn(&mut [u8])) {
    let mut whole = fs::read(t.path(WEIGHTS)).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&whole[8..header]).unwrap();
    let [from, to] = [0, 1].map(|i| header + json[name]["data_offsets"][i].as_u64().unwrap() as usize);
    new(&mut whole[from..to]);
    t.write(WEIGHTS, whole);
}

/// Found when weights are read, before a text is generated, evaluated or trained on.
#[test]
fn numbers() {
    let mut t = Transcript::new();
    for (heading, value) in [("no number", f32::NAN), ("infinite", f32::NEG_INFINITY)] {
        t.model("model");
        let name = "model.layers.2.mlp.up_proj.weight";
        change(&t, name, |bytes| bytes[4 * 65..4 * 66].copy_from_slice(&value.to_le_bytes()));
        t.refused(heading, &["generate", "model", "--prompt", "Once"]);
        t.refused(heading, &["evaluate", "model", "--text", "builtin:tinystories-valid", "--tokens", "1K"]);
        t.refused_conversion(heading, SETS);
    }
    t.model("model");
    change(&t, "model.norm.weight", |bytes| bytes[..4].copy_from_slice(&1e6f32.to_le_bytes()));
    t.refused_conversion("beyond what it is to be exported in", &[SETS, &["export.dtype=\"f16\""]].concat());
    t.compare("numbers");
}

/// A head of its own in a tied model: refused by every command that reads the model.
#[test]
fn two_heads() {
    let mut t = Transcript::new();
    t.model("model");
    let whole = fs::read(t.path(WEIGHTS)).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut json: serde_json::Value = serde_json::from_slice(&whole[8..header]).unwrap();
    let [from, to] = [0, 1].map(|i| json["model.embed_tokens.weight"]["data_offsets"][i].as_u64().unwrap() as usize);
    let (end, size) = (whole.len() - header, to - from);
    json["lm_head.weight"] = serde_json::json!({"dtype": "F32", "shape": [512, 64], "data_offsets": [end, end + size]});
    let text = json.to_string();
    let mut head = whole[header + from..header + to].to_vec();
    let both = |head: &[u8]| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &whole[header..], head].concat();
    t.write(WEIGHTS, both(&head));
    let ran = t.run("the same numbers", &["generate", "model", "--prompt", "Once", "--max-tokens", "4", "-q"]);
    assert_eq!(ran.status, Some(0));
    head[3] ^= 0x80;
    t.write(WEIGHTS, both(&head));
    t.refused("other numbers", &["generate", "model", "--prompt", "Once"]);
    t.refused("other numbers", &["evaluate", "model", "--text", "builtin:tinystories-valid"]);
    t.refused("other numbers", &["inspect", "model"]);
    t.refused("other numbers", &["plan", "smoke", "--set", "teacher.model=model"]);
    t.refused_conversion("other numbers", SETS);
    t.compare("two_heads");
}

/// Files beside the weights that would be copied into the converted model: found before anything is trained.
#[cfg(unix)]
#[test]
fn companions() {
    use std::os::unix::fs::symlink;
    let mut t = Transcript::new();
    t.model("model");
    t.write("secret", "hf_SECRET");
    for (name, target) in [
        ("chat_template.jinja", "/proc/self/environ".into()),
        ("LICENSE", t.path("secret")),
        ("tokenizer_config.json", t.path("secret")),
    ] {
        let _ = fs::remove_file(t.path("model").join(name));
        symlink(target, t.path("model").join(name)).unwrap();
        t.refused("a link out of the folder", &["plan", "smoke", "--set", "teacher.model=model"]);
        t.refused_conversion("a link out of the folder", SETS);
        fs::remove_file(t.path("model").join(name)).unwrap();
    }
    t.write("model/special_tokens_map.json", "not JSON");
    t.refused_conversion("not what its name says", SETS);
    fs::remove_file(t.path("model/special_tokens_map.json")).unwrap();
    t.write("model/LICENSE.pdf", b"%PDF\xff");
    let planned = subquad_plan(&t);
    assert!(planned.contains("warning: `LICENSE.pdf` is not UTF-8 text"), "{planned}");
    t.compare("companions");
}

#[cfg(unix)]
fn subquad_plan(t: &Transcript) -> String {
    let mut command = super::transcript::subquad(&t.path(""), &["plan", "smoke", "--set", "teacher.model=model"]);
    String::from_utf8(command.output().unwrap().stderr).unwrap()
}
