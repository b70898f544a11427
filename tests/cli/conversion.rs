//! A conversion from the recipe to the model, and what can be done with it.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::transcript::{TINY, Transcript, subquad};

const SMOKE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/recipes/smoke.toml");
const TEXT: [&str; 6] = ["--text", "builtin:tinystories-valid", "--tokens", "2K", "--sequence", "128"];

fn json(folder: &Path, arguments: &[&str]) -> Value {
    let output = subquad(folder, arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn convert_and_use() {
    let mut t = Transcript::new();
    fs::copy(SMOKE, t.path("smoke.toml")).unwrap();
    let convert = [&["convert", "smoke.toml"][..], &TINY].concat();
    let first = t.run("a conversion", &convert);
    assert_eq!((first.status, first.stdout.as_str()), (Some(0), "runs/smoke/model\n"));
    t.run("again: nothing is done twice", &convert);
    let weights = fs::read(t.path("runs/smoke/model/model.safetensors")).unwrap();

    t.run("the model, by its run", &["inspect", "runs/smoke"]);
    t.run("its scores", &[&["evaluate", "runs/smoke"][..], &TEXT].concat());
    let prompt = ["generate", "runs/smoke/model", "--prompt", "Once upon a time", "--max-tokens", "8"];
    let generated = subquad(&t.path(""), &prompt).output().unwrap();
    assert!(String::from_utf8(generated.stdout).unwrap().starts_with("Once upon a time"));

    let report = json(&t.path(""), &[&["evaluate", "runs/smoke/model", "--json"][..], &TEXT].concat());
    for key in ["tokens", "perplexity", "teacher_perplexity", "kl", "top1"] {
        assert!(report[key].as_f64().is_some_and(|x| x > 0.0), "{key}: {report}");
    }
    let controls: Vec<&str> =
        report["controls"].as_array().unwrap().iter().filter_map(|c| c["name"].as_str()).collect();
    assert_eq!(controls, ["window only", "linear only", "bare window", "silent mixer"]);
    // What the conversion itself said of the same text.
    let own: Value = serde_json::from_slice(&fs::read(t.path("runs/smoke/4-evaluate/report.json")).unwrap()).unwrap();
    assert!((own["perplexity"].as_f64().unwrap() - report["perplexity"].as_f64().unwrap()).abs() < 1e-3);
    assert_eq!(json(&t.path(""), &["inspect", "runs/smoke", "--json"])["conversion"]["mixer"], "hedgehog");

    t.refused("a converted model is no teacher", &["convert", "smoke.toml", "--set", "teacher.model=runs/smoke/model"]);
    let teacher = [&["evaluate", "builtin:stories260K", "--teacher", "runs/smoke"][..], &TEXT].concat();
    t.refused("neither is it one to compare with", &teacher);

    let adapter = ["export", "runs/smoke", "--to", "out/base", "--adapter"];
    let base = |t: &Transcript| {
        let config = fs::read(t.path("out/base/adapter/adapter_config.json")).unwrap();
        serde_json::from_slice::<Value>(&config).unwrap()["base_model_name_or_path"].clone()
    };
    t.run("its last update apart", &adapter);
    assert_eq!(base(&t), "base");
    t.run("for a base that goes elsewhere", &[&adapter[..], &["--base", "me/smoke"]].concat());
    assert_eq!(base(&t), "me/smoke");
    t.refused("a base of no update", &["export", "runs/smoke", "--to", "out/copy", "--base", "me/smoke"]);
    assert_eq!(t.run("a base without a name", &[&adapter[..], &["--base="]].concat()).status, Some(1));

    // `--fresh` removes what runs write, and nothing else.
    t.write("runs/smoke/notes.txt", "mine");
    t.write("runs/smoke/2-notes/page.txt", "mine");
    let fresh = t.run("from the beginning", &[&convert[..], &["--fresh", "-q"]].concat());
    assert_eq!((fresh.status, fresh.stderr.as_str()), (Some(0), ""));
    assert_eq!(fs::read(t.path("runs/smoke/model/model.safetensors")).unwrap(), weights, "runs are deterministic");
    assert!(t.path("runs/smoke/notes.txt").exists() && t.path("runs/smoke/2-notes/page.txt").exists());

    t.write("runs/smoke/2-lora/student.safetensors", "damaged");
    let damaged = t.run("a damaged file of the run", &convert);
    assert_eq!((damaged.status, damaged.stdout.as_str()), (Some(1), ""));
    fs::remove_file(t.path("runs/smoke/2-lora/student.safetensors")).unwrap();
    let repaired = t.run("without it", &convert);
    assert_eq!(repaired.status, Some(0));
    assert_eq!(fs::read(t.path("runs/smoke/model/model.safetensors")).unwrap(), weights);
    t.compare("conversion");
}

/// Two commands that evaluate the same model on the same text print the same figures, and windows longer than those of
/// the training are said to be so.
#[test]
fn evaluate_repeats_the_run() {
    let mut t = Transcript::new();
    fs::copy(SMOKE, t.path("smoke.toml")).unwrap();
    let convert = [&["convert", "smoke.toml"][..], &TINY, &["--set", "stage.3.spread=true"]].concat();
    assert_eq!(t.run("a conversion", &convert).status, Some(0));
    let own: Value = serde_json::from_slice(&fs::read(t.path("runs/smoke/4-evaluate/report.json")).unwrap()).unwrap();
    assert_eq!((&own["part"], &own["sequence"]), (&"spread".into(), &128.into()));
    let same = |report: &Value| {
        for key in ["tokens", "windows", "sequence", "part", "text", "location"] {
            assert_eq!(report[key], own[key], "{key}");
        }
        for key in ["perplexity", "teacher_perplexity", "kl"] {
            let (a, b) = (report[key].as_f64().unwrap(), own[key].as_f64().unwrap());
            assert!((a / b - 1.0).abs() < 1e-4, "{key}: {a} instead of {b}");
        }
    };
    same(&json(&t.path(""), &["evaluate", "runs/smoke", "--json"]));
    same(&json(&t.path(""), &["evaluate", "runs/smoke/model", "--text", "builtin:tinystories-valid", "--json"]));
    let start = json(&t.path(""), &["evaluate", "runs/smoke", "--spread=false", "--json"]);
    assert_eq!((&start["part"], &start["tokens"]), (&"start".into(), &own["tokens"]));
    assert!(start["perplexity"] != own["perplexity"]);
    let all = json(&t.path(""), &["evaluate", "runs/smoke", "--tokens", "all", "--json"]);
    assert_eq!(all["part"], "whole");

    t.run("longer than the training", &["evaluate", "runs/smoke", "--sequence", "512"]);
    let export = subquad(&t.path(""), &["export", "runs/smoke", "--to", "out/model"]).output().unwrap();
    assert!(export.status.success(), "{}", String::from_utf8_lossy(&export.stderr));
    let elsewhere = ["evaluate", "out/model", "--text", "builtin:tinystories-valid", "--tokens", "2K"];
    t.run("at the length of its training", &elsewhere);
    t.run("no text is known", &["evaluate", "out/model"]);
    t.run("a part of nothing", &[&elsewhere[..4], &["--spread"]].concat());
    let plan = [&["plan", "smoke.toml"][..], &TINY, &["--set", "stage.3.sequence=512"]].concat();
    t.run("a plan that goes beyond", &plan);
    t.compare("evaluate_repeats_the_run");
}

/// The CPU without its kernels computes by the operators' formulas, as a new device does: a whole conversion gives the same
/// losses and scores to rounding.
#[test]
fn without_kernels_a_conversion_is_the_same_to_rounding() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(SMOKE, folder.path().join("smoke.toml")).unwrap();
    let convert = |kernels: &str| -> (Vec<f64>, Value) {
        let arguments = [&["convert", "smoke.toml", "--out", kernels][..], &TINY].concat();
        let output = subquad(folder.path(), &arguments).env("SUBQUAD_CPU_KERNELS", kernels).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let run = folder.path().join(kernels);
        let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let loss = |line: &str| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap();
        let report = fs::read(run.join("4-evaluate/report.json")).unwrap();
        (metrics.lines().map(loss).collect(), serde_json::from_slice(&report).unwrap())
    };
    let ((kernels, report), (formulas, by_formulas)) = (convert("1"), convert("0"));
    assert_eq!((kernels.len(), formulas.len()), (16, 16));
    for (a, b) in kernels.iter().zip(&formulas) {
        assert!((a / b - 1.0).abs() < 1e-4, "{a} and {b}");
    }
    assert!(kernels != formulas, "formulas round in another way than kernels");
    let (a, b) = (report["perplexity"].as_f64().unwrap(), by_formulas["perplexity"].as_f64().unwrap());
    assert!((a / b - 1.0).abs() < 1e-4, "{a} and {b}");
}
