//! Run folders as killed processes leave them, with files of their users, and from elsewhere.

use super::*;
use std::process::{Command, Stdio};
use std::time::Duration;

fn write(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn refused_as_foreign(folder: &Path, fresh: bool) {
    let before = files(folder);
    let error = try_run(folder, &[], fresh, &mut Listener::default()).unwrap_err();
    assert!(error.to_string().contains("is not a subquad run"), "{error}");
    assert_eq!(files(folder), before);
}

/// Every state on the way of a new run to its first stage.
#[test]
fn a_run_goes_on_from_every_moment_of_its_beginning() {
    let temp = tempfile::tempdir().unwrap();
    let whole = temp.path().join("whole");
    run(&whole, &[]);
    let mut state: Vec<(&str, &str)> = vec![];
    let steps = [
        (".lock", ""),
        (".ledger.jsonl.partial", ""),
        ("ledger.jsonl", ""),
        (".recipe.toml.partial", "[teach"),
        ("recipe.toml", RECIPE),
        (".plan.json.partial", "{"),
        ("plan.json", "{}"),
        (".ledger.jsonl.partial", "{"),
    ];
    for (i, step) in steps.into_iter().enumerate() {
        // A rename takes the half away.
        state.retain(|(name, _)| *name != format!(".{}.partial", step.0));
        state.push(step);
        let folder = temp.path().join(i.to_string());
        state.iter().for_each(|(name, text)| write(&folder, name, text));
        run(&folder, &[]);
        assert_eq!(weights(&folder), weights(&whole), "{state:?}");
        let names: Vec<String> = files(&folder).into_iter().map(|(name, _)| name).collect();
        assert!(!names.iter().any(|name| name.contains("partial")), "{names:?}");
    }
}

/// Every state of a finished run that is being forgotten, ours and those of versions that removed the ledger first.
#[test]
fn a_run_goes_on_from_every_moment_of_a_fresh_start() {
    let temp = tempfile::tempdir().unwrap();
    let whole = temp.path().join("whole");
    run(&whole, &[]);
    let removals = [
        "metrics.jsonl",
        "recipe.toml",
        "plan.json",
        "1-attention-transfer/student.safetensors",
        "1-attention-transfer",
        "2-lora/student.safetensors",
        "2-lora",
        "3-evaluate/report.json",
        "3-evaluate",
    ];
    for old in [false, true] {
        for count in 0..=removals.len() {
            // Older versions left a recipe without its plan for a moment: so may users, and theirs is not touched.
            if old && removals[..count].last() == Some(&"metrics.jsonl") {
                continue;
            }
            let folder = temp.path().join(format!("{old}-{count}"));
            copy(&whole, &folder);
            let ledger = folder.join("ledger.jsonl");
            if old {
                fs::remove_file(ledger).unwrap()
            } else {
                fs::write(ledger, "").unwrap()
            }
            for name in &removals[..count] {
                let path = folder.join(name);
                if path.is_dir() { fs::remove_dir(path).unwrap() } else { fs::remove_file(path).unwrap() }
            }
            run(&folder, &[]);
            assert_eq!(weights(&folder), weights(&whole), "{old} {count}");
        }
    }
}

/// A process that is killed anywhere while it starts, in a new folder and in that of a finished run.
#[test]
fn a_start_that_is_killed_anywhere_leaves_a_run() {
    let temp = tempfile::tempdir().unwrap();
    let recipe = temp.path().join("test.toml");
    fs::write(&recipe, RECIPE).unwrap();
    let whole = temp.path().join("whole");
    run(&whole, &[]);
    for fresh in [false, true] {
        let folder = temp.path().join(format!("killed-{fresh}"));
        if fresh {
            copy(&whole, &folder);
            write(&folder, "notes.txt", "mine");
        }
        for kill in 0..12 {
            let mut command = Command::new(env!("CARGO_BIN_EXE_subquad"));
            command.arg("convert").arg(&recipe).arg("--out").arg(&folder).args(fresh.then_some("--fresh"));
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(8 * kill));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        run(&folder, &[]);
        assert_eq!(weights(&folder), weights(&whole), "{fresh}");
        assert_eq!(folder.join("notes.txt").exists(), fresh);
    }
}

#[test]
fn what_only_looks_like_a_run_is_not_touched() {
    let temp = tempfile::tempdir().unwrap();
    let cases: [&[&str]; 6] = [
        &["recipe.toml"],
        &[".lock", "recipe.toml"],
        &[".lock", "1-lora/notes.txt"],
        &[".lock", "2-notes/report.json"],
        &[".lock", "model"],
        &["1-lora/student.safetensors", "plan.json", "recipe.toml"],
    ];
    for (i, names) in cases.into_iter().enumerate() {
        let folder = temp.path().join(i.to_string());
        names.iter().for_each(|name| write(&folder, name, "mine"));
        refused_as_foreign(&folder, false);
        refused_as_foreign(&folder, true);
    }
}

#[test]
fn a_fresh_start_removes_what_runs_leave_and_nothing_else() {
    let temp = tempfile::tempdir().unwrap();
    let (folder, whole) = (temp.path().join("run"), temp.path().join("whole"));
    run(&folder, &[]);
    copy(&folder, &whole);
    let leftovers = [
        ".ledger.jsonl.partial",
        ".metrics.jsonl.partial",
        ".recipe.toml.partial",
        ".plan.json.partial",
        "1-attention-transfer/state.safetensors",
        "1-attention-transfer/.state.safetensors.partial",
        "2-lora/.student.safetensors.partial",
        "3-evaluate/.report.json.partial",
        "7-lora/student.safetensors",
        "8-calibrate/.report.json.partial",
        ".model.subquad-partial/model.safetensors",
        ".model.subquad-previous/model.safetensors",
    ];
    let mine = ["notes.txt", ".notes.partial", "2-notes/report.json", "2-lora/mine.txt", "lora/state.safetensors"];
    leftovers.iter().chain(&mine).for_each(|name| write(&folder, name, "something"));
    try_run(&folder, &[], true, &mut Listener::default()).unwrap();
    let mut wanted: Vec<String> = files(&whole).into_iter().map(|(name, _)| name).collect();
    wanted.extend(mine.map(String::from));
    wanted.sort();
    let found: Vec<String> = files(&folder).into_iter().map(|(name, _)| name).collect();
    assert_eq!(found, wanted);
    assert!(!folder.join("7-lora").exists() && !folder.join(".model.subquad-previous").exists());
    assert_eq!(weights(&folder), weights(&whole));
}

/// A folder from elsewhere, with links to files of the user in it.
#[cfg(unix)]
#[test]
fn nothing_is_written_through_links() {
    use std::os::unix::fs::symlink;
    let temp = tempfile::tempdir().unwrap();
    let whole = temp.path().join("whole");
    run(&whole, &[]);
    let mine = temp.path().join("mine");
    write(&mine, "student.safetensors", "precious");
    let file = mine.join("student.safetensors");

    // Files of the run and folders in it: refused, also with `--fresh`.
    let refused =
        [".lock", "ledger.jsonl", "metrics.jsonl", "recipe.toml", "plan.json", "1-attention-transfer", "model"];
    for name in refused {
        for fresh in [false, true] {
            let folder = temp.path().join(format!("{name}-{fresh}"));
            copy(&whole, &folder);
            let path = folder.join(name);
            if path.is_dir() {
                fs::remove_dir_all(&path).unwrap()
            } else {
                fs::remove_file(&path).unwrap()
            }
            symlink(if whole.join(name).is_dir() { &mine } else { &file }, &path).unwrap();
            let error = try_run(&folder, &[], fresh, &mut Listener::default()).unwrap_err();
            assert!(error.to_string().contains("this is a link"), "{error}");
            assert_eq!(error.exit_code(), 1);
            assert!(path.is_symlink());
        }
    }

    // Halves of files and results: replaced.
    let folder = temp.path().join("halves");
    for name in ["1-attention-transfer", "2-lora", "3-evaluate"] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
    write(&folder, "ledger.jsonl", "");
    for name in [
        ".ledger.jsonl.partial",
        ".recipe.toml.partial",
        ".plan.json.partial",
        ".metrics.jsonl.partial",
        "1-attention-transfer/.state.safetensors.partial",
        "1-attention-transfer/.student.safetensors.partial",
        "1-attention-transfer/student.safetensors",
        "2-lora/.state.safetensors.partial",
        "3-evaluate/.report.json.partial",
        "3-evaluate/report.json",
    ] {
        symlink(&file, folder.join(name)).unwrap();
    }
    run(&folder, &[]);
    assert_eq!(weights(&folder), weights(&whole));
    assert!(!folder.join("1-attention-transfer/student.safetensors").is_symlink());
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    assert_eq!(files(&mine).len(), 1);

    // The run folder itself may lie elsewhere.
    let elsewhere = temp.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, temp.path().join("out")).unwrap();
    run(&temp.path().join("out"), &[]);
    assert_eq!(weights(&elsewhere), weights(&whole));
    assert!(temp.path().join("out").is_symlink());
}
