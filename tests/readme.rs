//! What README.md shows is true: its recipes are valid, its recipe files and examples exist.

use std::path::Path;

use subquad::recipe::{EMBEDDED, Recipe, render};

const README: &str = include_str!("../README.md");

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
