//! What cannot be had, and what the messages say to do.

use super::{MODEL, TEXT, User, hub};

fn says(error: &str, words: &[&str]) {
    words.iter().for_each(|word| assert!(error.contains(word), "`{word}` is not in\n{error}"));
}

#[test]
fn what_is_not_there_is_said_in_both_readings() {
    let hub = hub();
    let user = User::new(&hub);
    let error = user.fails(&["inspect", "someone/nothing"]);
    says(&error, &["no such file or folder", "`someone/nothing`", "no model of this name", "private", "hf auth login"]);
    says(&User::known(&hub).fails(&["inspect", "someone/nothing"]), &["to the account of your token"]);
    let error = user.fails(&["inspect", "someone/stories260K/config.json"]);
    says(&error, &["whole repository", "give `someone/stories260K`"]);
    // Nor can the reading as a path be heard of less when the Hub is down.
    std::fs::create_dir_all(user.path("runs/quickstart")).unwrap();
    let down = user.command(&["inspect", "runs/quickstrat"]).env("HF_ENDPOINT", "http://127.0.0.1:9").output().unwrap();
    says(&user.ran(down).stderr, &["no such file or folder", "cannot be reached", "did you mean `runs/quickstart`?"]);
    // A path that exists wins, whatever the Hub has.
    std::fs::create_dir_all(user.path(MODEL)).unwrap();
    hub.asked();
    says(&user.fails(&["inspect", MODEL]), &["config.json", "no such file"]);
    assert!(hub.asked().is_empty());
}

#[test]
fn private_gated_and_refused() {
    let hub = hub();
    hub.state().repositories.get_mut(&("models".into(), MODEL.into())).unwrap().private = true;
    says(&User::new(&hub).fails(&["inspect", MODEL]), &["does not exist, or is private", "HF_TOKEN"]);
    User::known(&hub).works(&["inspect", MODEL]);
    let mut wrong = User::new(&hub);
    wrong.token = Some("hf_AnotherOne");
    let error = wrong.fails(&["inspect", MODEL]);
    says(&error, &["refuses your token", "Invalid credentials", "make a new one"]);
    assert!(!error.contains("hf_AnotherOne"));
}

#[test]
fn datasets_say_which_texts_they_have() {
    let hub = hub();
    hub.add("datasets", "someone/rows", [("data/train-00000.parquet".into(), vec![1; 10])]);
    hub.add("datasets", "someone/two", [("a.txt".into(), b"one".to_vec()), ("b.jsonl".into(), b"{}".to_vec())]);
    let user = User::new(&hub);
    let text = |id: &str| user.fails(&["evaluate", "builtin:stories260K", "--text", id]);
    says(&text("someone/rows"), &["`data/train-00000.parquet`", "parquet is not", "JSON lines"]);
    says(&text("someone/two"), &["several texts: `a.txt`, `b.jsonl`", "`someone/two/FILE`"]);
    says(&text("someone/stories/none.txt"), &["`data/train.txt`", "`valid.txt`", "someone/stories/FILE"]);
    says(&text("someone/none"), &["no dataset of this name"]);
    let run = |text: &str| user.works(&["evaluate", "builtin:stories260K", "--text", text, "--tokens", "1K"]);
    run(TEXT);
    run("someone/stories/data");
    run("someone/stories@main/data/train.txt");
}

#[test]
fn repositories_that_are_no_model() {
    let hub = hub();
    hub.add("models", "someone/empty", [("README.md".into(), b"hello".to_vec())]);
    let config = super::files("assets/stories260K").into_iter().find(|(name, _)| name == "config.json").unwrap();
    hub.add("models", "someone/torch", [config.clone(), ("pytorch_model.bin".into(), vec![1; 10])]);
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "../model-2.safetensors"}}"#;
    hub.add("models", "someone/broken", [config, ("model.safetensors.index.json".into(), index.to_vec())]);
    let user = User::new(&hub);
    says(&user.fails(&["inspect", "someone/empty"]), &["no model", "`config.json`"]);
    says(&user.fails(&["inspect", "someone/torch"]), &["no weights that are read", "`pytorch_model.bin`"]);
    says(&user.fails(&["inspect", "someone/broken"]), &["which is not there"]);
}

#[test]
fn addresses_that_are_none() {
    let hub = hub();
    let user = User::new(&hub);
    for address in ["nonsense", "ftp://x", "http://", "http://a b"] {
        let output = user.command(&["inspect", MODEL]).env("HF_ENDPOINT", address).output();
        let ran = user.ran(output.unwrap());
        assert_eq!(ran.status, 1, "{address}: {}", ran.stderr);
        says(&ran.stderr, &["HF_ENDPOINT is `", "hint: "]);
    }
}
