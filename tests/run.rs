//! Whole conversions through the library: what is left on disk, and what a second run does.

use std::collections::BTreeMap;
use std::path::Path;
use subquad::checkpoint::{Checkpoint, Location, load_tensors};
use subquad::plan::{Machine, Plan};
use subquad::progress::{Progress, Unit};
use subquad::recipe::Recipe;
use subquad::run::convert;

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

/// Remembers what was said, and stops the run at a certain call.
#[derive(Default)]
struct Listener {
    begun: Vec<(String, u64)>,
    said: Vec<String>,
}

impl Progress for Listener {
    fn begin(&mut self, what: &str, start: u64, _: u64, _: Unit) {
        self.begun.push((what.into(), start));
    }
    fn advance(&mut self, _: u64, _: &str) {}
    fn end(&mut self, _: &str) {}
    fn say(&mut self, line: &str) {
        self.said.push(line.into());
    }
}

fn recipe(sets: &[&str]) -> Recipe {
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    Recipe::parse("test", RECIPE, None, &sets).unwrap()
}

fn run(folder: &Path, sets: &[&str]) -> Listener {
    let mut listener = Listener::default();
    let recipe = recipe(sets);
    let plan = Plan::new(&recipe, folder, Machine::measure().unwrap()).unwrap();
    let summary = convert(&recipe, &plan, false, &mut listener).unwrap();
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
