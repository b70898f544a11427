//! Results and states that are no longer what a run has written.

use super::*;
use subquad::checkpoint::save_tensors;

/// A finished run of the test's recipe, after a calibration.
const CALIBRATED: &str = "stage.0={ kind = \"calibrate\", tokens = 256 }";

/// One way to damage a run.
type Damage<'a> = &'a dyn Fn(&Path);

/// The next run stops at this file, names it and the way out, and changes nothing.
fn stops(folder: &Path, sets: &[&str], file: &str) {
    let error = try_run(folder, sets, false, &mut Listener::default()).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    let Error::Run { path, hint, .. } = &error else { panic!("{error}") };
    assert_eq!(path, &folder.join(file), "{error}");
    assert!(hint.contains("remove this file") && hint.contains("--fresh"), "{hint}");
}

#[test]
fn a_damaged_result_is_never_taken() {
    let temp = tempfile::tempdir().unwrap();
    let whole = temp.path().join("whole");
    run(&whole, &[]);
    let damages: [(&str, Damage); 4] = [
        ("1-attention-transfer/student.safetensors", &|run| {
            flip(&run.join("1-attention-transfer/student.safetensors"))
        }),
        ("2-lora/student.safetensors", &|run| flip(&run.join("2-lora/student.safetensors"))),
        ("1-attention-transfer/student.safetensors", &|run| {
            let [one, two] =
                ["1-attention-transfer", "2-lora"].map(|stage| run.join(stage).join("student.safetensors"));
            fs::rename(&one, run.join("between")).unwrap();
            fs::rename(&two, &one).unwrap();
            fs::rename(run.join("between"), &two).unwrap();
        }),
        ("3-evaluate/report.json", &|run| {
            let path = run.join("3-evaluate/report.json");
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, text.replacen("\"tokens\": ", "\"tokens\": 1", 1)).unwrap();
        }),
    ];
    for (i, (file, damage)) in damages.into_iter().enumerate() {
        let folder = temp.path().join(i.to_string());
        copy(&whole, &folder);
        damage(&folder);
        stops(&folder, &[], file);
        // The way out, for as long as something is left to remove.
        while let Err(Error::Run { path, .. }) = try_run(&folder, &[], false, &mut Listener::default()) {
            fs::remove_file(path).unwrap();
        }
        run(&folder, &[]);
        assert_eq!(weights(&folder), weights(&whole), "{i}");
    }
}

#[test]
fn a_calibration_is_held_to_its_checksums() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("run");
    run(&folder, &[CALIBRATED]);
    for file in ["1-calibrate/student.safetensors", "1-calibrate/report.json"] {
        flip(&folder.join(file));
        stops(&folder, &[CALIBRATED], file);
        flip(&folder.join(file));
    }
    let again = run(&folder, &[CALIBRATED]);
    assert_eq!(again.said.iter().filter(|line| line.contains("finished before")).count(), 3, "{:?}", again.said);
}

/// Tensors, step and schedule of the training state.
#[test]
fn a_damaged_state_is_never_taken() {
    let temp = tempfile::tempdir().unwrap();
    let whole = temp.path().join("whole");
    run(&whole, &[]);
    let file = "1-attention-transfer/state.safetensors";
    let stopped = temp.path().join("stopped");
    killed(&stopped, &[], "attention transfer", 768);
    let word = |folder: &Path, word: &str, change: fn(&str) -> String| {
        let (tensors, mut words) = load_tensors(&folder.join(file)).unwrap();
        let value = words.get_mut(word).unwrap();
        *value = change(value);
        save_tensors(&folder.join(file), &tensors, &words).unwrap();
    };
    let other_step = |folder: &Path| word(folder, "step", |step| (step.parse::<u64>().unwrap() - 1).to_string());
    let other_schedule = |folder: &Path| word(folder, "schedule", |text| text.replacen('0', "1", 1));
    let other_key = |folder: &Path| word(folder, "key", |key| key.replacen('0', "1", 1));
    let no_digest = |folder: &Path| {
        let (tensors, mut words) = load_tensors(&folder.join(file)).unwrap();
        words.remove("sha256").unwrap();
        save_tensors(&folder.join(file), &tensors, &words).unwrap();
    };
    let renamed = |folder: &Path| {
        let (tensors, words) = load_tensors(&folder.join(file)).unwrap();
        let last = tensors.keys().next_back().unwrap().clone();
        let tensors = tensors.into_iter().map(|(name, t)| (if name == last { name + "x" } else { name }, t)).collect();
        save_tensors(&folder.join(file), &tensors, &words).unwrap();
    };
    let damages: [Damage; 6] =
        [&|folder| flip(&folder.join(file)), &other_step, &other_schedule, &other_key, &no_digest, &renamed];
    for (i, damage) in damages.into_iter().enumerate() {
        let folder = temp.path().join(i.to_string());
        copy(&stopped, &folder);
        damage(&folder);
        stops(&folder, &[], file);
        fs::remove_file(folder.join(file)).unwrap();
        run(&folder, &[]);
        assert_eq!(weights(&folder), weights(&whole), "{i}");
    }
}

#[test]
fn a_damaged_model_is_exported_again() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("run");
    run(&folder, &[]);
    let model = folder.join("model");
    let whole: Vec<(String, Vec<u8>)> = files(&model);
    let damages: [(&str, Damage); 6] = [
        ("`model.safetensors` has changed", &|model| flip(&model.join("model.safetensors"))),
        ("`tokenizer.json` is missing", &|model| fs::remove_file(model.join("tokenizer.json")).unwrap()),
        ("`config.json` has changed", &|model| fs::write(model.join("config.json"), "{").unwrap()),
        ("`config.json` is missing", &|model| fs::remove_file(model.join("config.json")).unwrap()),
        ("`README.md` has changed", &|model| fs::write(model.join("README.md"), "").unwrap()),
        ("is missing", &|model| fs::remove_dir_all(model).unwrap()),
    ];
    for (what, damage) in damages {
        damage(&model);
        let again = run(&folder, &[]);
        let said = again.said.iter().any(|line| line.contains(what) && line.contains("exported again"));
        assert!(said, "{what}: {:?}", again.said);
        assert_eq!(files(&model), whole, "{what}");
        assert!(run(&folder, &[]).said.iter().any(|line| line.ends_with("unchanged")), "{what}");
    }
    // Nor does `--fresh` meet a model that its export could not replace.
    fs::write(model.join("config.json"), "{").unwrap();
    try_run(&folder, &[], true, &mut Listener::default()).unwrap();
    assert_eq!(files(&model), whole);
}

/// A process that was killed after it had noted a stage as finished, and before it had cleared up.
#[test]
fn a_finished_stage_keeps_no_state() {
    let temp = tempfile::tempdir().unwrap();
    let (folder, stopped) = (temp.path().join("run"), temp.path().join("stopped"));
    run(&folder, &[]);
    killed(&stopped, &[], "attention transfer", 768);
    let stage = folder.join("1-attention-transfer");
    let state = "1-attention-transfer/state.safetensors";
    fs::copy(stopped.join(state), folder.join(state)).unwrap();
    for half in [".state.safetensors.partial", ".student.safetensors.partial"] {
        fs::write(stage.join(half), "half").unwrap();
    }
    fs::write(stage.join("mine.txt"), "mine").unwrap();
    run(&folder, &[]);
    let names: Vec<String> = files(&stage).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["mine.txt", "student.safetensors"]);
}

/// Its ledger has no checksums: it can be read, and what it tells of is made again.
#[test]
fn results_of_an_older_version_are_made_again() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("run");
    run(&folder, &[]);
    let before = weights(&folder);
    let path = folder.join("ledger.jsonl");
    let old = |line: &str| {
        let mut entry: serde_json::Value = serde_json::from_str(line).unwrap();
        let entry = entry.as_object_mut().unwrap();
        entry.remove("files");
        (entry["event"] == "finished").then(|| serde_json::to_string(&entry).unwrap() + "\n")
    };
    let lines: String = fs::read_to_string(&path).unwrap().lines().filter_map(old).collect();
    fs::write(&path, lines).unwrap();
    let again = run(&folder, &[]);
    assert!(again.said.iter().any(|line| line.contains("older version")), "{:?}", again.said);
    assert!(!again.said.iter().any(|line| line.contains("before")), "{:?}", again.said);
    assert_eq!(weights(&folder), before);
    let same = run(&folder, &[]);
    assert!(!same.said.iter().any(|line| line.contains("older version")), "{:?}", same.said);
}

/// The export's key is another one, so that its checksums are not looked at.
#[test]
fn a_damaged_description_does_not_stop_the_next_export() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("run");
    run(&folder, &[]);
    let (config, bf16) = (folder.join("model/config.json"), "export.dtype=bf16");
    fs::write(&config, "{").unwrap();
    run(&folder, &[bf16]);
    assert!(fs::read_to_string(&config).unwrap().contains("bfloat16"));

    // Another model in its place is nobody's to remove.
    fs::write(&config, "{}").unwrap();
    fs::write(folder.join("model/model.safetensors"), "mine").unwrap();
    for fresh in [false, true] {
        let error = try_run(&folder, &[], fresh, &mut Listener::default()).unwrap_err();
        assert!(error.to_string().contains("a model that subquad did not write"), "{error}");
        assert_eq!(fs::read_to_string(folder.join("model/model.safetensors")).unwrap(), "mine");
    }
}
