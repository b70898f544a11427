//! A sweep: several mixers and windows, stopped and continued, shared by two processes, and its tables.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::transcript::{Ran, Transcript, subquad};

const RECIPE: &str = r#"
[teacher]
model = "builtin:stories260K"
[student]
mixer = "mlstm"
window = { size = 4 }
keep_softmax = [2]
[data]
source = "builtin:tinystories-valid"
sequence = 64
[[stage]]
kind = "evaluate"
text = "builtin:tinystories-valid"
tokens = 512
[[stage]]
kind = "calibrate"
tokens = 256
[[stage]]
kind = "evaluate"
text = "builtin:tinystories-valid"
tokens = 512
[[stage]]
kind = "attention-transfer"
tokens = 2048
schedule = { kind = "cosine" }
batch = { size = 2, accumulate = 1 }
[[stage]]
kind = "lora"
tokens = 1024
train_mixer = true
schedule = { kind = "cosine" }
batch = { size = 2, accumulate = 1 }
[[stage]]
kind = "merge"
[[stage]]
kind = "evaluate"
text = "builtin:tinystories-valid"
tokens = 512
"#;

/// Two mixers, two windows.
const FOUR: [&str; 6] = ["sweep", "mine.toml", "--mixers", "hedgehog,retention", "--windows", "none,16"];
const NAMES: [&str; 4] = ["hedgehog-alone", "hedgehog-window16", "retention-alone", "retention-window16"];

fn into<'a>(arguments: &[&'a str], out: &'a str) -> Vec<&'a str> {
    [arguments, &["--out", out]].concat()
}

/// A record without what depends on the machine's load.
fn record(folder: &Path, name: &str) -> Value {
    let mut record: Value = serde_json::from_slice(&fs::read(folder.join(format!("{name}.json"))).unwrap()).unwrap();
    for stage in record["stages"].as_array_mut().unwrap() {
        if let Some(training) = stage.get_mut("training") {
            assert!(training["tokens_per_second"].take().as_f64().unwrap() > 0.0);
        }
    }
    record
}

#[cfg(unix)]
#[test]
fn a_sweep_goes_on_and_may_be_shared() {
    let mut t = Transcript::new();
    t.write("mine.toml", RECIPE);
    let child = subquad(&t.path(""), &into(&FOUR, "stopped")).spawn().unwrap();
    let trained =
        || fs::read_to_string(t.path("stopped/hedgehog-window16/metrics.jsonl")).map_or(0, |text| text.lines().count());
    while trained() < 3 {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let stopped = Ran::from(child.wait_with_output().unwrap());
    assert_eq!((stopped.status, stopped.stdout.as_str()), (Some(130), ""), "{}", stopped.stderr);
    assert!(stopped.stderr.contains("run the same command again"), "{}", stopped.stderr);
    assert!(t.path("stopped/hedgehog-alone.json").exists() && !t.path("stopped/hedgehog-window16.json").exists());

    let whole = t.run("the same command again", &into(&FOUR, "stopped"));
    assert_eq!(whole.status, Some(0), "{}", whole.stderr);
    assert!(!t.path("stopped/hedgehog-alone/model").exists());
    let again = t.run("again", &into(&FOUR, "stopped"));
    assert_eq!(again.stdout, whole.stdout);
    assert!(!again.stderr.contains("LoRA") && again.stderr.contains("7-evaluate: finished before"), "{}", again.stderr);

    // Two processes, one folder.
    let half = |mixer| [&["sweep", "mine.toml", "--mixers", mixer][..], &FOUR[4..]].concat();
    let halves =
        ["hedgehog", "retention"].map(|mixer| subquad(&t.path(""), &into(&half(mixer), "shared")).spawn().unwrap());
    for half in halves {
        assert!(half.wait_with_output().unwrap().status.success());
    }
    for name in NAMES {
        assert_eq!(record(&t.path("shared"), name), record(&t.path("stopped"), name), "{name}");
    }

    // The records are all that a table needs, anywhere.
    for name in NAMES {
        t.write(&format!("copy/{name}.json"), fs::read(t.path(&format!("stopped/{name}.json"))).unwrap());
    }
    let before = t.listing();
    let copied = t.run("from the records", &into(&[&FOUR[..], &["--table"]].concat(), "copy"));
    assert_eq!((copied.status, &copied.stdout), (Some(0), &whole.stdout));
    let other = t.run("others", &into(&[&FOUR[..], &["--table", "--set", "seed=1"]].concat(), "copy"));
    assert!(other.stderr.contains("4 of 4 combinations: run with other settings"), "{}", other.stderr);
    assert!(!other.stdout.contains("retention"), "{}", other.stdout);
    assert_eq!(t.listing(), before);
}

#[test]
fn tables_say_what_the_reports_say() {
    let mut t = Transcript::new();
    t.write("mine.toml", RECIPE);
    // A window that covers a training window is refused for every mixer, and the others are run.
    let sweep = ["sweep", "mine.toml", "--mixers", "retention", "--windows", "none,16,64"];
    let ran = t.run("a combination is refused", &sweep);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert!(lines[0].starts_with("| mixer | window | ratio | KL | top-1 | layer error | state |"), "{}", ran.stdout);
    assert!(lines[4].starts_with("| retention | 64 | - | - | - | - | - | - | - |"), "{}", ran.stdout);
    let reason = "- retention, window 64: a window of 64 keys covers the whole training window of 64 tokens";
    assert!(ran.stdout.contains(reason), "{}", ran.stdout);

    // Also where no run has made the folder.
    let alone = t.run("nothing but that", &into(&[&sweep[..5], &["64"]].concat(), "refused"));
    assert_eq!(alone.status, Some(0), "{}", alone.stderr);
    assert!(alone.stdout.contains(reason) && t.path("refused/retention-window64.json").exists(), "{}", alone.stdout);

    let output = subquad(&t.path(""), &[&sweep[..], &["--table", "--json"]].concat()).output().unwrap();
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(rows.as_array().unwrap().len(), 3);
    assert!(rows[2]["failure"].is_string() && rows[2]["evaluation"].is_null());
    for (row, folder) in [(&rows[0], "runs/mine/retention-alone"), (&rows[1], "runs/mine/retention-window16")] {
        let read = |file: &str| -> Value {
            serde_json::from_slice(&fs::read(t.path(&format!("{folder}/{file}"))).unwrap()).unwrap()
        };
        let (before, after, last) =
            (read("1-evaluate/report.json"), read("3-evaluate/report.json"), read("7-evaluate/report.json"));
        let plan = read("plan.json");
        assert_eq!(plan["student"]["softmax"], serde_json::json!([2]), "the recipe's own");
        assert_eq!(row["evaluation"], last);
        assert_eq!(row["state_bytes"], plan["student"]["state_bytes"]);
        let number = |value: &Value| value.as_f64().unwrap();
        assert_eq!(number(&row["ratio"]), number(&last["perplexity"]) / number(&last["teacher_perplexity"]));
        let errors: Vec<f64> = last["layer_errors"].as_array().unwrap().iter().map(|e| number(&e["error"])).collect();
        assert_eq!((errors.len(), number(&row["layer_error"])), (4, errors.iter().sum::<f64>() / 4.0));
        let zero = &row["zero_tokens"];
        assert_eq!(
            (&zero["perplexity_before"], &zero["perplexity_after"]),
            (&before["perplexity"], &after["perplexity"])
        );
        assert!(number(&zero["layer_error_after"]) < number(&zero["layer_error_before"]), "{zero}");
        let controls = after["controls"].as_array().unwrap();
        let silent = controls.iter().find(|c| c["name"] == "silent mixer").unwrap();
        assert_eq!(zero["silent_mixer"], silent["perplexity"]);
        assert_eq!(zero["bare_window"].is_null(), row["window"].is_null());
    }
}

#[test]
fn what_cannot_be_swept() {
    let mut t = Transcript::new();
    t.write("mine.toml", RECIPE);
    let wrong = ["sweep", "mine.toml", "--mixers", "hedgehogg,retention,mlst,softermax", "--windows", "none,0,wide"];
    t.refused("all mistakes at once", &wrong);
    t.refused("the teacher is missing", &["sweep", "mine.toml", "--set", "teacher.model=./missing"]);
    t.write("run/ledger.jsonl", "");
    t.refused("the folder of a run", &["sweep", "mine.toml", "--out", "run"]);
    t.write("copy/gla-alone.json", "{}");
    t.refused("a damaged record", &["sweep", "mine.toml", "--out", "copy", "--table"]);
    t.compare("sweep");
}
