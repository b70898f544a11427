//! The Hub: our binary against a small server of its protocol, with everything that goes wrong on the way.

mod pulls;
mod pushes;
mod refusals;
mod server;
mod uploads;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use server::{Hub, TOKEN, git, hex};

/// A user's home, and what the program does in it.
pub struct User {
    home: TempDir,
    address: String,
    token: Option<&'static str>,
}

pub struct Ran {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl User {
    pub fn new(hub: &Hub) -> User {
        User { home: tempfile::tempdir().unwrap(), address: hub.address.clone(), token: None }
    }

    /// A user with the token of the tests.
    pub fn known(hub: &Hub) -> User {
        User { token: Some(TOKEN), ..User::new(hub) }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_subquad"));
        command.args(arguments);
        self.surroundings(&mut command);
        command
    }

    /// The user's home and Hub around a program, and nothing of ours.
    pub fn surroundings(&self, command: &mut Command) {
        command.current_dir(self.home.path()).stdin(Stdio::null());
        for (name, _) in std::env::vars() {
            if name.starts_with("HF_") || name.starts_with("HUGGINGFACE_") || name.ends_with("_proxy") {
                command.env_remove(name);
            }
        }
        for name in ["RUST_LOG", "NO_COLOR", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "XDG_CACHE_HOME"] {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", &self.address).env("HF_HOME", self.path("hf")).env("RAYON_NUM_THREADS", "2");
        if let Some(token) = self.token {
            command.env("HF_TOKEN", token);
        }
    }

    /// Runs the program. Whatever happens, no token shows, and nothing in the cache is half a file.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        self.ran(self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap())
    }

    pub fn ran(&self, output: Output) -> Ran {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        assert!(!stdout.contains(TOKEN) && !stderr.contains(TOKEN), "a token shows:\n{stdout}\n{stderr}");
        self.require_whole_cache();
        Ran { status: output.status.code().unwrap(), stdout, stderr }
    }

    pub fn works(&self, arguments: &[&str]) -> Ran {
        let ran = self.run(arguments);
        assert_eq!(ran.status, 0, "{arguments:?}\n{}", ran.stderr);
        ran
    }

    /// Runs what must fail with one error and one hint, and gives these.
    pub fn fails(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!((ran.status, ran.stdout.as_str()), (1, ""), "{arguments:?}\n{}", ran.stderr);
        assert_eq!(ran.stderr.matches("error: ").count(), 1, "{}", ran.stderr);
        assert_eq!(ran.stderr.matches("hint: ").count(), 1, "{}", ran.stderr);
        ran.stderr
    }

    /// Every named content has the checksum that is its name, every link leads to one, no file has the token in it.
    fn require_whole_cache(&self) {
        for path in all_files(self.home.path()) {
            let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let has_token = bytes.windows(TOKEN.len()).any(|part| part == TOKEN.as_bytes());
            assert!(!has_token, "{} has the token", path.display());
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.parent().is_some_and(|folder| folder.ends_with("blobs")) && !name.ends_with(".incomplete") {
                let sum = if name.len() == 64 { hex(&Sha256::digest(&bytes)) } else { git(&bytes) };
                assert_eq!(sum, name, "{}", path.display());
            }
        }
    }
}

/// All files and links below a folder.
pub fn all_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in folder.read_dir().into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(all_files(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

/// The files of a folder of this repository.
pub fn files(folder: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    all_files(&folder)
        .into_iter()
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_string(), fs::read(&path).unwrap()))
        .collect()
}

pub const MODEL: &str = "someone/stories260K";
pub const TEXT: &str = "someone/stories";

/// A Hub with the smallest embedded model, its text beside other files, and what nobody needs.
pub fn hub() -> Hub {
    let hub = Hub::start();
    let mut model = files("assets/stories260K");
    model.push(("pytorch_model.bin".into(), vec![7; 3000]));
    model.push(("onnx/model.onnx".into(), vec![7; 3000]));
    model.push(("LICENSE".into(), b"MIT".to_vec()));
    hub.add("models", MODEL, model);
    let text = |name: &str| {
        let text = subquad::checkpoint::Builtin::find(name).unwrap().files.iter().find(|(n, _)| n.ends_with(".txt"));
        text.unwrap().1.to_vec()
    };
    let valid = text("tinystories-valid");
    hub.add(
        "datasets",
        TEXT,
        [
            ("README.md".into(), b"# Stories".to_vec()),
            ("data/train.txt".into(), valid.clone()),
            ("data/extra.jsonl".into(), b"{\"text\": \"Once upon a time\"}\n".to_vec()),
            ("valid.txt".into(), valid),
            ("raw.parquet".into(), vec![1; 100]),
        ],
    );
    hub
}

/// Addresses of contents that were asked for.
pub fn contents(hub: &Hub) -> Vec<String> {
    hub.asked().into_iter().filter(|asked| asked.path.contains("/resolve/")).map(|asked| asked.path).collect()
}
