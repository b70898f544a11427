//! Ctrl-C: the state on disk is whole, and the same command goes on from it.

use std::fs;
use std::process::Command;
use std::time::Duration;

use super::transcript::{Ran, TINY, Transcript, subquad};

#[cfg(unix)]
#[test]
fn a_run_goes_on_where_it_was_stopped() {
    let mut t = Transcript::new();
    // Long enough to be stopped in its first stage.
    let sets = ["--set", "stage.0.tokens=40K", "--set", "stage.0.batch.size=1", "--set", "stage.1.batch.size=1"];
    let convert = |out: &'static str| [&["convert", "smoke", "--out", out][..], &TINY, &sets].concat();
    let shown = convert("run").join(" ");

    let child = subquad(&t.path(""), &convert("run")).spawn().unwrap();
    let trained = || fs::read_to_string(t.path("run/metrics.jsonl")).map_or(0, |text| text.lines().count());
    while trained() < 3 {
        std::thread::sleep(Duration::from_millis(2));
    }
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let stopped = Ran::from(child.wait_with_output().unwrap());
    t.note("stopped", &shown, &stopped);
    assert_eq!((stopped.status, stopped.stdout.as_str()), (Some(130), ""));
    assert!(t.path("run/1-attention-transfer/state.safetensors").exists());
    assert!(!t.path("run/model").exists());

    let again = t.run("the same command again", &convert("run"));
    assert_eq!(again.status, Some(0));
    let whole = subquad(&t.path(""), &convert("whole")).output().unwrap();
    assert!(whole.status.success());
    let weights = |run: &str| fs::read(t.path(run).join("model/model.safetensors")).unwrap();
    assert!(weights("run") == weights("whole"), "a stopped run ends with other weights");
    t.compare("stopped");
}
