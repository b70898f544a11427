//! Large files to a Hub without Xet: in one piece and in parts, and what goes wrong on the way.

use std::fs;
use std::process::Command;

use subquad::checkpoint::HubId;
use subquad::progress::{Progress, Unit};

use super::User;
use super::pushes::{REPO, commits, model, push};
use super::server::{Asked, How, Hub};

const PART: usize = 100_000;
/// Bytes of the second large file; it has more parts than the model.
const MORE: usize = 1_650_000;

/// A user with a model and one more large file, at a Hub that takes such files in parts.
fn in_parts() -> (Hub, User) {
    let hub = Hub::start();
    hub.state().part = Some(PART);
    let user = User::known(&hub);
    model(&user);
    let more: Vec<u8> = (0..MORE).map(|i| (i / 7 % 251) as u8).collect();
    fs::write(user.path("model/more.bin"), more).unwrap();
    (hub, user)
}

fn puts(asked: &[Asked]) -> Vec<&Asked> {
    asked.iter().filter(|asked| asked.method == "PUT").collect()
}

fn count(asked: &[Asked], part: &str) -> usize {
    asked.iter().filter(|asked| asked.path.contains(part)).count()
}

/// The repository has the folder's large files, byte for byte, in one commit after the first.
fn require_arrived(hub: &Hub, user: &User) {
    assert_eq!(commits(hub).len(), 2);
    let state = hub.state();
    let tree = state.repositories[&("models".into(), REPO.into())].tree();
    for name in ["model.safetensors", "more.bin", "config.json"] {
        let Ok(bytes) = fs::read(user.path("model").join(name)) else { continue };
        assert!(*tree[name].bytes == bytes, "{name}");
        let verified = state.verified.iter().filter(|sum| **sum == tree[name].sum()).count();
        assert_eq!((verified > 0, tree[name].large), (name != "config.json", name != "config.json"), "{name}");
    }
}

#[test]
fn in_one_piece() {
    let hub = Hub::start();
    let user = User::known(&hub);
    model(&user);
    user.works(&push(&[]));
    require_arrived(&hub, &user);
    let asked = hub.asked();
    let puts = puts(&asked);
    assert_eq!(puts.len(), 1);
    assert!(puts[0].signed && !puts[0].token, "{puts:?}");
}

#[test]
fn in_many_parts() {
    let (hub, user) = in_parts();
    user.works(&push(&[]));
    require_arrived(&hub, &user);
    let asked = hub.asked();
    assert_eq!((puts(&asked).len(), count(&asked, "/complete")), (11 + 17, 2));
    assert!(asked.iter().filter(|asked| asked.path.starts_with("/lfs/")).all(|asked| !asked.token && !asked.signed));
}

#[test]
fn passing_faults_of_an_upload_pass() {
    let status = |status| How::Status(status, "", "busy", vec![("retry-after", "0")]);
    let faults: [(&str, &str, How, usize); 10] = [
        ("PUT", "/part/3", status(500), 2),
        ("PUT", "/part/3", status(429), 2),
        ("PUT", "/part/3", How::Hangup, 1),
        ("PUT", "/part/11", How::Lost, 1),
        ("POST", "/complete", status(503), 1),
        // It took place, and the answer was lost.
        ("POST", "/complete", How::Lost, 1),
        ("POST", "/verify", status(500), 1),
        ("POST", "/batch", How::Lost, 1),
        // Of the file in one piece.
        ("PUT", "/lfs/", How::Hangup, 1),
        ("PUT", "/lfs/", status(502), 1),
    ];
    for (i, (method, part, how, times)) in faults.into_iter().enumerate() {
        let (hub, user) = in_parts();
        if i >= 8 {
            hub.state().part = None;
        }
        hub.fault(method, part, how, times);
        let ran = user.run(&push(&[]));
        assert_eq!(ran.status, 0, "{i}: {}", ran.stderr);
        require_arrived(&hub, &user);
        // What had arrived is not sent again.
        let expected = if i >= 8 { 2 } else { 11 + 17 } + if method == "PUT" { times } else { 0 };
        assert_eq!(puts(&hub.asked()).len(), expected, "{i}");
    }
}

#[test]
fn a_push_that_fails_commits_nothing_and_goes_on_later() {
    let (hub, user) = in_parts();
    hub.fault("PUT", "/part/14", How::Status(500, "", "out of order", vec![]), 9);
    let error = user.fails(&push(&[]));
    for word in ["`more.bin`", "status 500", "out of order", "nothing was committed", "only what is missing"] {
        assert!(error.contains(word), "`{word}` is not in\n{error}");
    }
    assert_eq!(commits(&hub).len(), 1);
    assert_eq!(count(&hub.asked(), "/commit/"), 0);
    user.works(&push(&[]));
    require_arrived(&hub, &user);
    assert_eq!(puts(&hub.asked()).len(), 17);
}

#[test]
fn refusals_of_an_upload() {
    let (hub, user) = in_parts();
    let says = |method, part, how, words: &[&str]| {
        hub.fault(method, part, how, 1);
        let error = user.fails(&push(&[]));
        words.iter().for_each(|word| assert!(error.contains(word), "`{word}` is not in\n{error}"));
        assert_eq!(count(&hub.asked(), "/commit/"), 0);
    };
    let status = |status, words| How::Status(status, "", words, vec![("location", "http://127.0.0.1:9/elsewhere")]);
    let store = ["store of large files", "Request has expired", "status 403", "the same command again"];
    says("PUT", "/part/2", status(403, "Request has expired"), &store);
    says(
        "POST",
        "/batch",
        status(403, "storage limit reached"),
        &["refuses this", "storage limit", "your token needs"],
    );
    // Nobody is led elsewhere.
    says("PUT", "/part/2", status(303, ""), &["status 303"]);
    says("PUT", "/part/2", status(307, ""), &["status 307"]);
    says("POST", "/complete", status(302, ""), &["status 302"]);
    hub.state().ignored = Some("more.bin");
    says("GET", "/nothing", How::Corrupt, &["`.gitignore`", "`more.bin`", "nothing was sent"]);
}

/// The store for it is missing here, so this is as far as it goes.
#[test]
fn xet_is_taken_where_the_hub_has_it() {
    let (hub, user) = in_parts();
    hub.state().xet = true;
    let error = user.fails(&push(&[]));
    let asked = hub.asked();
    assert_eq!(
        (count(&asked, "/xet-write-token/"), puts(&asked).len(), count(&asked, "/commit/")),
        (1, 0, 0),
        "{error}"
    );
}

#[test]
fn the_hub_is_asked_about_many_files_at_once() {
    let hub = Hub::start();
    let user = User::known(&hub);
    model(&user);
    (0..300).for_each(|i| fs::write(user.path(&format!("model/{i}.txt")), [b'x'; 600]).unwrap());
    fs::write(user.path("model/empty.safetensors"), "").unwrap();
    user.works(&push(&[]));
    assert_eq!(count(&hub.asked(), "/preupload/"), 2);
    assert_eq!(commits(&hub)[1].1.len(), 307);
}

/// What a listener hears.
#[derive(Default)]
struct Heard(Vec<u64>);

impl Progress for Heard {
    fn begin(&mut self, _: &str, start: u64, _: u64, unit: Unit) {
        assert_eq!((start, unit), (0, Unit::Bytes));
    }

    fn advance(&mut self, done: u64, _: &str) {
        self.0.push(done);
    }

    fn end(&mut self, _: &str) {}

    fn say(&mut self, _: &str) {}
}

/// The library hears it in a process of its own, since a process has one Hub.
#[test]
fn progress_moves_with_the_bytes() {
    const FOLDER: &str = "SUBQUAD_TEST_FOLDER";
    if let Some(folder) = std::env::var_os(FOLDER) {
        let (id, mut heard) = (HubId::parse(REPO).unwrap(), Heard::default());
        let plan = subquad::hub::compare(folder.as_ref(), &id, false, &mut heard).unwrap();
        subquad::hub::push(&plan, "message", &mut heard).unwrap();
        assert!(heard.0.contains(&(5 * PART as u64)) && heard.0.last() == Some(&plan.bytes()), "{:?}", heard.0);
        return;
    }
    let (hub, user) = in_parts();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "uploads::progress_moves_with_the_bytes"]).env(FOLDER, user.path("model"));
    user.surroundings(&mut child);
    let ran = user.ran(child.output().unwrap());
    assert_eq!(ran.status, 0, "{}{}", ran.stdout, ran.stderr);
    require_arrived(&hub, &user);
}
