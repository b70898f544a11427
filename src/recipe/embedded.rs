//! Recipes inside the binary, and the rule by which an argument becomes a recipe's text.

use std::path::{Path, PathBuf};

use crate::checkpoint::nearest;
use crate::config::backticked;
use crate::error::{Error, Result};

/// Name and text of each embedded recipe.
pub static EMBEDDED: &[(&str, &str)] = &[
    ("smoke", include_str!("../../recipes/smoke.toml")),
    ("quickstart", include_str!("../../recipes/quickstart.toml")),
    ("lolcats", include_str!("../../recipes/lolcats.toml")),
    ("gated-deltanet", include_str!("../../recipes/gated-deltanet.toml")),
    ("mamba2", include_str!("../../recipes/mamba2.toml")),
    ("liger-gla", include_str!("../../recipes/liger-gla.toml")),
    ("sweep", include_str!("../../recipes/sweep.toml")),
    ("smollm2-135m", include_str!("../../recipes/smollm2-135m.toml")),
    ("qwen2.5-0.5b", include_str!("../../recipes/qwen2.5-0.5b.toml")),
    ("qwen3-0.6b", include_str!("../../recipes/qwen3-0.6b.toml")),
    ("llama-3.2-1b", include_str!("../../recipes/llama-3.2-1b.toml")),
    ("llama-3.2-3b", include_str!("../../recipes/llama-3.2-3b.toml")),
    ("mistral-7b", include_str!("../../recipes/mistral-7b.toml")),
    ("llama-3.1-8b", include_str!("../../recipes/llama-3.1-8b.toml")),
];

/// Larger files are no recipes.
const MAX_BYTES: u64 = 256 * 1024;

/// The text of the embedded recipe of that name.
pub fn embedded(name: &str) -> Option<&'static str> {
    EMBEDDED.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// What a recipe is for: its first comment line.
pub fn description(text: &str) -> &str {
    text.lines().find_map(|line| line.strip_prefix("# ")).unwrap_or("").trim()
}

/// Text and folder of the recipe that `argument` names: a path that exists, else an embedded one.
pub(super) fn read(argument: &str) -> Result<(String, Option<PathBuf>)> {
    let path = Path::new(argument);
    if path.exists() {
        return Ok((read_file(path)?, path.parent().map(folder)));
    }
    embedded(argument).map(|text| (text.to_string(), None)).ok_or_else(|| not_found(path, argument))
}

fn folder(parent: &Path) -> PathBuf {
    if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent.into() }
}

fn read_file(path: &Path) -> Result<String> {
    let size = std::fs::metadata(path).map_err(Error::io(path, "look at it"))?;
    if size.is_dir() {
        return Err(Error::file(path, "this is a folder, not a recipe", "name the .toml file inside it"));
    }
    if size.len() > MAX_BYTES {
        let what = format!("this file has {} bytes, too many for a recipe", size.len());
        return Err(Error::file(path, what, "name a .toml file; `subquad recipes ls` lists examples"));
    }
    let bytes = std::fs::read(path).map_err(Error::io(path, "read it"))?;
    String::from_utf8(bytes).map_err(|_| {
        Error::file(path, "this is not UTF-8 text", "name a .toml file; `subquad recipes ls` lists examples")
    })
}

fn not_found(path: &Path, argument: &str) -> Error {
    let names: Vec<&str> = EMBEDDED.iter().map(|(name, _)| *name).collect();
    let what = "there is no such file, and no embedded recipe of that name";
    let bare = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or(argument);
    let beside = toml_files(path.parent().map(folder).as_deref());
    let near_file = nearest(argument, beside.iter().map(String::as_str));
    let hint = match near_file.or_else(|| nearest(bare, names.iter().copied())) {
        Some(near) => format!("did you mean `{near}`? embedded: {}", backticked(&names)),
        None => format!("embedded: {}; `subquad recipes cp NAME` writes one to edit", backticked(&names)),
    };
    Error::file(path, what, hint)
}

/// The recipes in a folder, as the user would name them, sorted.
fn toml_files(folder: Option<&Path>) -> Vec<String> {
    let Some(entries) = folder.and_then(|folder| std::fs::read_dir(folder).ok()) else { return Vec::new() };
    let mut files: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .map(|path| path.strip_prefix(".").unwrap_or(&path).display().to_string())
        .collect();
    files.sort();
    files
}
