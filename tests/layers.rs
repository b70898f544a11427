//! The house keeps its shape: which module may use which, who talks to candle, how long a file may be, what may panic.
//!
//! Sources are read as text, comments and strings blanked; nothing here needs the crate itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Lowest first: a module uses lower lines, and others of its own line as long as no circle arises.
const ORDER: &[&[&str]] = &[
    &["error", "progress"],
    &["checkpoint", "hub", "ops"],
    &["config"],
    &["mixer", "text"],
    &["arch", "model"],
    &["train"],
    &["stage", "evaluate", "export"],
    &["recipe"],
    &["plan"],
    &["run"],
    &["sweep"],
    &["cli"],
];

/// Lines of the longest file; 400 is the aim.
const LONGEST: usize = 500;

/// A source file.
struct Source {
    /// From the repository's root, with `/`.
    name: String,
    text: String,
    /// The same bytes with comments and the insides of strings and characters as spaces; line breaks stay.
    code: Vec<u8>,
}

impl Source {
    fn read(path: &Path) -> Source {
        let text = fs::read_to_string(path).unwrap();
        let name = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().to_str().unwrap().replace('\\', "/");
        Source { name, code: blank(text.as_bytes()), text }
    }

    /// The top-level module that the file belongs to; `None` for lib.rs and main.rs, which see everything.
    fn module(&self) -> Option<&str> {
        let inside = self.name.strip_prefix("src/")?;
        let module = inside.split(['/', '.']).next()?;
        (!["lib", "main"].contains(&module)).then_some(module)
    }

    /// Steps from the file's own module up to the crate's root.
    fn depth(&self) -> usize {
        let parts = self.name.strip_prefix("src/").unwrap_or_default().split('/').count();
        parts - usize::from(self.name.ends_with("/mod.rs"))
    }

    fn line(&self, at: usize) -> usize {
        1 + self.code[..at].iter().filter(|&&b| b == b'\n').count()
    }

    fn place(&self, at: usize) -> String {
        format!("{}:{}", self.name, self.line(at))
    }

    /// Places where the code, white space aside, has `word` on its own, not as a part of a longer name.
    fn find(&self, word: &str) -> Vec<usize> {
        let (code, word) = (&self.code, word.as_bytes());
        let joins = |a: u8, b: Option<&u8>| is_name(a) && b.is_some_and(|&b| is_name(b));
        let fits = |&i: &usize| {
            code[i..].starts_with(word)
                && !(i > 0 && joins(word[0], code.get(i - 1)))
                && !joins(word[word.len() - 1], code.get(i + word.len()))
        };
        (0..code.len()).filter(fits).collect()
    }

    /// Whether the code at this place is compiled for tests only.
    fn in_test(&self, at: usize) -> bool {
        self.find("#[cfg(test)]").into_iter().any(|start| {
            let body = start + self.code[start..].iter().position(|b| b"{;".contains(b)).unwrap_or(0);
            let mut open = 0;
            let end = self.code[body..].iter().position(|b| {
                open += i32::from(*b == b'{') - i32::from(*b == b'}');
                open == 0
            });
            (start..=body + end.unwrap_or(self.code.len())).contains(&at)
        })
    }

    /// The top-level modules of this crate that the file names, and where.
    fn edges(&self, modules: &BTreeSet<String>) -> Vec<(String, usize)> {
        let mut found = vec![];
        for at in self.find("crate") {
            found.extend(names_after(&self.code, at + "crate".len()));
        }
        let up = "super::".repeat(self.depth());
        for at in self.find(&up) {
            found.extend(names_after(&self.code, at + up.len() - "::".len()));
        }
        found.retain(|(name, _)| modules.contains(name) && Some(name.as_str()) != self.module());
        found
    }
}

fn is_name(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_'
}

/// The first names of the paths that go on at `at`: `::a::b` gives a, `::{a::b, c::{d, e}}` gives a and c.
fn names_after(code: &[u8], at: usize) -> Vec<(String, usize)> {
    let Some(rest) = code[at..].strip_prefix(b"::") else { return vec![] };
    let start = at + "::".len();
    let name = |from: usize| {
        let word: Vec<u8> = code[from..].iter().copied().take_while(|b| is_name(*b)).collect();
        (String::from_utf8(word).unwrap(), from)
    };
    if rest.first() != Some(&b'{') {
        return vec![name(start)];
    }
    let (mut depth, mut names, mut expects) = (0, vec![], true);
    for (i, &b) in code.iter().enumerate().skip(start) {
        match b {
            b'{' => depth += 1,
            b'}' if depth == 1 => break,
            b'}' => depth -= 1,
            b',' if depth == 1 => expects = true,
            b if expects && depth == 1 && is_name(b) => {
                names.push(name(i));
                expects = false;
            }
            _ => (),
        }
    }
    names
}

/// Comments and the insides of strings and characters become spaces.
fn blank(text: &[u8]) -> Vec<u8> {
    let mut code = text.to_vec();
    let mut i = 0;
    while i < text.len() {
        let rest = &text[i..];
        // What is blanked from `i + keep` on, `length` bytes in all; what stays at the end is the closing quote.
        let (keep, length, end) = if rest.starts_with(b"//") {
            (0, rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()), 0)
        } else if rest.starts_with(b"/*") {
            (0, block_comment(rest), 0)
        } else if let Some((keep, hashes)) = raw_string(text, i) {
            let close = [&b"\""[..], &b"#".repeat(hashes)].concat();
            let inside = rest[keep..].windows(close.len()).position(|w| w == close).unwrap_or(rest.len() - keep);
            (keep, keep + inside + close.len(), close.len())
        } else if rest[0] == b'"' {
            (1, quoted(rest, b'"'), 1)
        } else if rest[0] == b'\'' && (rest.get(1) == Some(&b'\\') || character(rest)) {
            (1, quoted(rest, b'\''), 1)
        } else {
            (0, 0, 0)
        };
        for b in code.iter_mut().skip(i + keep).take(length.saturating_sub(keep + end)) {
            if *b != b'\n' {
                *b = b' ';
            }
        }
        i += length.max(1);
    }
    code
}

/// Length of a comment that may hold others.
fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut i) = (0, 0);
    while i < rest.len() {
        match &rest[i..] {
            [b'/', b'*', ..] => (depth, i) = (depth + 1, i + 2),
            [b'*', b'/', ..] if depth == 1 => return i + 2,
            [b'*', b'/', ..] => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
    }
    rest.len()
}

/// Bytes before the inside of a raw string that starts at `i`, and its number of `#`.
fn raw_string(text: &[u8], i: usize) -> Option<(usize, usize)> {
    if i > 0 && is_name(text[i - 1]) && !(text[i - 1] == b'b' && (i < 2 || !is_name(text[i - 2]))) {
        return None;
    }
    let hashes = text[i..].strip_prefix(b"r")?.iter().take_while(|b| **b == b'#').count();
    (text.get(i + 1 + hashes) == Some(&b'"')).then_some((hashes + 2, hashes))
}

/// Length of a string or character, both quotes included.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut i = 1;
    while i < rest.len() && rest[i] != quote {
        i += if rest[i] == b'\\' { 2 } else { 1 };
    }
    (i + 1).min(rest.len())
}

/// Whether `'` starts a character rather than a lifetime.
fn character(rest: &[u8]) -> bool {
    let text = String::from_utf8_lossy(&rest[..rest.len().min(8)]);
    text.chars().nth(2) == Some('\'')
}

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = vec![];
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sources(folder: &str) -> Vec<Source> {
    files(folder, "rs").iter().map(|path| Source::read(path)).collect()
}

fn line_of(module: &str) -> Option<usize> {
    ORDER.iter().position(|line| line.contains(&module))
}

fn none(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n  {}\n", found.join("\n  "));
}

#[test]
fn modules_use_only_lower_ones() {
    let sources = sources("src");
    let modules: BTreeSet<String> = sources.iter().filter_map(|s| s.module().map(str::to_string)).collect();
    none(
        "modules that ORDER in tests/layers.rs does not know",
        modules.iter().filter(|m| line_of(m).is_none()).cloned().collect(),
    );
    let mut wrong = vec![];
    // module -> the others of its line that it uses
    let mut level: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for source in &sources {
        let Some(module) = source.module() else { continue };
        for (used, at) in source.edges(&modules) {
            match line_of(&used).cmp(&line_of(module)) {
                std::cmp::Ordering::Less => (),
                std::cmp::Ordering::Equal => {
                    level.entry(module).or_default().insert(used);
                }
                std::cmp::Ordering::Greater => wrong.push(format!("{}: {module} uses {used}", source.place(at))),
            }
        }
    }
    none("modules that use a higher one", wrong);
    // Takes away, again and again, what uses nothing that is left: a circle remains.
    while let Some(free) = level.iter().find(|(_, uses)| uses.iter().all(|u| !level.contains_key(u.as_str()))) {
        let free = *free.0;
        level.remove(free);
    }
    none("modules of one line in a circle", level.iter().map(|(m, uses)| format!("{m} uses {uses:?}")).collect());
}

/// candle's own fused operators drop gradients, and its autograd makes them for frozen weights: `ops` is the door.
#[test]
fn only_ops_uses_candles_operators_and_gradients() {
    let words = ["candle_nn", "rotary_emb", "candle_core::backprop", "GradStore", ".backward()"];
    let mut wrong = vec![];
    for source in sources("src").iter().filter(|s| s.module() != Some("ops")) {
        for word in words {
            wrong.extend(source.find(word).iter().map(|&at| format!("{}: `{word}`", source.place(at))));
        }
        for at in source.find("candle_core") {
            let names = names_after(&source.code, at + "candle_core".len());
            let vars = names.iter().filter(|(name, _)| name == "Var");
            wrong.extend(vars.map(|(_, at)| format!("{}: candle's `Var`", source.place(*at))));
        }
    }
    none("candle's operators and gradients outside src/ops", wrong);
}

/// What a tensor is made beside says where it is made; only kernels and the door of files know the CPU.
#[test]
fn only_kernels_and_checkpoints_name_the_cpu() {
    let mut wrong = vec![];
    for source in
        sources("src").iter().filter(|s| !s.name.starts_with("src/ops/cpu/") && s.module() != Some("checkpoint"))
    {
        let places = source.find("Device::Cpu").into_iter().filter(|&at| !source.in_test(at));
        wrong.extend(places.map(|at| format!("{}: take the device of a tensor beside it", source.place(at))));
    }
    none("`Device::Cpu` outside src/ops/cpu and src/checkpoint", wrong);
}

#[test]
fn files_are_short() {
    let long = ["src", "examples", "benches"].iter().flat_map(|folder| sources(folder)).filter_map(|source| {
        let lines = source.text.lines().count();
        (lines > LONGEST).then(|| format!("{}: {lines} lines", source.name))
    });
    none("files with more than 500 lines", long.collect());
}

/// Whatever a user or a file can cause is an `Error`. What cannot happen may be `expect`ed, with the reason.
#[test]
fn panics_have_a_reason() {
    let mut wrong = vec![];
    for source in sources("src") {
        let mut add = |at: usize, what: &str| {
            if !source.in_test(at) {
                wrong.push(format!("{}: {what}", source.place(at)));
            }
        };
        for word in [".unwrap()", ".unwrap_err()", "panic!", "todo!", "unimplemented!", "dbg!"] {
            source.find(word).into_iter().for_each(|at| add(at, word));
        }
        for word in [".expect(", ".expect_err(", "unreachable!("] {
            for at in source.find(word) {
                let argument = source.text[at + word.len()..].trim_start();
                let reason = argument.strip_prefix('"').and_then(|a| a.split('"').next()).unwrap_or_default();
                if !reason.trim().contains(' ') {
                    add(at, &format!("{word}..) without a reason of some words"));
                }
            }
        }
    }
    none("panics outside tests", wrong);
}

/// A name may be taken by a link that leads anywhere: `checkpoint::own` is the door, or a file that must not be there.
#[test]
fn files_are_made_in_one_place() {
    let mut wrong = vec![];
    for source in sources("src").iter().filter(|s| s.name != "src/checkpoint/own.rs") {
        for word in ["File::create(", "File::options(", "fs::write(", ".create(true)", ".truncate(true)"] {
            let places = source.find(word).into_iter().filter(|&at| !source.in_test(at));
            wrong.extend(places.map(|at| format!("{}: `{word}`", source.place(at))));
        }
    }
    none("files made elsewhere than in src/checkpoint/own.rs", wrong);
}

#[test]
fn the_reader_of_sources_reads() {
    let text = r##"use crate::{Error, ops::{Var, attention}, mixer::self}; // crate::cli
        /* crate::run /* nested */ crate::plan */ let s = "crate::cli \" crate::run"; let c = '"'; let l: &'a str;
        let r = r#"crate::plan " "#; crate::text::documents(); super::super::arch::Spec; mycrate::model::X;
        #[cfg(test)] mod tests { fn f() { x.unwrap() } } fn g() { y.unwrap() }"##;
    let source = Source { name: "src/model/forward.rs".into(), text: text.into(), code: blank(text.as_bytes()) };
    let modules = ORDER.iter().flat_map(|line| line.iter().map(|m| m.to_string())).collect();
    let edges: Vec<String> = source.edges(&modules).into_iter().map(|(name, _)| name).collect();
    assert_eq!(edges, ["ops", "mixer", "text", "arch"]);
    let unwraps = source.find(".unwrap()");
    assert_eq!(unwraps.iter().map(|&at| source.in_test(at)).collect::<Vec<_>>(), [true, false]);
    assert_eq!(source.depth(), 2);
}
