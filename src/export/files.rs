//! Files of an exported folder: which are copied from the teacher, and which names can be there at all.

use std::path::Path;

use super::config::GENERATION;
use super::{Written, adapter};
use crate::checkpoint::{CONFIG, Checkpoint, INDEX, WEIGHTS};
use crate::{Error, Result};

/// The recipe, verbatim.
pub(super) const RECIPE: &str = "recipe.toml";
/// The model card.
pub(super) const CARD: &str = "README.md";
/// Files of a tokenizer; whichever the teacher has are copied byte for byte.
pub const TOKENIZER: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
];

/// Whether `name` is a licence or a notice, and a plain name on every system.
fn is_legal(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    !name.contains([':', '\\']) && ["LICENSE", "LICENCE", "NOTICE", "COPYING"].iter().any(|s| upper.starts_with(s))
}

/// Whether an export writes files of that name.
pub(super) fn is_exported(name: &str) -> bool {
    let shard = name.starts_with("model-") && name.ends_with(".safetensors");
    let ours = [CONFIG, GENERATION, INDEX, WEIGHTS, RECIPE, CARD];
    let python = super::python::FILES.iter().any(|(file, _)| *file == name);
    shard || python || ours.contains(&name) || TOKENIZER.contains(&name) || is_legal(name)
}

/// Whether a folder inside of an export is that of its adapter.
pub(super) fn is_adapter(folder: &Path) -> bool {
    let names = folder.read_dir().map(|entries| entries.map(|e| e.map(|e| e.file_name())).collect::<Vec<_>>());
    let known = |name: &std::ffi::OsString| name == adapter::CONFIG || name == adapter::WEIGHTS;
    folder.ends_with(adapter::ADAPTER)
        && names.is_ok_and(|names| names.iter().all(|name| name.as_ref().is_ok_and(known)))
}

/// What a teacher has beside its weights and config.json.
pub(super) struct Copies {
    /// Name and contents of every file that is taken over unchanged.
    pub files: Vec<(String, Vec<u8>)>,
    /// The files of a tokenizer that are not there.
    pub absent: Vec<&'static str>,
}

impl Copies {
    /// Reads them from the teacher's folder.
    pub fn of(teacher: &Checkpoint) -> Result<Copies> {
        let source = teacher.files();
        let mut copies = Copies { files: Vec::new(), absent: Vec::new() };
        for name in TOKENIZER {
            match source.read(name)? {
                Some(bytes) => copies.files.push((name.to_string(), bytes.into_owned())),
                None => copies.absent.push(name),
            }
        }
        for name in source.names().into_iter().filter(|name| name == GENERATION || is_legal(name)) {
            if let Some(bytes) = source.read(&name)? {
                copies.files.push((name, bytes.into_owned()));
            }
        }
        Ok(copies)
    }

    /// Whether a file of that name is among them.
    pub fn contains(&self, name: &str) -> bool {
        self.files.iter().any(|(n, _)| n == name)
    }
}

/// Names and sizes of the files in `folder`, sorted.
pub(super) fn listing(folder: &Path) -> Result<Vec<Written>> {
    let mut all = Vec::new();
    for entry in folder.read_dir().map_err(Error::io(folder, "list it"))? {
        let entry = entry.map_err(Error::io(folder, "list it"))?;
        if entry.path().is_dir() {
            let parent = entry.file_name().to_string_lossy().into_owned();
            let inside = listing(&entry.path())?.into_iter();
            all.extend(inside.map(|file| Written { name: format!("{parent}/{}", file.name), ..file }));
            continue;
        }
        let bytes = entry.metadata().map_err(Error::io(entry.path(), "look at it"))?.len();
        all.push(Written { name: entry.file_name().to_string_lossy().into_owned(), bytes });
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}
