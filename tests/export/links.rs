//! Files that are copied are the teacher's own, and what their names say.

use super::*;
use std::os::unix::fs::symlink;

/// A folder with a secret in it, beside the teacher's.
struct Outside {
    dir: TempDir,
}

impl Outside {
    fn new() -> Outside {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("secret"), "{\"token\": \"hf_SECRET\"}").unwrap();
        Outside { dir }
    }

    fn secret(&self) -> PathBuf {
        self.dir.path().join("secret")
    }
}

fn open_folder(folder: &Path) -> subquad::Result<Vec<String>> {
    check_companions(&Checkpoint::open(&Location::Path(folder.into()))?)
}

fn replace_by_link(folder: &Path, name: &str, target: &Path) {
    let _ = fs::remove_file(folder.join(name));
    symlink(target, folder.join(name)).unwrap();
}

/// Every file that an export copies or reads: by name, with what to do, and never with its contents.
#[test]
fn links_out_of_the_folder_are_refused() {
    let outside = Outside::new();
    symlink(outside.secret(), outside.dir.path().join("second")).unwrap();
    let mut targets = vec![outside.secret(), outside.dir.path().join("second")];
    if cfg!(target_os = "linux") {
        targets.extend(["/proc/self/environ", "/dev/null", "/proc/self/root/etc/hosts"].map(PathBuf::from));
    }
    for name in TOKENIZER.into_iter().chain(["LICENSE", "config.json"]) {
        for target in &targets {
            // What is no file, such as a device, is no licence that could be copied.
            if name == "LICENSE" && target.ends_with("null") {
                continue;
            }
            let teacher = teacher_folder(&[]);
            replace_by_link(teacher.path(), name, target);
            let error = open_folder(teacher.path()).unwrap_err();
            let (message, hint) = (error.to_string(), error.hint().unwrap());
            assert!(message.contains(name) && message.contains("a link out of the model's folder"), "{message}");
            assert!(hint.contains("replace the link by a copy") && error.exit_code() == 1, "{hint}");
            assert!(!message.contains("hf_SECRET"), "{message}");
        }
    }
}

/// Within the folder, from the folder's other names, and to the contents of the same repository in the Hub's cache.
#[test]
fn links_that_stay_are_followed() {
    let text = b"{% for message in messages %}{{ message }}{% endfor %}";
    let teacher = teacher_folder(&[("template", Some(text)), ("LICENSE", Some(b"Do as you like."))]);
    symlink("template", teacher.path().join("chat_template.jinja")).unwrap();
    symlink("LICENSE", teacher.path().join("NOTICE")).unwrap();
    let dir = TempDir::new().unwrap();
    symlink(teacher.path(), dir.path().join("model")).unwrap();
    for folder in [teacher.path(), &dir.path().join("model")] {
        assert_eq!(open_folder(folder).unwrap(), Vec::<String>::new());
    }

    let repository = dir.path().join("models--a--b");
    let snapshot = repository.join("snapshots/0123");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repository.join("blobs")).unwrap();
    for entry in teacher.path().read_dir().unwrap() {
        let name = entry.unwrap().file_name();
        fs::copy(teacher.path().join(&name), repository.join("blobs").join(&name)).unwrap();
        symlink(Path::new("../../blobs").join(&name), snapshot.join(&name)).unwrap();
    }
    assert_eq!(open_folder(&snapshot).unwrap(), Vec::<String>::new());
    let case = case_of(Location::Path(snapshot.clone()), Some(16), &[]);
    let written = case.plain(&dir.path().join("exported"));
    assert!(fs::read(written.folder.join("chat_template.jinja")).unwrap() == text);

    // Another repository's contents, and contents that are a link themselves.
    fs::create_dir_all(dir.path().join("models--c--d/blobs")).unwrap();
    fs::write(dir.path().join("models--c--d/blobs/x"), text).unwrap();
    replace_by_link(&snapshot, "chat_template.jinja", Path::new("../../../models--c--d/blobs/x"));
    says(open_folder(&snapshot), "a link out of the model's folder");
    fs::rename(repository.join("blobs"), dir.path().join("elsewhere")).unwrap();
    symlink(dir.path().join("elsewhere"), repository.join("blobs")).unwrap();
    says(open_folder(&snapshot), "a link out of the model's folder");
}

/// Weights are parsed and written anew: they may lie on another disk.
#[test]
fn weights_may_be_links_to_anywhere() {
    let (teacher, disk) = (teacher_folder(&[]), TempDir::new().unwrap());
    let away = disk.path().join("large.safetensors");
    fs::rename(teacher.path().join("model.safetensors"), &away).unwrap();
    symlink(&away, teacher.path().join("model.safetensors")).unwrap();
    let case = case_of(Location::Path(teacher.path().into()), Some(16), &[]);
    let dir = TempDir::new().unwrap();
    let to = dir.path().join("model");
    case.plain(&to);
    assert!(!to.join("model.safetensors").is_symlink());

    // A copy of an export takes its files as they are.
    let whole = dir.path().join("copied");
    copy(&to, &whole, &mut Silent).unwrap();
    for name in ["model.safetensors", "README.md", "config.json"] {
        let moved = disk.path().join(name);
        fs::copy(to.join(name), &moved).unwrap();
        replace_by_link(&to, name, &moved);
        says(copy(&to, &dir.path().join("again"), &mut Silent), "a link out of the model's folder");
        fs::remove_file(to.join(name)).unwrap();
        fs::copy(&moved, to.join(name)).unwrap();
    }
    symlink(disk.path(), to.join("adapter")).unwrap();
    fs::write(disk.path().join("adapter_config.json"), "{}").unwrap();
    says(copy(&to, &dir.path().join("again"), &mut Silent), "a link out of the model's folder");
    assert!(!dir.path().join("again").exists());
}

/// JSON is JSON and texts are texts, of a size that they have.
#[test]
fn files_that_are_not_what_their_names_say() {
    for name in TOKENIZER.into_iter().filter(|name| name.ends_with(".json")) {
        let teacher = teacher_folder(&[(name, Some(b"HF_TOKEN=hf_SECRET"))]);
        says(open_folder(teacher.path()), &format!("{name}: this is not JSON"));
    }
    for name in ["chat_template.jinja", "merges.txt"] {
        let teacher = teacher_folder(&[(name, Some(b"\xff\xfe"))]);
        says(open_folder(teacher.path()), &format!("{name}: this is not UTF-8 text"));
    }
    for name in ["chat_template.jinja", "LICENSE"] {
        let teacher = teacher_folder(&[(name, Some(&vec![b' '; (1 << 20) + 1]))]);
        says(open_folder(teacher.path()), "at most 1048576 are read");
    }
    // A model may bring a licence as a picture; that is said, and the rest goes on.
    let teacher = teacher_folder(&[("LICENSE.pdf", Some(b"%PDF\xff")), ("tokenizer.model", Some(b"\xff"))]);
    let notes = open_folder(teacher.path()).unwrap();
    assert!(notes.len() == 1 && notes[0].contains("`LICENSE.pdf` is not UTF-8 text"), "{notes:?}");
    let dir = TempDir::new().unwrap();
    case_of(Location::Path(teacher.path().into()), Some(16), &[]).plain(&dir.path().join("model"));
    let written = entries(&dir.path().join("model"));
    assert!(!written.contains(&"LICENSE.pdf".to_string()) && written.contains(&"tokenizer.model".to_string()));
}
