//! Where it goes.

use super::*;

#[test]
fn only_an_earlier_export_is_replaced() {
    let (case, dir) = (case(), TempDir::new().unwrap());
    let at = |name: &str| dir.path().join(name);
    let refused = |name: &str, what: &str| {
        let before = entries(dir.path());
        says(case.export(&at(name), PLAIN, &mut Silent), what);
        assert_eq!(entries(dir.path()), before);
    };
    fs::write(at("file"), "mine").unwrap();
    refused("file", "this is a file");
    refused("file/model", "no folder can be made in it");
    fs::create_dir(at("notes")).unwrap();
    fs::write(at("notes/thesis.tex"), "mine").unwrap();
    refused("notes", "`thesis.tex` is in this folder");
    fs::create_dir(at("teacher")).unwrap();
    for (name, bytes) in Builtin::find("stories260K").unwrap().files {
        fs::write(at("teacher").join(name), bytes).unwrap();
    }
    refused("teacher", "a model that subquad did not write");
    says(case.export(Path::new("/"), PLAIN, &mut Silent), "not the name of a folder");

    // An empty folder, then its own export, unless someone has put something there.
    fs::create_dir(at("model")).unwrap();
    case.plain(&at("model"));
    case.export(&at("model"), Form { dtype: Some(DType::BF16), ..PLAIN }, &mut Silent).unwrap();
    assert_eq!(json_of(&at("model/config.json"))["dtype"], "bfloat16");
    fs::create_dir(at("model/.git")).unwrap();
    refused("model", "`.git` is in this folder");
    assert_eq!(entries(dir.path()), ["file", "model", "notes", "teacher"]);
}

#[cfg(unix)]
#[test]
fn links_are_followed() {
    let (case, dir) = (case(), TempDir::new().unwrap());
    fs::create_dir(dir.path().join("real")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("real"), dir.path().join("link")).unwrap();
    case.plain(&dir.path().join("link"));
    assert!(dir.path().join("link").is_symlink() && dir.path().join("real/config.json").is_file());
    std::os::unix::fs::symlink(dir.path().join("nowhere"), dir.path().join("broken")).unwrap();
    says(case.export(&dir.path().join("broken"), PLAIN, &mut Silent), "a link to a folder that is not there");
    assert_eq!(entries(dir.path()), ["broken", "link", "real"]);
}

#[test]
fn what_killed_exports_left_is_cleared_away() {
    let (mut case, dir) = (case(), TempDir::new().unwrap());
    let at = |name: &str| dir.path().join(name);
    case.plain(&at("model"));
    // Killed while it wrote.
    fs::create_dir(at(".model.subquad-partial")).unwrap();
    fs::write(at(".model.subquad-partial/.model.safetensors.partial"), "half").unwrap();
    case.plain(&at("model"));
    assert_eq!(entries(dir.path()), ["model"]);
    // Killed between its two renames: the earlier export comes back, also when the next one fails.
    fs::rename(at("model"), at(".model.subquad-previous")).unwrap();
    let weight = case.model.layers[0].weight(Target::V).unwrap().clone();
    // Finite, and what it leads to is not.
    let output = case.model.layers[0].weight(Target::O).unwrap().clone();
    case.model.set_weight(0, Target::V, (&weight * 1e30).unwrap());
    case.model.set_weight(0, Target::O, (&output * 1e30).unwrap());
    differs(case.export(&at("model"), PLAIN, &mut Silent), "not finite numbers");
    assert_eq!(entries(dir.path()), ["model"]);
    case.model.set_weight(0, Target::V, weight);
    case.model.set_weight(0, Target::O, output);
    assert_eq!(parity(&at("model"), &case).unwrap(), 0.0);
    // Killed before it had removed the earlier one.
    fs::create_dir(at(".model.subquad-previous")).unwrap();
    fs::write(at(".model.subquad-previous/config.json"), "{}").unwrap();
    case.plain(&at("model"));
    assert_eq!(entries(dir.path()), ["model"]);
}

/// A listener that does something at its call number `at`.
struct At<F: FnMut()> {
    calls: usize,
    at: usize,
    act: F,
}

impl<F: FnMut()> At<F> {
    fn count(&mut self) {
        self.calls += 1;
        if self.calls == self.at {
            (self.act)();
        }
    }
}

impl<F: FnMut()> Progress for At<F> {
    fn begin(&mut self, _: &str, _: u64, _: u64, _: Unit) {
        self.count();
    }
    fn advance(&mut self, _: u64, _: &str) {
        self.count();
    }
    fn end(&mut self, _: &str) {
        self.count();
    }
    fn say(&mut self, _: &str) {
        self.count();
    }
}

/// Wherever an export is broken off, new folders are gone and an earlier export is as it was.
#[test]
fn nothing_is_left_of_a_broken_export() {
    let (case, dir) = (case(), TempDir::new().unwrap());
    let mut count = At { calls: 0, at: 0, act: || () };
    case.export(&dir.path().join("old"), PLAIN, &mut count).unwrap();
    assert!(count.calls > 40);
    let config = fs::read(dir.path().join("old/config.json")).unwrap();
    for at in [1, 2, 30, count.calls - 4, count.calls] {
        for to in ["new", "a/b/new", "old"] {
            let broken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let mut listener = At { calls: 0, at, act: || std::panic::resume_unwind(Box::new("broken off")) };
                let form = Form { dtype: Some(DType::BF16), ..PLAIN };
                case.export(&dir.path().join(to), form, &mut listener)
            }));
            assert!(broken.is_err());
            assert_eq!(entries(dir.path()), ["old"], "call {at}");
            assert_eq!(fs::read(dir.path().join("old/config.json")).unwrap(), config);
        }
    }
    assert_eq!(parity(&dir.path().join("old"), &case).unwrap(), 0.0);
}

/// Ctrl-C stops a whole process, so this test runs itself as another one.
#[test]
fn ctrl_c_leaves_nothing() {
    const PLACE: &str = "SUBQUAD_TEST_INTERRUPTED_EXPORT";
    if let Ok(place) = std::env::var(PLACE) {
        let mut listener = At { calls: 0, at: 20, act: interrupt };
        let result = case().export(Path::new(&place), PLAIN, &mut listener);
        assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
        assert_eq!(listener.calls, 20, "it stops at once");
        return;
    }
    let dir = TempDir::new().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "place::ctrl_c_leaves_nothing"]).env(PLACE, dir.path().join("some/model"));
    let output = child.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    assert!(entries(dir.path()).is_empty());
}
