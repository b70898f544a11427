//! What README.md and CONTRIBUTING.md show is true: recipes are valid, files exist, code is the code that is there.

use std::path::Path;

use subquad::recipe::{EMBEDDED, Recipe, render};

const README: &str = include_str!("../README.md");

const CONTRIBUTING: &str = include_str!("../CONTRIBUTING.md");

/// The insides of fenced blocks of this language.
fn blocks(language: &str) -> Vec<&'static str> {
    README.split("\n```").filter_map(|part| part.strip_prefix(language)?.strip_prefix('\n')).collect()
}

#[test]
fn recipes_are_valid() {
    let recipes = blocks("toml");
    assert!(!recipes.is_empty());
    for recipe in recipes {
        if let Err(error) = Recipe::parse("README.md", recipe, None, &[]) {
            panic!("{}", render(&error, false));
        }
    }
}

#[test]
fn named_files_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let words = README.split(|c: char| c.is_whitespace() || "`():".contains(c));
    let files =
        words.filter(|w| ["recipes/", "scripts/", "assets/", "tests/", "docs/"].iter().any(|f| w.starts_with(f)));
    for file in files {
        assert!(root.join(file).exists(), "{file}");
    }
    for page in README.split("--example ").skip(1).filter_map(|rest| rest.split([' ', '\n', '`']).next()) {
        assert!(root.join(format!("examples/{page}.rs")).exists(), "{page}");
    }
    for (name, _) in EMBEDDED {
        assert!(README.contains(&format!("recipes/{name}.toml")), "README.md does not mention recipes/{name}.toml");
    }
}

/// The walk through a family shows the code of that family, and the files that it names exist.
#[test]
fn the_walk_through_a_family_is_true() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let walk = CONTRIBUTING.split("## Add a family of teachers").nth(1).unwrap().split("\n## ").next().unwrap();
    let shown = walk.split("```rust\n").nth(1).unwrap().split("```").next().unwrap();
    let shown: Vec<&str> = shown.lines().map(|line| line.strip_prefix("   ").unwrap_or(line)).collect();
    let granite = std::fs::read_to_string(root.join("src/arch/granite.rs")).unwrap();
    assert!(granite.contains(shown.join("\n").trim()), "CONTRIBUTING.md shows other code than src/arch/granite.rs");
    let words = walk.split(|c: char| c.is_whitespace() || "`():,;".contains(c));
    let files = words.filter(|w| ["src/", "tests/"].iter().any(|f| w.starts_with(f)) && !w.contains("NAME"));
    assert!(files.clone().count() > 5);
    for file in files {
        assert!(root.join(file.trim_end_matches('.')).exists(), "{file}");
    }
}
