//! Models and texts from the Hub.

use std::fs;

use super::server::{How, TOKEN};
use super::{MODEL, TEXT, User, contents, files, hub};

/// Everything that a model needs, and nothing else.
const NEEDED: [&str; 6] = [
    "LICENSE",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
];

const GENERATE: [&str; 6] = ["generate", MODEL, "--prompt", "Once upon a time", "--max-tokens", "5"];

fn weights(asked: &[super::server::Asked]) -> Vec<Option<String>> {
    asked.iter().filter(|a| a.path.starts_with("/cdn/")).map(|a| a.range.clone()).collect()
}

#[test]
fn inspect_fetches_headers_and_no_weights() {
    let (hub, local) = (hub(), "builtin:stories260K");
    let user = User::new(&hub);
    let lines = |text: String| text.lines().skip(1).map(String::from).collect::<Vec<_>>();
    assert_eq!(lines(user.works(&["inspect", MODEL]).stdout), lines(user.works(&["inspect", local]).stdout));
    assert_eq!(weights(&hub.asked()), [Some("bytes=0-131071".into())]);
    // Nothing of the weights is in the cache; what is missing is named when the network is off.
    let error = user.fails(&["inspect", MODEL, "--offline"]);
    assert!(error.contains("lacks model.safetensors") && error.contains("without `--offline`"), "{error}");
    assert!(hub.asked().is_empty());
}

#[test]
fn what_is_needed_is_fetched_once() {
    let hub = hub();
    let user = User::new(&hub);
    let ran = user.works(&GENERATE);
    let local = GENERATE.map(|word| if word == MODEL { "builtin:stories260K" } else { word });
    assert_eq!(ran.stdout, user.works(&local).stdout);
    assert!(ran.stderr.contains("download someone/stories260K: "), "{}", ran.stderr);
    let commit = hub.state().repositories[&("models".into(), MODEL.into())].commits[0].0.clone();
    let folder = user.path("hf/hub/models--someone--stories260K");
    assert_eq!(fs::read_to_string(folder.join("refs/main")).unwrap(), commit);
    let mut names: Vec<_> = fs::read_dir(folder.join("snapshots").join(&commit))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, NEEDED);
    hub.asked();

    // Again: the revision is looked up, and nothing fetched. By its commit: nothing is asked at all.
    assert_eq!(user.works(&GENERATE).stdout, ran.stdout);
    assert_eq!(contents(&hub), [""; 0]);
    let sink_tokens = format!("{MODEL}@{commit}");
    let by_commit = GENERATE.map(|word| if word == MODEL { sink_tokens.as_str() } else { word });
    assert_eq!(user.works(&by_commit).stdout, ran.stdout);
    assert!(hub.asked().is_empty());
    // Offline, by flag and by variable; and with a Hub that is down.
    assert_eq!(user.works(&[&GENERATE[..], &["--offline"]].concat()).stdout, ran.stdout);
    let ran_by_variable = user.ran(user.command(&GENERATE).env("HF_HUB_OFFLINE", "1").output().unwrap());
    assert_eq!(ran_by_variable.stdout, ran.stdout);
    assert!(hub.asked().is_empty());
    let down = user.ran(user.command(&GENERATE).env("HF_ENDPOINT", "http://127.0.0.1:9").output().unwrap());
    assert_eq!(down.stdout, ran.stdout);
    assert!(down.stderr.contains("cannot be reached") && down.stderr.contains("the cache has"), "{}", down.stderr);
}

#[test]
fn revisions_are_kept_apart() {
    let hub = hub();
    let mut other = files("assets/stories260K");
    let config = other.iter_mut().find(|(name, _)| name == "config.json").unwrap();
    config.1 = String::from_utf8(config.1.clone())
        .unwrap()
        .replace("\"max_position_embeddings\": 512", "\"max_position_embeddings\": 128")
        .into();
    let second = hub.add("models", MODEL, other);
    let first = hub.state().repositories[&("models".into(), MODEL.into())].commits[0].0.clone();
    hub.state().repositories.get_mut(&("models".into(), MODEL.into())).unwrap().tags.insert("v1".into(), first.clone());
    let user = User::new(&hub);
    let context = |id: &str| {
        let json: serde_json::Value = serde_json::from_str(&user.works(&["inspect", id, "--json"]).stdout).unwrap();
        json["context"].as_u64().unwrap()
    };
    assert_eq!(context(MODEL), 128);
    assert_eq!(context(&format!("{MODEL}@v1")), 512);
    assert_eq!(context(&format!("{MODEL}@{first}")), 512);
    assert_eq!(context(&format!("{MODEL}@{second}")), 128);
    let error = user.fails(&["inspect", &format!("{MODEL}@v9")]);
    assert!(error.contains("there is no revision `v9`"), "{error}");
}

/// What goes wrong once is tried again; a cut file goes on where it was cut.
#[test]
fn passing_faults_pass() {
    let wait = |seconds| vec![("retry-after", seconds)];
    let faults: [(&str, &str, How); 8] = [
        ("GET", "/revision/", How::Status(500, "", "broken", vec![])),
        ("GET", "/tree/", How::Status(503, "", "busy", vec![])),
        ("GET", "/resolve/", How::Status(429, "", "slow down", wait("1"))),
        ("GET", "/cdn/", How::Status(502, "", "broken", vec![])),
        ("GET", "/cdn/", How::Cut(400_000)),
        ("GET", "config.json", How::Cut(20)),
        ("GET", "/cdn/", How::Corrupt),
        ("GET", "tokenizer.json", How::Corrupt),
    ];
    for (method, part, how) in faults {
        let hub = hub();
        let user = User::new(&hub);
        // Without the look at the headers first.
        let warm = user.works(&["inspect", MODEL]).stdout;
        fs::remove_dir_all(user.path("hf")).unwrap();
        let times = if matches!(how, How::Cut(400_000) | How::Corrupt) && part == "/cdn/" { 2 } else { 1 };
        hub.asked();
        hub.fault(method, part, how.clone(), times);
        let began = std::time::Instant::now();
        user.works(&GENERATE);
        if matches!(how, How::Status(429, ..)) {
            assert!(began.elapsed().as_secs_f64() >= 1.0, "retry-after was not honoured");
        }
        let asked = hub.asked();
        if let How::Cut(400_000) = how {
            // The header's 128 KiB are shorter than the cut; each cut of the file is followed by the rest of it.
            let ranges: Vec<String> = weights(&asked).into_iter().flatten().collect();
            assert!(ranges.contains(&"bytes=400000-".to_string()), "{ranges:?}");
        }
        assert_eq!(
            user.works(&["inspect", MODEL]).stdout.lines().skip(1).collect::<Vec<_>>(),
            warm.lines().skip(1).collect::<Vec<_>>()
        );
    }
}

/// What stays wrong ends the command with advice, leaves nothing half in the cache, and the next try completes.
#[test]
fn lasting_faults_are_explained_and_the_next_try_completes() {
    let wait = |seconds| vec![("retry-after", seconds)];
    let faults: [(&str, &str, How, &[&str]); 10] = [
        ("GET", "/revision/", How::Status(500, "", "broken", vec![]), &["status 500", "goes on where it ended"]),
        ("GET", "/revision/", How::Status(429, "", "slow down", wait("3600")), &["wait 3600 s"]),
        ("GET", "/cdn/", How::Status(500, "", "broken", vec![]), &["status 500"]),
        ("GET", "/cdn/", How::Status(403, "", "signature", vec![]), &["refuses this", "hf auth login"]),
        ("GET", "/cdn/", How::Status(404, "", "gone", vec![]), &["shows no model"]),
        ("GET", "/resolve/", How::Status(403, "GatedRepo", "gated", vec![]), &["gated", "accept the terms at", MODEL]),
        ("GET", "/resolve/", How::Status(401, "GatedRepo", "gated", vec![]), &["no token was found", "HF_TOKEN"]),
        ("GET", "/cdn/", How::Cut(0), &["cannot be reached", "goes on where it ended"]),
        ("GET", "tokenizer.json", How::Corrupt, &["do not have the checksum", "thrown away"]),
        ("GET", "/cdn/", How::Corrupt, &["checksum", "thrown away"]),
    ];
    for (method, part, how, words) in faults {
        let hub = hub();
        let user = User::new(&hub);
        let corrupt = matches!(how, How::Corrupt) && part == "/cdn/";
        if corrupt {
            // The first look takes the header only, and what is wrong with that is found out by its reader.
            user.works(&["inspect", MODEL]);
            fs::remove_dir_all(user.path("hf")).unwrap();
        }
        hub.fault(method, part, how.clone(), 99);
        let error = user.fails(&GENERATE);
        words.iter().for_each(|word| assert!(error.contains(word) || corrupt, "{part}: `{word}` is not in\n{error}"));
        hub.asked();
        user.works(&GENERATE);
        assert!(user.works(&["inspect", MODEL, "--offline"]).stdout.contains("llama"));
    }
}

/// A download that was killed is continued by the next command.
#[test]
fn a_beginning_that_is_there_is_continued() {
    let hub = hub();
    let user = User::new(&hub);
    let sum = hub.state().repositories[&("models".into(), MODEL.into())].tree()["model.safetensors"].sum();
    let all = files("assets/stories260K").into_iter().find(|(name, _)| name == "model.safetensors").unwrap().1;
    let blobs = user.path("hf/hub/models--someone--stories260K/blobs");
    for (beginning, expected) in [
        (all[..700_000].to_vec(), "bytes=700000-"),
        (vec![0; 700_000], "bytes=700000-"),
        ([all.clone(), vec![1]].concat(), "none"),
        (all.clone(), "none"),
    ] {
        let _ = fs::remove_dir_all(&blobs);
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(format!("{sum}.incomplete")), beginning).unwrap();
        hub.asked();
        user.works(&GENERATE);
        let ranges: Vec<_> = weights(&hub.asked()).into_iter().flatten().collect();
        assert_eq!(ranges.iter().any(|range| range == expected), expected != "none", "{ranges:?}");
        assert!(!blobs.join(format!("{sum}.incomplete")).exists());
    }
}

/// Two commands at once fetch a file once.
#[test]
fn two_at_once_share_a_download() {
    use std::process::Stdio;

    let hub = hub();
    let user = User::new(&hub);
    let start = || user.command(&GENERATE).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (first, second) = (start(), start());
    let outputs = [first, second].map(|child| user.ran(child.wait_with_output().unwrap()));
    outputs.iter().for_each(|ran| assert_eq!(ran.status, 0, "{}", ran.stderr));
    assert_eq!(outputs[0].stdout, outputs[1].stdout);
    let whole = weights(&hub.asked()).into_iter().filter(Option::is_none).count();
    assert_eq!(whole, 1);
}

/// Ctrl-C ends a download at once and keeps what came.
#[cfg(unix)]
#[test]
fn a_download_that_was_interrupted_is_continued() {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    let hub = hub();
    let user = User::new(&hub);
    user.works(&["inspect", MODEL]);
    hub.fault("GET", "/cdn/", How::Stall(131_072), 1);
    hub.fault("GET", "/cdn/", How::Stall(300_000), 1);
    let child = user.command(&GENERATE).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let sum = hub.state().repositories[&("models".into(), MODEL.into())].tree()["model.safetensors"].sum();
    let incomplete = user.path(&format!("hf/hub/models--someone--stories260K/blobs/{sum}.incomplete"));
    let began = Instant::now();
    while fs::metadata(&incomplete).map_or(0, |found| found.len()) < 300_000 {
        assert!(began.elapsed() < Duration::from_secs(25), "the download did not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let began = Instant::now();
    let ran = user.ran(child.wait_with_output().unwrap());
    assert_eq!(ran.status, 130, "{}", ran.stderr);
    assert!(began.elapsed() < Duration::from_secs(10));
    hub.asked();
    user.works(&GENERATE);
    assert_eq!(weights(&hub.asked()).into_iter().flatten().last(), Some("bytes=300000-".into()));
}

#[test]
fn a_recipe_names_teacher_and_text_on_the_hub() {
    let hub = hub();
    let user = User::known(&hub);
    let set = [
        "--set",
        "stage.0.tokens=4K",
        "--set",
        "stage.1.tokens=4K",
        "--set",
        "stage.3.tokens=2K",
        "--set",
        "teacher.model=someone/stories260K",
        "--set",
        "data.source=someone/stories/data/train.txt",
        "--set",
        "stage.3.text=someone/stories",
    ];
    let plan = user.works(&[&["plan", "smoke"][..], &set].concat()).stdout;
    assert!(plan.contains("download ") && plan.contains("from the Hub, first"), "{plan}");
    let asked = hub.asked();
    assert_eq!(weights(&asked), [Some("bytes=0-131071".into())], "a plan needs headers only");
    assert!(asked.iter().all(|asked| !asked.path.starts_with("/datasets/")), "and no text");
    let checked = user.works(&[&["check", "smoke"][..], &set].concat());
    assert!(!checked.stderr.contains("warning"), "{}", checked.stderr);
    let converted = user.works(&[&["convert", "smoke"][..], &set].concat());
    assert!(converted.stderr.contains("download someone/stories: "), "{}", converted.stderr);
    let folder = converted.stdout.trim();
    let config = fs::read_to_string(user.path(folder).join("config.json")).unwrap();
    assert!(config.contains("\"someone/stories260K\""), "{config}");
    let card = fs::read_to_string(user.path(folder).join("README.md")).unwrap();
    assert!(card.contains("base_model: someone/stories260K"), "{card}");
    // All of it is there now, for every command that reads a model.
    let offline = |arguments: &[&str]| user.works(&[arguments, &["--offline"]].concat());
    offline(&["evaluate", folder, "--text", TEXT, "--tokens", "1K"]);
    offline(&["evaluate", MODEL, "--text", "someone/stories/valid.txt", "--tokens", "1K", "--teacher", MODEL]);
    offline(&[&["plan", "smoke"][..], &set].concat());
    offline(&["mixers", "hedgehog", "--for", MODEL]);
}

/// A token goes to the Hub and nowhere else: not to logs, however detailed, nor into files (which every test checks).
#[test]
fn the_token_stays_secret() {
    let hub = hub();
    hub.state().repositories.get_mut(&("models".into(), MODEL.into())).unwrap().private = true;
    let user = User::known(&hub);
    let loud = user.ran(user.command(&[&GENERATE[..], &["-vv"]].concat()).env("RUST_LOG", "trace").output().unwrap());
    assert_eq!(loud.status, 0, "{}", loud.stderr);
    let asked = hub.asked();
    let told = |part: &str| asked.iter().filter(|a| a.path.contains(part)).map(|a| a.token).collect::<Vec<_>>();
    assert!(told("/resolve/").iter().all(|&token| token) && !told("/resolve/").is_empty());
    assert!(told("/cdn/").iter().all(|&token| !token) && !told("/cdn/").is_empty(), "another host saw the token");
    // A server that repeats it.
    let words: &'static str = Box::leak(format!("you sent {TOKEN}").into_boxed_str());
    hub.fault("GET", "/revision/", How::Status(403, "", words, vec![]), 9);
    assert!(user.fails(&["inspect", MODEL]).contains("you sent [token]"));
    // From a file, as `hf auth login` writes it. It is read, and stays the only file that has it.
    let other = User::new(&hub);
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("token"), format!("{TOKEN}\n")).unwrap();
    hub.asked();
    let ran = other.ran(other.command(&GENERATE).env("HF_TOKEN_PATH", place.path().join("token")).output().unwrap());
    assert_eq!(ran.status, 0, "{}", ran.stderr);
}
