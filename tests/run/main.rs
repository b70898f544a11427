//! Whole conversions through the library: what is left on disk, and what a second run does.

mod damage;
mod folder;
mod teacher;

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use subquad::Error;
use subquad::checkpoint::{Checkpoint, Location, load_tensors};
use subquad::plan::{Machine, Plan};
use subquad::progress::{Progress, Unit};
use subquad::recipe::Recipe;
use subquad::run::{Summary, convert};

const RECIPE: &str = r#"
[teacher]
model = "builtin:stories260K"
[student]
mixer = "hedgehog"
window = { size = 16, combine = "joint" }
keep_softmax = [4]
[data]
source = "builtin:tinystories-valid"
sequence = 64
[[stage]]
kind = "attention-transfer"
tokens = 2048
optimizer = { lr = 1e-2 }
schedule = { kind = "plateau", every = 3 }
batch = { size = 2, accumulate = 1 }
checkpoint = { every = 4 }
[[stage]]
kind = "lora"
tokens = 2048
optimizer = { lr = 1e-3 }
schedule = { kind = "cosine" }
batch = { size = 2, accumulate = 1 }
checkpoint = { every = 4 }
[[stage]]
kind = "evaluate"
text = "builtin:tinystories-valid"
tokens = 1024
"#;

/// Remembers what was said, and kills the run when so much of some work is done.
#[derive(Default)]
struct Listener {
    begun: Vec<(String, u64)>,
    said: Vec<String>,
    kill: Option<(&'static str, u64)>,
}

impl Progress for Listener {
    fn begin(&mut self, what: &str, start: u64, _: u64, _: Unit) {
        self.begun.push((what.into(), start));
    }
    fn advance(&mut self, done: u64, _: &str) {
        let work = self.begun.last().map_or("", |(what, _)| what.as_str());
        if self.kill.is_some_and(|(what, tokens)| what == work && tokens == done) {
            panic!("killed");
        }
    }
    fn end(&mut self, _: &str) {}
    fn say(&mut self, line: &str) {
        self.said.push(line.into());
    }
}

fn recipe(sets: &[&str]) -> Recipe {
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    Recipe::parse("test", RECIPE, None, &sets).unwrap()
}

fn try_run(folder: &Path, sets: &[&str], fresh: bool, listener: &mut Listener) -> subquad::Result<Summary> {
    let recipe = recipe(sets);
    let plan = Plan::new(&recipe, folder, Machine::measure().unwrap()).unwrap();
    convert(&recipe, &plan, fresh, listener)
}

fn run(folder: &Path, sets: &[&str]) -> Listener {
    let mut listener = Listener::default();
    let summary = try_run(folder, sets, false, &mut listener).unwrap();
    assert_eq!(summary.reports.len(), 1);
    assert!(summary.reports[0].ratio().unwrap() < 2.0, "{:?}", summary.reports);
    listener
}

fn weights(folder: &Path) -> BTreeMap<String, Vec<f32>> {
    let (tensors, _) = load_tensors(&folder.join("model/model.safetensors")).unwrap();
    let flat = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_dtype(candle_core::DType::F32).unwrap();
    tensors.iter().map(|(n, t)| (n.clone(), flat(t).to_vec1().unwrap())).collect()
}

fn metrics(folder: &Path) -> Vec<(String, u64, f64)> {
    let text = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let line = |l: &str| {
        let v: serde_json::Value = serde_json::from_str(l).unwrap();
        (v["stage"].as_str().unwrap().to_string(), v["step"].as_u64().unwrap(), v["loss"].as_f64().unwrap())
    };
    text.lines().map(line).collect()
}

/// A copy of a folder with everything in it.
fn copy(from: &Path, to: &Path) {
    for (name, bytes) in files(from) {
        fs::create_dir_all(to.join(&name).parent().unwrap()).unwrap();
        fs::write(to.join(name), bytes).unwrap();
    }
}

/// Names and contents of all files in a folder and below it, sorted.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = vec![];
    for entry in folder.read_dir().unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            all.extend(files(&entry.path()).into_iter().map(|(inside, bytes)| (format!("{name}/{inside}"), bytes)));
        } else {
            all.push((name, fs::read(entry.path()).unwrap()));
        }
    }
    all.sort();
    all
}

/// One bit near the end of a file.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.len() - 5;
    bytes[at] ^= 0x40;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_run_leaves_what_it_promises_and_a_second_one_does_nothing_twice() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("run");
    run(&folder, &[]);
    for file in [
        "recipe.toml",
        "plan.json",
        "ledger.jsonl",
        "metrics.jsonl",
        "1-attention-transfer/student.safetensors",
        "2-lora/student.safetensors",
        "3-evaluate/report.json",
        "model/config.json",
        "model/tokenizer.json",
    ] {
        assert!(folder.join(file).exists(), "{file}");
    }
    assert!(!folder.join("1-attention-transfer/state.safetensors").exists());
    assert!(std::fs::read_to_string(folder.join("recipe.toml")).unwrap().starts_with(RECIPE));
    assert_eq!(metrics(&folder).len(), 32);
    Checkpoint::open(&Location::resolve(folder.join("model").to_str().unwrap(), None).unwrap()).unwrap();

    let report = || std::fs::read(folder.join("3-evaluate/report.json")).unwrap();
    let first = report();
    let again = run(&folder, &[]);
    assert!(again.begun.iter().all(|(what, _)| what.starts_with("tokenize")), "{:?}", again.begun);
    assert_eq!(again.said.iter().filter(|s| s.contains("finished before")).count(), 3, "{:?}", again.said);

    // A change of the second stage leaves the first alone.
    let changed = run(&folder, &["stage.1.optimizer.lr=2e-3"]);
    let works: Vec<&str> = changed.begun.iter().map(|(w, _)| w.as_str()).collect();
    assert!(!works.contains(&"attention transfer") && works.contains(&"LoRA"), "{works:?}");
    assert_eq!(metrics(&folder).len(), 32);

    // The change undone: what lies in the folders is of the changed recipe.
    let back = run(&folder, &[]);
    let works: Vec<&str> = back.begun.iter().map(|(w, _)| w.as_str()).collect();
    assert!(works.contains(&"LoRA") && works.iter().any(|w| w.starts_with("evaluate")), "{works:?}");
    assert_eq!(report(), first, "the report is of the recipe");
}

/// A run that is killed in the middle of a stage goes on from its last save and ends with the same bits.
#[test]
fn a_killed_run_goes_on_and_ends_with_the_same_weights() {
    let temp = tempfile::tempdir().unwrap();
    let (whole, killed) = (temp.path().join("whole"), temp.path().join("killed"));
    run(&whole, &[]);
    let binary = env!("CARGO_BIN_EXE_subquad");
    let recipe = temp.path().join("test.toml");
    std::fs::write(&recipe, RECIPE).unwrap();
    let mut kills = 0;
    loop {
        let mut child = std::process::Command::new(binary)
            .args(["convert", recipe.to_str().unwrap(), "--out", killed.to_str().unwrap()])
            .stderr(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let saved = |stage: &str| killed.join(stage).join("state.safetensors").exists();
        // Kill it once inside each stage, as soon as something was saved there.
        let stage = ["1-attention-transfer", "2-lora"][kills.min(1)];
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if kills < 2 && saved(stage) {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
                break None;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        };
        if let Some(status) = status {
            assert!(status.success());
            break;
        }
    }
    assert!(kills > 0, "the run was too fast to be killed");
    assert_eq!(weights(&whole), weights(&killed));
    assert_eq!(metrics(&whole), metrics(&killed));
}

/// A run that dies once `tokens` of the work `what` are done, as by a power cut.
fn killed(folder: &Path, sets: &[&str], what: &'static str, tokens: u64) {
    let mut listener = Listener { kill: Some((what, tokens)), ..Listener::default() };
    let died = catch_unwind(AssertUnwindSafe(|| try_run(folder, sets, false, &mut listener)));
    assert!(died.is_err(), "{what} never reached {tokens} tokens");
}

/// Runs the recipe in a folder of its own and gives its last update as a folder in PEFT's format.
fn adapter(temp: &Path, name: &str, sets: &[&str]) -> PathBuf {
    let (folder, base) = (temp.join(name), temp.join(format!("{name}-base")));
    run(&folder, sets);
    let mut export = std::process::Command::new(env!("CARGO_BIN_EXE_subquad"));
    let done = export.arg("export").arg(&folder).arg("--to").arg(&base).arg("--adapter").output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    base.join("adapter")
}

/// Tokens of the LoRA stage that were done before this run; `None`: it was finished.
fn lora_went_on_from(listener: &Listener) -> Option<u64> {
    listener.begun.iter().find(|(what, _)| what == "LoRA").map(|(_, start)| *start)
}

fn refused(folder: &Path, sets: &[&str], fresh: bool) {
    let error = try_run(folder, sets, fresh, &mut Listener::default()).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    let Error::Recipe { diagnostics, .. } = error else { panic!("{error}") };
    assert!(diagnostics[0].what.contains("lora.from") && diagnostics[0].what.contains("there is no such folder"));
}

/// A step is 128 tokens, and every fourth is saved.
#[test]
fn a_run_from_an_adapter_goes_on_and_ends_with_the_same_weights() {
    let temp = tempfile::tempdir().unwrap();
    let from = adapter(temp.path(), "first", &[]);
    let set = format!("stage.1.lora.from={}", from.display());
    let whole = temp.path().join("whole");
    run(&whole, &[&set]);
    assert_ne!(weights(&whole), weights(&temp.path().join("first")), "it starts elsewhere");

    for (name, what, tokens, start) in
        [("before", "attention transfer", 768, 0), ("unsaved", "LoRA", 384, 0), ("within", "LoRA", 768, 512)]
    {
        let folder = temp.path().join(name);
        killed(&folder, &[&set], what, tokens);
        assert_eq!(lora_went_on_from(&run(&folder, &[&set])), Some(start), "{name}");
        assert_eq!(weights(&folder), weights(&whole), "{name}");
        assert_eq!(metrics(&folder), metrics(&whole), "{name}");
    }
}

/// What a stage has saved holds all that came of the adapter; until then there is nothing to begin with.
#[test]
fn an_adapter_may_go_once_its_stage_has_saved_something() {
    let temp = tempfile::tempdir().unwrap();
    let from = adapter(temp.path(), "first", &[]);
    let set = format!("stage.1.lora.from={}", from.display());
    let (whole, within, before) = (temp.path().join("whole"), temp.path().join("within"), temp.path().join("before"));
    run(&whole, &[&set]);
    killed(&within, &[&set], "LoRA", 768);
    killed(&before, &[&set], "attention transfer", 768);

    let away = temp.path().join("away");
    fs::rename(&from, &away).unwrap();
    refused(&temp.path().join("new"), &[&set], false);
    assert!(!temp.path().join("new").exists());
    refused(&before, &[&set], false);
    // What was saved is of another recipe: this one begins with the adapter.
    refused(&within, &[&set, "stage.1.optimizer.lr=2e-3"], false);
    assert_eq!(lora_went_on_from(&run(&within, &[&set])), Some(512));
    assert_eq!(weights(&within), weights(&whole));
    assert_eq!(lora_went_on_from(&run(&whole, &[&set])), None);
    refused(&whole, &[&set], true);
    assert!(whole.join("2-lora/student.safetensors").exists(), "what cannot begin anew is not forgotten");

    fs::rename(&away, &from).unwrap();
    run(&before, &[&set]);
    assert_eq!(weights(&before), weights(&whole));
}

/// As with another text: what depended on the earlier one is done again.
#[test]
fn another_adapter_in_the_same_folder_is_another_start() {
    let temp = tempfile::tempdir().unwrap();
    let from = adapter(temp.path(), "first", &[]);
    let other = adapter(temp.path(), "other", &["stage.1.optimizer.lr=2e-3"]);
    let set = format!("stage.1.lora.from={}", from.display());
    let (changed, whole) = (temp.path().join("changed"), temp.path().join("whole"));
    killed(&changed, &[&set], "LoRA", 768);
    fs::rename(&from, temp.path().join("away")).unwrap();
    fs::rename(&other, &from).unwrap();
    assert_eq!(lora_went_on_from(&run(&changed, &[&set])), Some(0));
    run(&whole, &[&set]);
    assert_eq!(weights(&changed), weights(&whole));
    assert_eq!(metrics(&changed), metrics(&whole));
}
