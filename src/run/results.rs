//! Results on disk, held to the checksums that the ledger has of them.

use super::ledger::Entry;
use crate::checkpoint::{file_digest, file_digests};
use crate::progress::Progress;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// The work of reading an export again, as users see it.
pub const CHECKSUMS: &str = "checksums of the exported model";

/// Checksums of the files that a stage has left in its folder.
pub fn checksums(stage: &Path, files: &[&str]) -> Result<BTreeMap<String, String>> {
    let one = |file: &&str| {
        let path = stage.join(file);
        let digest = file_digest(&path)?;
        let digest = digest.ok_or_else(|| Error::Internal(format!("{} was not written", path.display())))?;
        Ok((file.to_string(), digest))
    };
    files.iter().map(one).collect()
}

/// Tells whether these files of a stage are there, just as the stage that `entry` tells of has left them. A file that is not
/// there can be made again; another one in its place is an error, since it may come from anywhere.
pub fn are_whole(stage: &Path, files: &[&str], entry: &Entry) -> Result<bool> {
    for file in files {
        let path = stage.join(file);
        match (entry.files.get(*file), file_digest(&path)?) {
            (Some(wanted), Some(found)) if *wanted == found => {}
            (Some(_), Some(_)) => {
                let what = "this file is damaged or another one: its checksum is not the one that the run has noted";
                return Err(Error::run(path, what, "remove this file, or start again with `--fresh`"));
            }
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// The first of an export's files that is not there as it was written, and in what way.
pub fn damage(model: &Path, entry: &Entry, progress: &mut dyn Progress) -> Result<Option<String>> {
    let found = file_digests(model, entry.files.keys(), CHECKSUMS, progress)?;
    let damage = |(name, wanted): (&String, &String)| match found.get(name).and_then(Option::as_ref) {
        Some(found) if found == wanted => None,
        Some(_) => Some(format!("`{name}` has changed")),
        None => Some(format!("`{name}` is missing")),
    };
    Ok(entry.files.iter().find_map(damage))
}
