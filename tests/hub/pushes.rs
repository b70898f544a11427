//! Models to the Hub.

use std::fs;

use serde_json::Value;

use super::server::{How, Hub};
use super::{User, files, hub};

pub const REPO: &str = "me/stories-linear";

pub fn push<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["push", "model", "--repo", REPO][..], more].concat()
}

/// A folder `model` in the user's home.
pub fn model(user: &User) {
    fs::create_dir_all(user.path("model/checkpoints")).unwrap();
    files("assets/stories260K")
        .iter()
        .for_each(|(name, bytes)| fs::write(user.path("model").join(name), bytes).unwrap());
    fs::write(user.path("model/.hidden"), "not for others").unwrap();
    fs::write(user.path("model/checkpoints/x"), "nor this").unwrap();
}

pub fn commits(hub: &Hub) -> Vec<(String, Vec<String>)> {
    let state = hub.state();
    let Some(repository) = state.repositories.get(&("models".into(), REPO.into())) else { return vec![] };
    repository.commits.iter().map(|(_, message, tree)| (message.clone(), tree.keys().cloned().collect())).collect()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_push_is_one_commit_and_safe_to_repeat() {
    let hub = hub();
    let user = User::known(&hub);
    model(&user);
    let shown = user.works(&push(&["--dry-run"])).stdout;
    assert!(shown.contains("model.safetensors") && shown.contains("(new, private)"), "{shown}");
    assert!(!shown.contains("hidden"), "{shown}");
    assert!(hub.asked().iter().all(|asked| asked.method == "GET") && commits(&hub).is_empty());

    let pushed = user.works(&push(&["--message", "The first"]));
    let names = files("assets/stories260K").into_iter().map(|(name, _)| name);
    let all: Vec<String> = std::iter::once(".gitattributes".to_string()).chain(names).collect();
    assert_eq!(commits(&hub)[1..], [("The first".to_string(), all.clone())]);
    assert!(hub.state().repositories[&("models".into(), REPO.into())].private);
    let commit = hub.state().repositories[&("models".into(), REPO.into())].commits[1].0.clone();
    assert_eq!(pushed.stdout, format!("{}/{REPO}/commit/{commit}\n", hub.address));
    assert!(pushed.stderr.contains("created, private"), "{}", pushed.stderr);

    // Again: nothing to send, no commit.
    let again = user.works(&push(&[]));
    assert!(again.stderr.contains("nothing was sent") && again.stdout.is_empty(), "{}", again.stderr);
    assert_eq!(commits(&hub).len(), 2);
    assert_eq!(json(&user.works(&push(&["--json"])).stdout)["sent"], false);

    // One file changed, weights of an earlier model beside it.
    let stale = vec![("model-00001-of-00001.safetensors".to_string(), vec![1; 50])];
    let before = hub.state().repositories[&("models".into(), REPO.into())].tree().clone();
    let kept = before.into_iter().map(|(name, file)| (name, file.bytes.to_vec()));
    hub.add("models", REPO, kept.chain(stale));
    fs::write(user.path("model/README.md"), "# Stories").unwrap();
    hub.asked();
    let plan = json(&user.works(&push(&["--dry-run", "--json"])).stdout);
    let changes = |change: &str| {
        let files = plan["files"].as_array().unwrap().iter().filter(|file| file["change"] == change);
        files.map(|file| file["name"].as_str().unwrap().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(
        (changes("add"), changes("remove")),
        (vec!["README.md".into()], vec!["model-00001-of-00001.safetensors".into()])
    );
    assert_eq!(changes("keep").len(), 5);
    assert_eq!((&plan["bytes"], &plan["sent"], &plan["commit"]), (&Value::from(9), &Value::from(false), &Value::Null));
    let sent = json(&user.works(&push(&["--json", "--public"])).stdout);
    assert!(sent["commit"].as_str().unwrap().contains("/commit/"));
    let now = commits(&hub).pop().unwrap().1;
    assert!(now.contains(&"README.md".to_string()) && !now.contains(&"model-00001-of-00001.safetensors".to_string()));
    assert!(
        hub.state().repositories[&("models".into(), REPO.into())].private,
        "--public changes nothing that is there"
    );

    // And back.
    let other = User::known(&hub);
    let arguments = ["generate", REPO, "--prompt", "Once upon a time", "--max-tokens", "5"];
    let local = arguments.map(|word| if word == REPO { "builtin:stories260K" } else { word });
    assert_eq!(other.works(&arguments).stdout, other.works(&local).stdout);
}

#[test]
fn public_repositories_are_asked_for() {
    let hub = hub();
    let user = User::known(&hub);
    model(&user);
    user.works(&push(&["--public"]));
    assert!(!hub.state().repositories[&("models".into(), REPO.into())].private);
}

#[test]
fn passing_faults_of_a_push_pass() {
    let faults: [(&str, &str, How); 5] = [
        ("POST", "/create", How::Status(500, "", "broken", vec![])),
        ("POST", "/preupload/", How::Status(429, "", "slow", vec![("retry-after", "0")])),
        ("POST", "/batch", How::Status(503, "", "busy", vec![])),
        ("POST", "/commit/", How::Status(500, "", "broken", vec![])),
        // The commit took place, and its answer was lost.
        ("POST", "/commit/", How::Cut(10)),
    ];
    for (method, part, how) in faults {
        let hub = hub();
        let user = User::known(&hub);
        model(&user);
        user.works(&push(&["--dry-run"]));
        hub.fault(method, part, how, 1);
        let first = user.run(&push(&[]));
        hub.asked();
        // At the latest the next try finds all of it there, and no second commit.
        user.works(&push(&[]));
        assert_eq!(commits(&hub).len(), 2, "{part}: {}", first.stderr);
    }
}

#[test]
fn refusals_of_a_push() {
    let hub = hub();
    let user = User::known(&hub);
    model(&user);
    let says = |error: String, words: &[&str]| {
        words.iter().for_each(|word| assert!(error.contains(word), "`{word}` is not in\n{error}"));
    };
    let mut stranger = User::new(&hub);
    model(&stranger);
    says(stranger.fails(&push(&[])), &["without a token", "hf auth login"]);
    stranger.token = Some("hf_AnotherOne");
    says(stranger.fails(&push(&[])), &["refuses your token"]);
    hub.fault("POST", "/create", How::Status(403, "", "You don't have the rights", vec![]), 9);
    says(user.fails(&push(&[])), &["refuses this", "You don't have the rights", "your token needs the right"]);
    hub.asked();
    user.works(&push(&[]));
    hub.fault("POST", "/commit/", How::Status(412, "", "A commit has happened since", vec![]), 9);
    fs::write(user.path("model/README.md"), "new").unwrap();
    says(user.fails(&push(&[])), &["changed meanwhile", "run the same command again"]);
    hub.asked();
    user.works(&push(&[]));

    says(user.fails(&push(&["--offline"])), &["nothing is sent offline"]);
    says(user.fails(&["push", "nowhere", "--repo", REPO]), &["no such folder"]);
    says(user.fails(&["push", "model", "--repo", "me"]), &["not the name of a repository"]);
    says(user.fails(&["push", "model", "--repo", "me/x@v1"]), &["not the name of a repository"]);
    fs::remove_file(user.path("model/config.json")).unwrap();
    says(user.fails(&push(&[])), &["config.json"]);
}

/// What is sent is the folder's own: of a link out of it nothing is asked or sent, also not by a dry run.
#[cfg(unix)]
#[test]
fn links_out_of_the_folder_are_not_sent() {
    use std::os::unix::fs::symlink;
    let hub = hub();
    let user = User::known(&hub);
    model(&user);
    fs::write(user.path("secret"), "not for others").unwrap();
    symlink("README", user.path("model/NOTICE")).unwrap();
    fs::write(user.path("model/README"), "for all").unwrap();
    for (name, target) in [
        ("chat_template.jinja", user.path("secret")),
        ("notes.txt", "/proc/self/environ".into()),
        ("model-00002-of-00002.safetensors", user.path("secret")),
    ] {
        symlink(target, user.path("model").join(name)).unwrap();
        for more in [&[][..], &["--dry-run"]] {
            let said = user.fails(&push(more));
            assert!(said.contains(name) && said.contains("a link out of the model's folder"), "{said}");
        }
        fs::remove_file(user.path("model").join(name)).unwrap();
    }
    assert!(commits(&hub).is_empty());
    user.works(&push(&[]));
    assert!(commits(&hub)[1].1.contains(&"NOTICE".to_string()));
}
