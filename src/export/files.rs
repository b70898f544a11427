//! Files of an exported folder: which are copied from the teacher, and which names can be there at all.

use std::path::Path;

use serde::de::IgnoredAny;

use super::Written;
use super::names::{ADAPTER, ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD, GENERATION};
use crate::checkpoint::{CONFIG, Checkpoint, INDEX, WEIGHTS, shown};
use crate::{Error, Result};

/// The recipe, verbatim.
pub(super) const RECIPE: &str = "recipe.toml";
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

/// What the names of chat templates end with.
const TEMPLATE: &str = ".jinja";
/// Largest chat template, licence or notice that is copied, and largest file of a tokenizer.
const MAX_TEXT: u64 = 1 << 20;
const MAX_TOKENIZER: u64 = 1 << 30;

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
    let known = |name: &std::ffi::OsString| name == ADAPTER_CONFIG || name == ADAPTER_WEIGHTS;
    folder.ends_with(ADAPTER) && names.is_ok_and(|names| names.iter().all(|name| name.as_ref().is_ok_and(known)))
}

/// What a teacher has beside its weights and config.json.
pub(super) struct Copies {
    /// Name and contents of every file that is taken over unchanged.
    pub files: Vec<(String, Vec<u8>)>,
    /// The files of a tokenizer that are not there.
    pub absent: Vec<&'static str>,
    /// The licences and notices that are no texts and are not taken over.
    pub left_out: Vec<String>,
}

/// Holds the files that an export would copy from the teacher to what they must be, and says which are left out.
pub fn check_companions(teacher: &Checkpoint) -> Result<Vec<String>> {
    let left_out = Copies::of(teacher)?.left_out.into_iter();
    let note = |name: String| {
        format!("`{}` is not UTF-8 text, so the converted model will not have it: copy it there yourself", shown(&name))
    };
    Ok(left_out.map(note).collect())
}

impl Copies {
    /// Reads them from the teacher's folder.
    pub fn of(teacher: &Checkpoint) -> Result<Copies> {
        let source = teacher.files();
        let mut copies = Copies { files: Vec::new(), absent: Vec::new(), left_out: Vec::new() };
        for name in TOKENIZER {
            let limit = if name.ends_with(TEMPLATE) { MAX_TEXT } else { MAX_TOKENIZER };
            let Some(bytes) = source.read_at_most(name, limit)? else {
                copies.absent.push(name);
                continue;
            };
            if let Some(what) = not_as_named(name, &bytes) {
                let what = format!("{what}, and it would be copied into the converted model");
                return Err(Error::file(source.place(name), what, "download or copy the file again, or remove it"));
            }
            copies.files.push((name.to_string(), bytes.into_owned()));
        }
        for name in source.names().into_iter().filter(|name| name == GENERATION || is_legal(name)) {
            match source.read_at_most(&name, MAX_TEXT)? {
                None => {}
                Some(bytes) if not_as_named(&name, &bytes).is_none() => copies.files.push((name, bytes.into_owned())),
                // An export writes one of its own where there is none to copy.
                Some(_) if name == GENERATION => {}
                Some(_) => copies.left_out.push(name),
            }
        }
        Ok(copies)
    }

    /// Whether a file of that name is among them.
    pub fn contains(&self, name: &str) -> bool {
        self.files.iter().any(|(n, _)| n == name)
    }
}

/// What is wrong with the contents of a file whose name says what it is: JSON or text. A tokenizer.model may be anything.
fn not_as_named(name: &str, bytes: &[u8]) -> Option<String> {
    if name.ends_with(".json") {
        let json = serde_json::from_slice::<IgnoredAny>(bytes);
        return json.err().map(|e| format!("this is not JSON ({})", shown(&e.to_string())));
    }
    let text = name.ends_with(".txt") || name.ends_with(TEMPLATE) || is_legal(name);
    let wrong = text && std::str::from_utf8(bytes).is_err();
    wrong.then(|| "this is not UTF-8 text".into())
}

/// Names and sizes of the files in `folder`, sorted.
pub(super) fn listing(folder: &Path) -> Result<Vec<Written>> {
    let mut all = Vec::new();
    for entry in folder.read_dir().map_err(Error::io(folder, "list it"))? {
        let entry = entry.map_err(Error::io(folder, "list it"))?;
        let linked = entry.path().is_symlink() && entry.file_name() != ADAPTER;
        if entry.path().is_dir() && !linked {
            let parent = entry.file_name().to_string_lossy().into_owned();
            let inside = listing(&entry.path())?.into_iter();
            all.extend(inside.map(|file| Written { name: format!("{parent}/{}", file.name), ..file }));
            continue;
        }
        let bytes = std::fs::metadata(entry.path()).map_err(Error::io(entry.path(), "look at it"))?.len();
        all.push(Written { name: entry.file_name().to_string_lossy().into_owned(), bytes });
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}
