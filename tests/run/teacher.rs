//! Teacher and tokenizer that change between two calls.

use super::*;

/// A copy of the smallest embedded teacher, and the override that names it.
fn teacher(temp: &Path) -> (PathBuf, String) {
    let folder = temp.join("teacher");
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/stories260K"), &folder);
    let set = format!("teacher.model={}", folder.display());
    (folder, set)
}

/// The lowest bit of one number in one tensor.
fn touch_weights(teacher: &Path, tensor: &str) {
    let path = teacher.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let start = json[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[header + start + 40] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn export_adapter(run: &Path, to: &Path) -> std::process::Output {
    let mut export = std::process::Command::new(env!("CARGO_BIN_EXE_subquad"));
    export.arg("export").arg(run).arg("--to").arg(to).arg("--adapter").output().unwrap()
}

#[test]
fn one_bit_of_the_teacher_is_another_teacher() {
    let temp = tempfile::tempdir().unwrap();
    let (teacher, set) = teacher(temp.path());
    let (folder, fresh) = (temp.path().join("run"), temp.path().join("fresh"));
    run(&folder, &[&set]);
    let before = weights(&folder);
    let changed = |said: &Listener| said.said.iter().any(|line| line.contains("the teacher is not the one"));

    // Neither the embedding nor the last norm, and in a layer of which the export has a copy.
    touch_weights(&teacher, "model.layers.2.mlp.up_proj.weight");
    let again = run(&folder, &[&set]);
    assert!(changed(&again) && !again.said.iter().any(|line| line.contains("before")), "{:?}", again.said);
    run(&fresh, &[&set]);
    assert_eq!(weights(&folder), weights(&fresh));
    assert_ne!(weights(&folder), before);
    let same = run(&folder, &[&set]);
    assert!(!changed(&same), "{:?}", same.said);
    assert_eq!(same.said.iter().filter(|line| line.contains("finished before")).count(), 3, "{:?}", same.said);
}

/// Two tokens of the vocabulary change places: the same text, other ids.
#[test]
fn another_tokenizer_is_another_text() {
    let temp = tempfile::tempdir().unwrap();
    let (teacher, set) = teacher(temp.path());
    let (folder, fresh) = (temp.path().join("run"), temp.path().join("fresh"));
    run(&folder, &[&set]);

    let path = teacher.join("tokenizer.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    let (a, b) = (vocab["a"].clone(), vocab["e"].clone());
    vocab["a"] = b;
    vocab["e"] = a;
    fs::write(&path, serde_json::to_vec(&json).unwrap()).unwrap();

    let mut listener = Listener::default();
    try_run(&folder, &[&set], false, &mut listener).unwrap();
    assert!(!listener.said.iter().any(|line| line.contains("before")), "{:?}", listener.said);
    try_run(&fresh, &[&set], false, &mut Listener::default()).unwrap();
    assert_eq!(weights(&folder), weights(&fresh));
    assert_eq!(fs::read(folder.join("model/tokenizer.json")).unwrap(), fs::read(&path).unwrap());
}

/// What only the export takes from the teacher's folder changes nothing but the export.
#[test]
fn companion_files_are_part_of_the_export() {
    let temp = tempfile::tempdir().unwrap();
    let (teacher, set) = teacher(temp.path());
    let folder = temp.path().join("run");
    run(&folder, &[&set]);
    for (name, text) in [
        ("generation_config.json", r#"{"temperature": 0.5}"#),
        ("chat_template.jinja", "{{ messages }}"),
        ("tokenizer_config.json", r#"{"model_max_length": 99}"#),
        ("LICENSE", "mine"),
    ] {
        fs::write(teacher.join(name), text).unwrap();
        let again = run(&folder, &[&set]);
        assert_eq!(again.said.iter().filter(|line| line.contains("finished before")).count(), 3, "{:?}", again.said);
        assert_eq!(fs::read_to_string(folder.join("model").join(name)).unwrap(), text);
    }
    fs::write(teacher.join("README.md"), "---\nlicense: mit\n---\n").unwrap();
    run(&folder, &[&set]);
    assert!(fs::read_to_string(folder.join("model/README.md")).unwrap().contains("license: mit"));
    assert!(run(&folder, &[&set]).said.iter().any(|line| line.ends_with("unchanged")));
}

#[test]
fn an_adapter_is_exported_with_the_teacher_of_its_run_only() {
    let temp = tempfile::tempdir().unwrap();
    let (teacher, set) = teacher(temp.path());
    let (folder, to) = (temp.path().join("run"), temp.path().join("base"));
    run(&folder, &[&set]);
    let refused = |part: &str| {
        let output = export_adapter(&folder, &to);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(part) && text.contains("hint: "), "{text}");
        assert!(!to.exists());
    };
    let whole = fs::read(teacher.join("model.safetensors")).unwrap();
    touch_weights(&teacher, "model.layers.0.self_attn.q_proj.weight");
    refused("weights or configuration are others");
    fs::write(teacher.join("model.safetensors"), whole).unwrap();
    fs::write(teacher.join("special_tokens_map.json"), "{}").unwrap();
    refused("tokenizer files");
    fs::remove_file(teacher.join("special_tokens_map.json")).unwrap();

    // Another recipe was begun: its scale of the adapter does not belong to the tensors that are there.
    killed(&folder, &[&set, "stage.1.lora.alpha=1"], "LoRA", 384);
    refused("begun again with another recipe");
    run(&folder, &[&set]);
    flip(&folder.join("2-lora/student.safetensors"));
    refused("its checksum is not the one");
    flip(&folder.join("2-lora/student.safetensors"));
    let output = export_adapter(&folder, &to);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_evaluation_says_that_the_teacher_has_changed() {
    let temp = tempfile::tempdir().unwrap();
    let (teacher, set) = teacher(temp.path());
    let folder = temp.path().join("run");
    run(&folder, &[&set]);
    let evaluate = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_subquad"));
        command.arg("evaluate").arg(&folder).args(["--text", "builtin:tinystories-valid", "--tokens", "1K"]);
        let output = command.output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains("teacher"));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(!evaluate().contains("is not the teacher"));
    touch_weights(&teacher, "model.layers.0.self_attn.q_proj.weight");
    let said = evaluate();
    assert!(said.contains("is not the teacher that the run has used"), "{said}");
}
