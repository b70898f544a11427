//! The texts that a recipe names: whether they are there, and how large they are. None is read, and none downloaded.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::Result;
use crate::checkpoint::Location;
use crate::hub;
use crate::recipe::Recipe;

/// Bytes of text that a token stands for, about: tokenizers of English have between 3 and 5.
const BYTES_PER_TOKEN: u64 = 4;

/// Sizes of texts.
pub(super) struct Texts {
    /// Bytes of the training text.
    source: u64,
    /// For every stage about how many tokens its own text has; 0 where it has none.
    pub stages: Vec<u64>,
    /// Bytes of texts that are still on the Hub.
    pub download: u64,
}

impl Texts {
    /// Bytes that a stage's texts take in memory: the text, and 4 bytes for each token of it.
    pub fn memory(&self, stage: usize) -> u64 {
        2 * self.source.max(self.stages[stage] * BYTES_PER_TOKEN)
    }
}

/// Looks at every text; one that is not there, or is no text, is refused.
pub(super) fn texts(recipe: &Recipe) -> Result<Texts> {
    let mut absent = BTreeMap::new();
    let source = size(recipe, &recipe.data.source, "data.source", &mut absent)?;
    let mut stages = Vec::new();
    for (index, stage) in recipe.stages.iter().enumerate() {
        stages.push(match stage.needs().text {
            Some(text) => size(recipe, text.name, &format!("stage.{index}.text"), &mut absent)? / BYTES_PER_TOKEN,
            None => 0,
        });
    }
    Ok(Texts { source, stages, download: absent.values().sum() })
}

/// Bytes of a text; what of it is still on the Hub goes into `absent`, once however often it is named.
fn size(recipe: &Recipe, text: &str, key: &str, absent: &mut BTreeMap<String, u64>) -> Result<u64> {
    match Location::resolve(text, recipe.base.as_deref())? {
        Location::Path(path) => Ok(on_disk(&path)),
        Location::Hub(id) => {
            let weight = hub::weigh_text(&id)?;
            absent.insert(text.to_string(), weight.absent);
            Ok(weight.bytes)
        }
        Location::Builtin(builtin) if builtin.is_model() => {
            Err(recipe.error_at(key, format!("`{text}` is a model, not a text"), "for example \"builtin:books-train\""))
        }
        Location::Builtin(builtin) => Ok(builtin.files.iter().map(|(_, bytes)| bytes.len() as u64).sum()),
    }
}

/// Bytes of a file, or of the files of a folder.
fn on_disk(path: &Path) -> u64 {
    let length = |path: &Path| fs::metadata(path).ok().filter(|found| found.is_file()).map_or(0, |found| found.len());
    match path.read_dir() {
        Ok(entries) => entries.flatten().map(|entry| length(&entry.path())).sum(),
        Err(_) => length(path),
    }
}
