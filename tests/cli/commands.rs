//! Commands that convert nothing.

use serde_json::Value;
use std::io::{BufRead, BufReader};

use super::transcript::{TINY, Transcript, subquad};

/// Runs a command that must succeed and print JSON.
fn json(transcript: &Transcript, arguments: &[&str]) -> Value {
    let output = subquad(&transcript.path(""), arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn help() {
    let mut t = Transcript::new();
    t.run("an overview", &["--help"]);
    t.run("the version", &["--version"]);
    t.run("no command", &[]);
    t.run("an unknown command", &["covert"]);
    t.run("an argument is missing", &["generate", "builtin:stories260K"]);
    t.run("an impossible value", &["generate", "builtin:stories260K", "--prompt", "A", "--temperature", "-1"]);
    for command in
        ["convert", "sweep", "plan", "check", "inspect", "evaluate", "generate", "export", "push", "mixers", "recipes"]
    {
        let ran = t.run(command, &[command, "--help"]);
        assert_eq!(ran.status, Some(0));
    }
    t.compare("help");
}

#[test]
fn plan_and_check() {
    let mut t = Transcript::new();
    t.run("a plan", &[&["plan", "smoke"][..], &TINY].concat());
    let other = ["--set", "teacher.model=builtin:books-llama-7m", "--set", "student.keep_softmax=[0]"];
    t.run("of another teacher", &[&["plan", "smoke"][..], &TINY, &other].concat());
    t.run("a recipe without mistakes", &["check", "smoke"]);
    t.run("nothing to say", &["check", "smoke", "-q"]);
    t.run("of a teacher that is elsewhere", &["check", "smoke", "--set", "teacher.model=./elsewhere"]);
    let large = ["--set", "student.mixer=performer", "--set", "student.features=4096"];
    t.run("a state larger than what it replaces", &[&["plan", "smoke"][..], &TINY, &large].concat());
    let sets = ["student.mixer=cosformer", "student.length=400", "student.window.combine=fixed"];
    let short = sets.map(|set| ["--set", set]).concat();
    t.run("too short for the teacher's longest texts", &[&["plan", "smoke"][..], &TINY, &short].concat());
    assert_eq!(t.listing(), Vec::<String>::new(), "plans write nothing");

    let plan = json(&t, &["plan", "smoke", "--json"]);
    assert_eq!(plan["teacher"]["parameters"], 260_032);
    assert_eq!(plan["stages"].as_array().unwrap().len(), 4);
    assert!(plan["totals"]["memory"].as_u64().unwrap() > 0);
    t.compare("plan");
}

#[test]
fn inspect() {
    let mut t = Transcript::new();
    t.run("a teacher", &["inspect", "builtin:stories260K"]);
    t.run("another", &["inspect", "builtin:books-llama-7m"]);
    let json = json(&t, &["inspect", "builtin:stories260K", "--json"]);
    assert_eq!(json["layers"], 5);
    assert!(json.get("conversion").is_none());
    t.compare("inspect");
}

#[test]
fn evaluate() {
    let mut t = Transcript::new();
    let text = ["--text", "builtin:tinystories-valid", "--tokens", "2K", "--sequence", "128"];
    t.run("a model alone", &[&["evaluate", "builtin:stories260K"][..], &text].concat());
    let itself = [&["evaluate", "builtin:stories260K", "--teacher", "builtin:stories260K"][..], &text].concat();
    t.run("beside a teacher, itself", &itself);
    let report = json(&t, &[&itself[..], &["--json"]].concat());
    assert_eq!(report["perplexity"], report["teacher_perplexity"]);
    assert!(report["kl"].as_f64().unwrap().abs() < 1e-6, "{report}");
    assert_eq!(report["top1"], 1.0);
    assert_eq!(report["tokens"], 15 * 127);
    let alone = json(&t, &[&["evaluate", "builtin:stories260K", "--json", "--spread"][..], &text].concat());
    assert!(alone.get("kl").is_none() && alone["perplexity"].as_f64().unwrap() > 1.0, "{alone}");
    t.compare("evaluate");
}

#[test]
fn generate() {
    let mut t = Transcript::new();
    let prompt = ["generate", "builtin:stories260K", "--prompt", "Once upon a time", "--max-tokens", "24"];
    let greedy = t.run("the most likely tokens", &prompt);
    assert_eq!(t.run("again", &prompt).stdout, greedy.stdout);
    let drawn =
        |t: &mut Transcript, seed| t.run("drawn", &[&prompt[..], &["--temperature", "1", "--seed", seed]].concat());
    let seven = drawn(&mut t, "7");
    assert_eq!(drawn(&mut t, "7").stdout, seven.stdout);
    assert_ne!(drawn(&mut t, "8").stdout, seven.stdout);
    t.run("no token", &["generate", "builtin:stories260K", "--prompt", "Once", "--max-tokens", "0"]);
    t.run("an empty prompt begins a text", &["generate", "builtin:stories260K", "--prompt", "", "--max-tokens", "8"]);
    t.compare("generate");
}

#[test]
fn mixers_and_recipes() {
    let mut t = Transcript::new();
    let listed = t.run("all mixers", &["mixers"]).stdout;
    assert!(listed.lines().all(|line| line.chars().count() <= 80), "{listed}");
    t.run("one", &["mixers", "hedgehog"]);
    t.run("one whose layers differ, in a model", &["mixers", "hgrn2", "--for", "builtin:stories260K"]);
    t.refused("a typo", &["mixers", "hedgehogg"]);
    t.refused("a model that is not there", &["mixers", "--for", "builtin:stories"]);
    let hedgehog = json(&t, &["mixers", "hedgehog", "--json"]);
    assert_eq!(hedgehog["options"][0]["name"], "feature_width");
    // Two maps of [32, 64, 64], a scale of each head; sums of 128 features by 64 values and one.
    assert_eq!(hedgehog["added_parameters"]["most"], 2 * 32 * 64 * 64 + 32);
    assert_eq!(hedgehog["state_bytes_per_head"]["least"], 4 * 128 * 65);
    let all = json(&t, &["mixers", "--json", "--for", "builtin:books-llama-7m"]);
    let all = all.as_array().unwrap();
    assert_eq!(all[0]["name"], "hedgehog");
    for mixer in all {
        let recipe = format!(
            "[teacher]\nmodel = \"builtin:books-llama-7m\"\n{}[data]\nsource = \"builtin:books-train\"\n\
             [[stage]]\nkind = \"calibrate\"\n",
            mixer["recipe"].as_str().unwrap()
        );
        t.write("example.toml", recipe);
        let checked = subquad(&t.path(""), &["check", "example.toml"]).output().unwrap();
        assert!(checked.status.success(), "{mixer}: {}", String::from_utf8_lossy(&checked.stderr));
        assert!(listed.contains(mixer["paper"].as_str().unwrap().split(" (").next().unwrap()), "{mixer}");
    }
    std::fs::remove_file(t.path("example.toml")).unwrap();

    let listed = subquad(&t.path(""), &["recipes", "ls"]).output().unwrap().stdout;
    let listed = String::from_utf8(listed).unwrap();
    let names: Vec<&str> = listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, subquad::recipe::EMBEDDED.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    let shown = subquad(&t.path(""), &["recipes", "show", "smoke"]).output().unwrap();
    assert_eq!(shown.stdout, include_bytes!("../../recipes/smoke.toml"));
    t.run("a copy to edit", &["recipes", "cp", "smoke", "mine.toml"]);
    assert_eq!(std::fs::read(t.path("mine.toml")).unwrap(), shown.stdout);
    assert_eq!(schema_beside(&t, "mine.toml"), "schema.json");
    t.run("it is a recipe", &["check", "mine.toml"]);
    t.refused("never over a file", &["recipes", "cp", "smoke", "mine.toml"]);
    t.refused("an unknown recipe", &["recipes", "show", "smoek"]);
    t.refused("no place to write", &["recipes", "cp", "smoke", "missing/mine.toml"]);
    t.compare("mixers_and_recipes");
}

/// The name in a recipe's `#:schema` line; the file is there and is the schema.
fn schema_beside(t: &Transcript, recipe: &str) -> String {
    let text = std::fs::read_to_string(t.path(recipe)).unwrap();
    let name = text.lines().next().unwrap().strip_prefix("#:schema ./").unwrap();
    assert_eq!(std::fs::read_to_string(t.path(name)).unwrap(), subquad::recipe::schema(), "{name} beside {recipe}");
    name.to_string()
}

#[test]
fn a_copied_recipe_has_its_schema_and_no_other_file_is_lost() {
    let t = Transcript::new();
    let copy = |to: &str| subquad(&t.path(""), &["recipes", "cp", "smoke", to]).output().unwrap().status.success();
    // That of an older version is replaced.
    t.write("schema.json", r#"{"title": "subquad recipe"}"#);
    assert!(copy("one.toml"));
    assert_eq!(schema_beside(&t, "one.toml"), "schema.json");
    for foreign in [r#"{"title": "something else"}"#, "not JSON"] {
        t.write("schema.json", foreign);
        let _ = std::fs::remove_file(t.path("two.toml"));
        assert!(copy("two.toml"));
        assert_eq!(schema_beside(&t, "two.toml"), "subquad.schema.json");
        assert_eq!(std::fs::read_to_string(t.path("schema.json")).unwrap(), foreign);
    }
    t.write("subquad.schema.json", "not JSON");
    assert!(!copy("three.toml") && !t.path("three.toml").exists());
    // A recipe may itself have the schema's name.
    std::fs::remove_file(t.path("schema.json")).unwrap();
    std::fs::remove_file(t.path("subquad.schema.json")).unwrap();
    assert!(copy("schema.json"));
    assert_eq!(schema_beside(&t, "schema.json"), "subquad.schema.json");
}

#[test]
fn schema_and_completions() {
    let t = Transcript::new();
    let stdout = |arguments: &[&str]| {
        let output = subquad(&t.path(""), arguments).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(stdout(&["schema"]), include_str!("../../recipes/schema.json"));
    for (shell, mark) in
        [("bash", "complete -F _subquad"), ("zsh", "#compdef subquad"), ("fish", "complete -c subquad")]
    {
        let script = stdout(&["completions", shell]);
        assert!(script.contains(mark) && script.contains("convert"), "{shell}");
    }
}

/// `subquad ... | head -1`: the reader has what it wants.
#[test]
fn a_pipe_that_closes_early_is_no_failure() {
    let t = Transcript::new();
    for arguments in [
        &["schema"][..],
        &["completions", "zsh"],
        &["plan", "smoke"],
        &["generate", "builtin:stories260K", "--prompt", "Once", "--max-tokens", "400"],
    ] {
        let mut child = subquad(&t.path(""), arguments).spawn().unwrap();
        let mut line = String::new();
        BufReader::with_capacity(16, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("error"), "{arguments:?}");
    }
}

/// What cannot be written to stdout is a failure all the same.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_stdout_is_a_failure() {
    let mut t = Transcript::new();
    let mut command = subquad(&t.path(""), &["mixers"]);
    command.stdout(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let ran = t.record("a full disk", "mixers > /dev/full", command);
    assert_eq!(ran.status, Some(1));
    t.compare("full_stdout");
}
