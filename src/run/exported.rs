//! The model at the end of a run: exported, or found as an earlier run has left it.

use super::folder::RunFolder;
use super::inputs::Inputs;
use super::ledger::{EXPORT, Entry};
use super::ours;
use super::results::damage;
use super::stages::Pipeline;
use crate::Result;
use crate::checkpoint::{CONFIG, file_digest, file_digests};
use crate::export::{ExportOptions, export};
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
                make_replaceable(model, &entry)?;
            }
        }
    }
    let started = std::time::Instant::now();
    let dtype = recipe.export.dtype.map(Into::into);
    let options = ExportOptions { shard_bytes: recipe.export.shard, dtype, base: None };
    let (teacher, reports) = (&inputs.checkpoint, &conversion.reports);
    let exported =
        export(&conversion.model, &conversion.student, teacher, &recipe.text, &options, reports, model, progress)?;
    let megabytes = exported.bytes as f64 / 1e6;
    let names: Vec<String> = exported.files.into_iter().map(|file| file.name).collect();
    let files = file_digests(model, names.iter(), "checksums of the exported model", progress)?;
    let files = files.into_iter().filter_map(|(name, digest)| Some((name, digest?))).collect();
    progress.say(&format!("{}: {} files, {megabytes:.2} MB", model.display(), names.len()));
    folder.ledger()?.append(Entry::finished(EXPORT, &key, started.elapsed().as_secs_f64(), files))
}

/// An export replaces only what its config.json says to be an export. Where this file is damaged or gone, the others that
/// the ledger knows to be the run's are removed.
pub fn make_replaceable(model: &Path, entry: &Entry) -> Result<()> {
    if entry.files.get(CONFIG).cloned() != file_digest(&model.join(CONFIG))? {
        entry.files.keys().try_for_each(|name| ours::remove(&model.join(name)))?;
    }
    Ok(())
}
