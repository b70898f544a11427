//! Commands run in a folder of their own, and written down.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use regex::Regex;
use tempfile::TempDir;

/// The smoke recipe cut to fractions of a second; every stage still runs. Its training text is the short one.
pub const TINY: [&str; 8] = [
    "--set",
    "stage.0.tokens=4K",
    "--set",
    "stage.1.tokens=4K",
    "--set",
    "stage.3.tokens=2K",
    "--set",
    "data.source=builtin:tinystories-valid",
];

/// What one command did.
pub struct Ran {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
        Ran { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// The program, to be run in `folder`, with nothing of the caller's environment that would show.
pub fn subquad(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_subquad"));
    command.args(arguments);
    quiet(&mut command, folder);
    command
}

/// Runs `command` in `folder`, away from the caller's terminal. Two threads, so that plans are the same everywhere.
pub fn quiet(command: &mut Command, folder: &Path) {
    command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env("RAYON_NUM_THREADS", "2");
    // What is no path may be a Hub id: nobody is asked, and the user's own cache is none of a test's business.
    command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", folder.join("hf"));
    for name in ["NO_COLOR", "CLICOLOR_FORCE", "COLUMNS", "RUST_LOG", "RUST_BACKTRACE"] {
        command.env_remove(name);
    }
}

/// A folder, and what was done in it.
pub struct Transcript {
    folder: TempDir,
    text: String,
}

impl Transcript {
    pub fn new() -> Self {
        Transcript { folder: tempfile::tempdir().unwrap(), text: String::new() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// A copy of the smallest embedded model, to be damaged.
    pub fn model(&self, name: &str) {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/stories260K");
        fs::create_dir_all(self.path(name)).unwrap();
        for entry in from.read_dir().unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), self.path(name).join(entry.file_name())).unwrap();
        }
    }

    /// Runs the program, under a heading that says what this is about.
    pub fn run(&mut self, heading: &str, arguments: &[&str]) -> Ran {
        self.record(heading, &arguments.join(" "), subquad(self.folder.path(), arguments))
    }

    /// Runs any command; `shown` stands for its arguments.
    pub fn record(&mut self, heading: &str, shown: &str, mut command: Command) -> Ran {
        let ran = Ran::from(command.output().unwrap());
        self.note(heading, shown, &ran);
        ran
    }

    pub fn note(&mut self, heading: &str, shown: &str, ran: &Ran) {
        let shown = shown.replace(&TINY.join(" "), "TINY");
        let status = ran.status.map_or("killed".into(), |status| status.to_string());
        self.text += &format!("# {heading}\n$ subquad {shown}\nstatus {status}\n");
        for (name, stream) in [("stdout", &ran.stdout), ("stderr", &ran.stderr)] {
            if !stream.is_empty() {
                self.text += &format!("-- {name}\n{stream}");
            }
        }
        self.text += "\n";
    }

    /// As [`Transcript::run`]: the input is wrong. Status 1, nothing on stdout, one error with its hint, and nothing on
    /// disk is other than before.
    pub fn refused(&mut self, heading: &str, arguments: &[&str]) {
        let before = self.listing();
        let ran = self.run(heading, arguments);
        assert_eq!(ran.status, Some(1), "{heading}: {}", ran.stderr);
        assert_eq!(ran.stdout, "", "{heading}");
        assert_eq!(ran.stderr.matches("error: ").count(), 1, "{heading}: {}", ran.stderr);
        assert_eq!(ran.stderr.matches("hint: ").count(), 1, "{heading}: {}", ran.stderr);
        assert_eq!(self.listing(), before, "{heading}");
    }

    /// As [`Transcript::refused`], for a tiny conversion with these overrides.
    pub fn refused_conversion(&mut self, heading: &str, sets: &[&str]) {
        let sets = sets.iter().flat_map(|set| ["--set", *set]);
        let arguments: Vec<&str> = ["convert", "smoke"].into_iter().chain(TINY).chain(sets).collect();
        self.refused(heading, &arguments);
    }

    /// Names and sizes of everything in the folder, sorted.
    pub fn listing(&self) -> Vec<String> {
        fn walk(folder: &Path, all: &mut Vec<String>) {
            for entry in folder.read_dir().unwrap() {
                let entry = entry.unwrap();
                let metadata = entry.metadata().unwrap();
                all.push(format!("{} {}", entry.path().display(), if metadata.is_dir() { 0 } else { metadata.len() }));
                if metadata.is_dir() {
                    walk(&entry.path(), all);
                }
            }
        }
        let mut all = vec![];
        walk(self.folder.path(), &mut all);
        all.sort();
        all
    }

    /// Compares everything that was written down with `snapshots/NAME.txt`.
    pub fn compare(self, name: &str) {
        let folder = self.folder.path().display().to_string();
        let real = fs::canonicalize(self.folder.path()).unwrap().display().to_string();
        let text = stable(&self.text.replace(&real, "[HERE]").replace(&folder, "[HERE]"));
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/cli/snapshots/{name}.txt"));
        if std::env::var_os("SUBQUAD_BLESS").is_some() {
            fs::write(&path, &text).unwrap();
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        if let Some((was, is)) = first_difference(&expected, &text) {
            panic!(
                "{} differs:\n- {was}\n+ {is}\nall of it:\n{text}\n`SUBQUAD_BLESS=1 cargo test --release --test cli` accepts it",
                path.display()
            );
        }
    }
}

fn first_difference<'a>(expected: &'a str, text: &'a str) -> Option<(&'a str, &'a str)> {
    let (mut a, mut b) = (expected.lines(), text.lines());
    loop {
        match (a.next(), b.next()) {
            (None, None) => return None,
            (x, y) if x == y => {}
            (x, y) => return Some((x.unwrap_or("(end)"), y.unwrap_or("(end)"))),
        }
    }
}

/// What depends on machine, load and version.
static FILTERS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [
        // One line every ten seconds, on machines that need so long.
        (r"(?m)^[^:\n]+: \d+%, .*\n", ""),
        (r" *\b(\d+h \d\dm|\d+m \d\ds|\d+(\.\d)? s)(\W)", " [TIME]$3"),
        (r"(?m) +time$", " time"),
        (r"\b[\d.]+[KMBT]? tokens/s", "[SPEED] tokens/s"),
        (r"\b[\d.]+ [KMGT]?B/s", "[SPEED] B/s"),
        (r"\b\d+ GFLOP/s", "[SPEED] GFLOP/s"),
        // Scores have the width of their values; those of a trained student depend on the processor's rounding.
        (r"(?m)^ +perplexity +ratio +KL +top1$", "perplexity ratio KL top1"),
        (
            r"(?m)^(student|teacher|model|window only|linear only|bare window|silent mixer) +\d+\.\d+ +\S+ +\S+ +\S+$",
            "$1 [SCORES]",
        ),
        (r"\b(loss|perplexity|teacher) \d+\.\d+", "$1 [N]"),
        // What a stopped stage of 40K tokens had left depends on when it was stopped.
        (r"transfer: 39\.\dK tokens in", "transfer: [REST] tokens in"),
        (r"differ by at most [\d.e-]+", "differ by at most [N]"),
        (r"files, [\d.]+ MB", "files, [N] MB"),
        (r"\b\d+ bytes are needed, \d+ are free", "[N] bytes are needed, [N] are free"),
    ]
    .map(|(pattern, with)| (Regex::new(pattern).unwrap(), with))
    .into()
});

fn stable(text: &str) -> String {
    let text = text.replace(concat!("subquad ", env!("CARGO_PKG_VERSION")), "subquad [VERSION]");
    FILTERS.iter().fold(text, |text, (pattern, with)| pattern.replace_all(&text, *with).into_owned())
}
