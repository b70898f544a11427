//! README.md, the pages of docs/ and CONTRIBUTING.md are true: recipes are valid, commands and links exist, lists are whole.
//! The program of README.md is a doctest of src/lib.rs; scripts/interop runs the commands of docs/interoperability.md.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use subquad::arch::FAMILIES;
use subquad::mixer::MIXERS;
use subquad::recipe::{EMBEDDED, Recipe, render};

/// Folders whose files the pages name.
const FOLDERS: [&str; 8] = ["recipes/", "scripts/", "assets/", "tests/", "docs/", "src/", "examples/", "benches/"];

/// Programs in blocks of shell commands that are not ours, and of which nothing is checked here.
const FOREIGN: [&str; 1] = ["lm_eval"];

/// Columns of README.md.
const MAX_COLUMNS: usize = 100;

/// Lines of README.md: a screen and a half.
const MAX_LINES: usize = 110;

/// A page of Markdown.
struct Page {
    /// From the repository's root.
    name: String,
    text: String,
}

/// A fenced block of a page.
struct Block {
    language: String,
    text: String,
}

impl Page {
    fn read(name: &str) -> Page {
        Page { name: name.into(), text: std::fs::read_to_string(root().join(name)).unwrap() }
    }

    /// Its fenced blocks, also those in lists; what they are indented by is taken away.
    fn blocks(&self) -> Vec<Block> {
        let (mut blocks, mut open) = (vec![], None::<(usize, Block)>);
        for line in self.text.lines() {
            let indent = line.len() - line.trim_start().len();
            let fence = line.trim_start().strip_prefix("```");
            match (&mut open, fence) {
                (None, Some(language)) => {
                    open = Some((indent, Block { language: language.trim().into(), text: String::new() }));
                }
                (Some(_), Some(_)) => blocks.extend(open.take().map(|(_, block)| block)),
                (Some((indent, block)), None) => {
                    block.text += line.get(*indent..).unwrap_or_default();
                    block.text.push('\n');
                }
                (None, None) => (),
            }
        }
        assert!(open.is_none(), "{}: a block is not closed", self.name);
        blocks
    }

    /// Its lines outside of blocks.
    fn prose(&self) -> String {
        let mut inside = false;
        let outside = |line: &&str| {
            let fence = line.trim_start().starts_with("```");
            inside ^= fence;
            !inside && !fence
        };
        self.text.lines().filter(outside).collect::<Vec<_>>().join("\n")
    }

    /// The insides of `code` in its prose.
    fn code(&self) -> Vec<String> {
        self.prose().split('`').skip(1).step_by(2).map(String::from).collect()
    }

    /// The names of its headings in links.
    fn anchors(&self) -> BTreeSet<String> {
        let prose = self.prose();
        let headings = prose.lines().filter_map(|line| line.strip_prefix('#'));
        headings.map(|heading| anchor(heading.trim_start_matches('#').trim())).collect()
    }

    /// The targets of its links.
    fn links(&self) -> Vec<String> {
        let prose = self.prose();
        prose.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_string())).collect()
    }

    fn folder(&self) -> &Path {
        Path::new(&self.name).parent().unwrap()
    }
}

/// A heading as sites that show Markdown name it in links.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>().replace(' ', "-")
}

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// The pages that users read.
fn pages() -> Vec<Page> {
    let docs = std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = docs.map(|name| format!("docs/{}", name.to_str().unwrap())).collect();
    names.retain(|name| name.ends_with(".md"));
    names.push("README.md".into());
    names.sort();
    assert!(names.len() > 10);
    names.iter().map(|name| Page::read(name)).collect()
}

fn everything() -> Vec<Page> {
    let mut all = pages();
    all.extend(["CONTRIBUTING.md", "CHANGELOG.md"].map(Page::read));
    all
}

/// The words of a shell command without its comment, quotes taken away.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (vec![], String::new(), None);
    for c in line.chars() {
        match quote {
            Some(q) if c == q => quote = None,
            Some(_) => word.push(c),
            None if c == '"' || c == '\'' => quote = Some(c),
            None if c == '#' && word.is_empty() => break,
            None if c == ' ' => words.extend((!word.is_empty()).then(|| std::mem::take(&mut word))),
            None => word.push(c),
        }
    }
    words.extend((!word.is_empty()).then_some(word));
    words
}

/// Commands of shell blocks, each with the page that shows it.
fn commands() -> Vec<(String, Vec<String>)> {
    let mut commands = vec![];
    for page in pages() {
        for block in page.blocks().iter().filter(|block| block.language == "sh") {
            let lines = block.text.lines().map(words).filter(|words| !words.is_empty());
            commands.extend(lines.map(|words| (page.name.clone(), words)));
        }
    }
    commands
}

/// Runs the program; its status and what it printed.
fn subquad(arguments: &[String]) -> (bool, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_subquad")).args(arguments).output().unwrap();
    let text = [done.stdout, done.stderr].concat();
    (done.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn recipes_are_valid() {
    let mut read = 0;
    for page in pages() {
        for block in page.blocks().iter().filter(|block| block.language == "toml") {
            if let Err(error) = Recipe::parse(&page.name, &block.text, None, &[]) {
                panic!("{}", render(&error, false));
            }
            read += 1;
        }
    }
    assert!(read >= 2);
}

#[test]
fn named_files_exist() {
    for page in everything() {
        for word in page.text.split(|c: char| c.is_whitespace() || "`():,;[]#\"".contains(c)) {
            let placeholder = ["NAME", "OP", "*"].iter().any(|hole| word.contains(hole));
            if !placeholder && FOLDERS.iter().any(|folder| word.starts_with(folder)) {
                assert!(root().join(word.trim_end_matches('.')).exists(), "{}: there is no {word}", page.name);
            }
        }
    }
}

#[test]
fn links_lead_somewhere() {
    let mut followed = 0;
    for page in everything() {
        for link in page.links().iter().filter(|link| !link.contains("://")) {
            let (path, heading) = link.split_once('#').map_or((link.as_str(), None), |(p, h)| (p, Some(h)));
            let target = if path.is_empty() { PathBuf::from(&page.name) } else { page.folder().join(path) };
            assert!(root().join(&target).exists(), "{}: the link {link} leads to no file", page.name);
            if let Some(heading) = heading {
                let anchors = Page::read(target.to_str().unwrap()).anchors();
                assert!(anchors.contains(heading), "{}: no heading for {link} among {anchors:?}", page.name);
            }
            followed += 1;
        }
    }
    assert!(followed > 30);
}

/// Commands that can be typed are parsed by the program itself, up to a `--help` behind them.
#[test]
fn commands_are_understood() {
    let cargo = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let mut parsed = 0;
    for (page, words) in commands() {
        let command = words.join(" ");
        let words: Vec<&str> = words.iter().map(String::as_str).filter(|word| !word.starts_with("PYTHON=")).collect();
        let ours = match words.as_slice() {
            ["subquad", ours @ ..] | ["cargo", "run", "--release", "--", ours @ ..] => ours,
            ["cargo", "run", "--release", "--example", name] => {
                assert!(root().join(format!("examples/{name}.rs")).exists(), "{page}: {command}");
                continue;
            }
            ["cargo", "bench", "--bench", name] => {
                assert!(cargo.contains(&format!("[[bench]]\nname = \"{name}\"")), "{page}: {command}");
                continue;
            }
            ["cargo", "install" | "build", ..] => continue,
            [program, ..] if FOREIGN.contains(program) || root().join(program).is_file() => continue,
            _ => panic!("{page}: a command of a program that this test does not know: {command}"),
        };
        let ours = ours.iter().copied().take_while(|word| *word != ">").chain(["--help"]);
        let (understood, said) = subquad(&ours.map(String::from).collect::<Vec<_>>());
        assert!(understood, "{page}: {command}\n{said}");
        parsed += 1;
    }
    assert!(parsed > 25);
}

/// Forms of commands in sentences and tables: the subcommand and its long options exist.
#[test]
fn forms_of_commands_exist() {
    let mut helps = BTreeMap::new();
    for page in everything() {
        for code in page.code().iter().filter(|code| code.starts_with("subquad ")) {
            let words: Vec<&str> = code.split(|c: char| " \n[]=".contains(c)).filter(|word| !word.is_empty()).collect();
            let form = |word: &&str| word.chars().all(|c| c.is_lowercase() || c == '-') && !word.starts_with('-');
            let subcommand = words.get(1).copied().filter(form).unwrap_or_default();
            let nested = words.get(2).copied().filter(|_| subcommand == "recipes").filter(form).unwrap_or_default();
            let help = helps.entry((subcommand.to_string(), nested.to_string())).or_insert_with_key(|(a, b)| {
                let arguments = [a.as_str(), b.as_str(), "--help"].map(String::from);
                subquad(&arguments.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>())
            });
            assert!(help.0, "{}: `{code}`\n{}", page.name, help.1);
            for option in words.iter().filter(|word| word.starts_with("--")) {
                let known: Vec<&str> = help.1.split(|c: char| !(c.is_alphanumeric() || c == '-')).collect();
                assert!(known.contains(option), "{}: `{code}`: no option {option}", page.name);
            }
        }
    }
    assert!(helps.len() > 12, "{:?}", helps.keys());
}

/// What is registered is found by readers.
#[test]
fn lists_are_whole() {
    let (readme, recipes) = (Page::read("README.md"), Page::read("docs/recipes.md"));
    for (name, _) in EMBEDDED {
        for page in [&readme, &recipes] {
            assert!(page.text.contains(&format!("recipes/{name}.toml")), "{} lacks recipes/{name}.toml", page.name);
        }
    }
    let named = |page: &str| -> BTreeSet<String> {
        let text = Page::read(page).text;
        text.split(|c: char| !(c.is_alphanumeric() || "-_".contains(c))).map(String::from).collect()
    };
    let (mixers, teachers) = (named("docs/mixers.md"), named("docs/teachers.md"));
    for mixer in MIXERS {
        assert!(mixers.contains(mixer.name), "docs/mixers.md does not name {}", mixer.name);
    }
    for model_type in FAMILIES.iter().flat_map(|family| family.model_types) {
        assert!(teachers.contains(*model_type), "docs/teachers.md does not name {model_type}");
    }
    let (index, start) = (Page::read("docs/README.md").links(), readme.links());
    for page in pages().iter().filter(|page| page.name != "README.md" && page.name != "docs/README.md") {
        let file = page.name.strip_prefix("docs/").unwrap();
        assert!(index.iter().any(|link| link == file), "docs/README.md does not link to {file}");
    }
    assert!(start.iter().any(|link| link == "docs/start.md"), "README.md does not link to docs/start.md");
}

#[test]
fn the_readme_is_short() {
    let readme = Page::read("README.md");
    let lines: Vec<&str> = readme.text.lines().collect();
    assert!(lines.len() <= MAX_LINES, "README.md has {} lines; what it says in more belongs to docs/", lines.len());
    for line in lines {
        assert!(line.chars().count() <= MAX_COLUMNS, "README.md: more than {MAX_COLUMNS} columns: {line}");
    }
}

/// Changelog and citation follow the package.
#[test]
fn the_version_is_everywhere_the_same() {
    let version = env!("CARGO_PKG_VERSION");
    let citation = std::fs::read_to_string(root().join("CITATION.cff")).unwrap();
    assert!(citation.lines().any(|line| line == format!("version: {version}")), "CITATION.cff is not of {version}");
    for licence in env!("CARGO_PKG_LICENSE").split(" OR ") {
        assert!(citation.lines().any(|line| line.trim() == format!("- {licence}")), "CITATION.cff lacks {licence}");
    }
    assert!(Page::read("CHANGELOG.md").anchors().contains("unreleased"));
}

/// The walk through a family shows the code of that family.
#[test]
fn the_walk_through_a_family_is_true() {
    let contributing = Page::read("CONTRIBUTING.md");
    let shown = contributing.blocks().into_iter().find(|block| block.language == "rust").unwrap().text;
    let granite = std::fs::read_to_string(root().join("src/arch/granite.rs")).unwrap();
    assert!(granite.contains(shown.trim()), "CONTRIBUTING.md shows other code than src/arch/granite.rs");
}

#[test]
fn the_reader_of_pages_reads() {
    let text = "# A page: `x`\n1. one\n   ```sh\n   subquad a \"b c\" # d\n   ```\n[l](m.md#n) `subquad o`\n";
    let page = Page { name: "docs/x.md".into(), text: text.into() };
    assert_eq!(page.anchors().into_iter().collect::<Vec<_>>(), ["a-page-x"]);
    assert_eq!(page.links(), ["m.md#n"]);
    assert_eq!(page.code(), ["x", "subquad o"]);
    let blocks = page.blocks();
    assert_eq!((blocks.len(), blocks[0].language.as_str()), (1, "sh"));
    assert_eq!(words(&blocks[0].text.replace('\n', "")), ["subquad", "a", "b c"]);
}
