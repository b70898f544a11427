//! What users get wrong: recipes, paths, texts, folders, disks.

use std::fs::{self, File};
use std::process::Command;

use super::transcript::{TINY, Transcript, quiet};

const MISTAKES: &str = r#"
[teacher]
model = "builtin:stories260K"
[student]
mixer = "hedgehog"
widnow = { size = 16 }
init = "identical"
[data]
source = "builtin:tinystories"
sequence = 0
[[stage]]
kind = "attention-transfer"
tokens = "many"
schedule = { kind = "cosine", warmup = -1 }
[[stage]]
kind = "marge"
"#;

#[test]
fn recipes() {
    let mut t = Transcript::new();
    t.refused("no recipe of that name", &["convert", "quikstart"]);
    t.refused("a model is no recipe", &["convert", "builtin:stories260K"]);
    t.write("mine.toml", MISTAKES);
    t.refused("all mistakes at once", &["convert", "mine.toml"]);
    t.refused("the same to those who ask", &["check", "mine.toml"]);
    t.write("torn.toml", "[teacher]\nmodel = \"builtin:stories260K\n");
    t.refused("no TOML", &["check", "torn.toml"]);
    t.refused("an override without value", &["convert", "smoke", "--set", "seed"]);
    t.refused("an override of nothing", &["convert", "smoke", "--set", "stage.9.tokens=1M", "--set", "sed=1"]);
    t.refused_conversion("a layer that the teacher does not have", &["student.keep_softmax=[1, 5]"]);
    t.refused_conversion("nothing is left to replace", &["student.keep_softmax=[0, 1, 2, 3, 4]"]);
    t.compare("recipes");
}

const UNFIT: &str = r#"
[teacher]
model = "builtin:stories260K"
[student]
mixer = "based"
feature_width = 32
keep_softmax = [1, 9]
[data]
source = "builtin:tinystories"
sequence = 128
[[stage]]
kind = "attention-transfer"
tokens = "4K"
loss = { weights = 1.0 }
"#;

/// Recipes without a mistake of their own, and mixers that cannot serve the teacher, the texts or a stage.
#[test]
fn students() {
    let mut t = Transcript::new();
    t.write("unfit.toml", UNFIT);
    t.refused("the mixer, a layer and a loss, at once", &["plan", "unfit.toml"]);
    t.refused("the same to those who check", &["check", "unfit.toml"]);
    t.refused("and to those who convert", &["convert", "unfit.toml"]);
    let mut with = |heading: &str, mixer: &str| {
        let fit = UNFIT.replace("[1, 9]", "[1]").replace("weights = 1.0", "output = 1.0");
        t.write("one.toml", fit.replace("mixer = \"based\"\nfeature_width = 32", mixer));
        t.refused(heading, &["plan", "one.toml"]);
    };
    with("a reduction that widens", "mixer = \"rebased\"\nfeature_width = 9");
    with("a rectangular identity", "mixer = \"hedgehog\"\nfeature_width = 16");
    with("another", "mixer = \"t2r\"\nfeature_width = 16\ninit = \"identity\"");
    with("a cosine that turns negative", "mixer = \"cosformer\"\nlength = 100");
    with("nothing to train", "mixer = \"liger-gla\"\noutput_scale = false");
    t.compare("students");
}

#[test]
fn paths() {
    let mut t = Transcript::new();
    t.model("model");
    t.refused_conversion("neither a path nor a Hub id", &["teacher.model=./modle"]);
    t.refused_conversion("perhaps a Hub id", &["teacher.model=HuggingFaceTB/SmolLM2-135M"]);
    t.refused_conversion("almost built in", &["teacher.model=builtin:stories"]);
    t.refused_conversion("a text is no model", &["teacher.model=builtin:tinystories"]);
    t.refused_conversion("a model is no text", &["data.source=builtin:stories260K"]);
    t.refused("inspect", &["inspect", "models/stories"]);
    t.refused("evaluate: the model", &["evaluate", "modle", "--text", "builtin:books-valid"]);
    t.refused("evaluate: the text", &["evaluate", "model", "--text", "missing.txt"]);
    t.refused("generate: a file of the model", &["generate", "model/config.json", "--prompt", "Once"]);
    t.compare("paths");
}

#[test]
fn texts() {
    let mut t = Transcript::new();
    t.write("empty.txt", "");
    t.write("blank.txt", " \n\0\n");
    t.write("short.txt", "Once upon a time there was a text.");
    t.write("latin.txt", b"Caf\xe9 au lait");
    t.write("texts.gz", "");
    t.write("lines.jsonl", "{\"text\": \"Once\"}\n{\"txet\": \"upon\"}\n");
    t.write("folder/readme.rst", "nothing");
    for name in ["empty.txt", "blank.txt", "short.txt", "latin.txt", "texts.gz", "lines.jsonl", "folder"] {
        t.refused_conversion("to train on", &[&format!("data.source={name}")]);
    }
    // Found before anything is trained.
    t.refused_conversion("to evaluate on", &["stage.3.text=short.txt"]);
    t.refused("to evaluate on", &["evaluate", "builtin:stories260K", "--text", "short.txt"]);
    let windows = ["--text", "builtin:tinystories-valid", "--tokens", "100", "--sequence", "128"];
    t.refused("too few tokens asked for", &[&["evaluate", "builtin:stories260K"][..], &windows].concat());
    t.compare("texts");
}

#[test]
fn folders() {
    let mut t = Transcript::new();
    t.write("mine/thesis.tex", "ten years of work");
    let out = |folder: &'static str| [&["convert", "smoke", "--out", folder][..], &TINY].concat();
    t.refused("a folder with other things", &out("mine"));
    t.refused("not even with --fresh", &[&out("mine")[..], &["--fresh"]].concat());
    t.write("other/.lock", "");
    t.write("other/thesis.tex", "ten years of work");
    t.refused("nor one that someone else locks", &[&out("other")[..], &["--fresh"]].concat());
    t.refused("a file", &out("mine/thesis.tex"));
    t.refused("below a file", &out("mine/thesis.tex/run"));

    t.write("run/ledger.jsonl", "");
    let lock = File::create(t.path("run/.lock")).unwrap();
    lock.lock().unwrap();
    t.refused("a run that is going on", &out("run"));
    t.refused("nor may it be started again", &[&out("run")[..], &["--fresh"]].concat());
    drop(lock);
    t.refused("it has not finished", &["inspect", "run"]);
    t.write("run/ledger.jsonl", "finished\n");
    let before = fs::read(t.path("run/ledger.jsonl")).unwrap();
    t.refused("a damaged ledger", &out("run"));
    assert_eq!(fs::read(t.path("run/ledger.jsonl")).unwrap(), before);
    t.compare("folders");
}

/// A limit on the size of files stands for a disk that fills up: both fail while a file is written.
#[cfg(target_os = "linux")]
#[test]
fn no_space() {
    let limited = |t: &Transcript, blocks: &str, out: &str| {
        let mut command = Command::new("sh");
        // Ignored, the signal lets the write fail instead of ending the process.
        command.args(["-c", &format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"")]);
        command.arg(env!("CARGO_BIN_EXE_subquad")).args(["convert", "smoke", "-q", "--out", out]).args(TINY);
        quiet(&mut command, &t.path(""));
        command
    };
    let mut t = Transcript::new();
    let command = limited(&t, "0", "full/run");
    let ran = t.record("none at all", "convert smoke --out full/run", command);
    assert_eq!(ran.status, Some(1));
    assert_eq!(t.listing(), Vec::<String>::new());

    // 300 KB (in blocks of 512 bytes): enough for training, too little for the model.
    let command = limited(&t, "600", "run");
    let ran = t.record("too little for the model", "convert smoke --out run", command);
    assert_eq!(ran.status, Some(1));
    let left = t.listing();
    assert!(left.iter().all(|name| !name.contains("model") && !name.contains("partial")), "{left:?}");
    let again =
        t.run("with space: what was trained is kept", &[&["convert", "smoke", "--out", "run"][..], &TINY].concat());
    assert!(again.stderr.contains("2-lora: finished before"), "{}", again.stderr);
    assert_eq!(again.status, Some(0));

    t.compare("no_space");
}
