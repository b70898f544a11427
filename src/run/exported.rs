//! The model at the end of a run: exported, or found as an earlier run has left it.

use super::folder::RunFolder;
use super::inputs::Inputs;
use super::ledger::{EXPORT, Entry, Ledger};
use super::ours;
use super::results::{CHECKSUMS, damage};
use super::stages::Pipeline;
use crate::Result;
use crate::checkpoint::{CONFIG, file_digests};
use crate::export::{ExportOptions, export, is_converted};
use crate::progress::Progress;
use crate::recipe::Recipe;
use std::path::Path;

/// Exports the model, unless what lies at `model` is just what this would write.
pub fn finish(
    conversion: &Pipeline,
    recipe: &Recipe,
    inputs: &Inputs,
    model: &Path,
    folder: &mut RunFolder,
    progress: &mut dyn Progress,
) -> Result<()> {
    let key = conversion.export_key()?;
    let ledger = folder.ledger()?;
    if let Some(entry) = ledger.finished(EXPORT, &key).filter(|entry| !entry.files.is_empty()).cloned() {
        match damage(model, &entry, progress)? {
            None => {
                progress.say(&format!("{}: unchanged", model.display()));
                // Stages may have been done again since, with the same result.
                return if ledger.ends_with_export() { Ok(()) } else { ledger.append(entry) };
            }
            Some(damage) => {
                progress.say(&format!("{}: {damage}, so the model is exported again", model.display()));
            }
        }
    }
    make_replaceable(model, ledger, progress)?;
    let started = std::time::Instant::now();
    let dtype = recipe.export.dtype.map(Into::into);
    let options = ExportOptions { shard_bytes: recipe.export.shard, dtype, base: None };
    let (teacher, reports) = (&inputs.checkpoint, &conversion.reports);
    let exported =
        export(&conversion.model, &conversion.student, teacher, &recipe.text, &options, reports, model, progress)?;
    let megabytes = exported.bytes as f64 / 1e6;
    let names: Vec<String> = exported.files.into_iter().map(|file| file.name).collect();
    let files = file_digests(model, names.iter(), CHECKSUMS, progress)?;
    let files = files.into_iter().filter_map(|(name, digest)| Some((name, digest?))).collect();
    progress.say(&format!("{}: {} files, {megabytes:.2} MB", model.display(), names.len()));
    folder.ledger()?.append(Entry::finished(EXPORT, &key, started.elapsed().as_secs_f64(), files))
}

/// An export replaces only what its config.json says to be an export. Where this file is damaged or gone and all others
/// are those that the ledger knows, these are removed; any other folder is for its user to look at.
pub fn make_replaceable(model: &Path, ledger: &Ledger, progress: &mut dyn Progress) -> Result<()> {
    let Some(entry) = ledger.last(EXPORT).filter(|_| model.exists() && !is_converted(model)) else { return Ok(()) };
    let found = file_digests(model, entry.files.keys(), CHECKSUMS, progress)?;
    let is_ours = |(name, digest): (&String, &Option<String>)| {
        name == CONFIG || digest.as_ref().is_none_or(|digest| entry.files.get(name) == Some(digest))
    };
    match found.iter().all(is_ours) {
        true => entry.files.keys().try_for_each(|name| ours::remove(&model.join(name))),
        false => Ok(()),
    }
}
