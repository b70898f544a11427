//! SHA-256 of files as they lie on disk, and of tensors whatever files hold them. It depends on the bytes alone, never on
//! threads.

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;
use safetensors::Dtype;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::files::map;
use super::open::Checkpoint;
use crate::error::{Error, Result};
use crate::progress::{Progress, Unit, check_interrupt};

/// Bytes that one thread hashes at a time: small enough that a tensor is work for many, and that Ctrl-C is heard soon.
const BLOCK: usize = 1 << 20;
/// Blocks for each thread between two reports.
const BLOCKS: usize = 8;
/// Up to so many bytes are hashed before a user could read that they are.
const MAX_SILENT: u64 = 256 << 20;

/// The digits of a digest.
pub(crate) fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 of a file, as `sha256sum` prints it; `None`: there is no such file.
pub(crate) fn file_digest(path: &Path) -> Result<Option<String>> {
    digest_while(path, &|| Ok(()))
}

/// [`file_digest`] of several files of a folder, side by side; `what` names the work.
pub(crate) fn file_digests<'a>(
    folder: &Path,
    names: impl Iterator<Item = &'a String>,
    what: &str,
    progress: &mut dyn Progress,
) -> Result<BTreeMap<String, Option<String>>> {
    let size = |name: &String| std::fs::metadata(folder.join(name)).map_or(0, |found| found.len());
    let files: Vec<(&String, u64)> = names.map(|name| (name, size(name))).collect();
    let mut work = Work::begin(what, files.iter().map(|(_, size)| size).sum(), progress);
    let mut digests = BTreeMap::new();
    for group in files.chunks(rayon::current_num_threads()) {
        let one = |(name, _): &(&String, u64)| {
            let digest = digest_while(&folder.join(name), &check_interrupt)?;
            Ok((name.to_string(), digest))
        };
        // All first, so that of several errors it is always the same that is told.
        for digest in group.par_iter().map(one).collect::<Vec<Result<_>>>() {
            digests.extend([digest?]);
        }
        work.advance(group.iter().map(|(_, size)| size).sum());
    }
    work.end();
    Ok(digests)
}

/// SHA-256 of a file, asking before each block whether to go on.
fn digest_while(path: &Path, go_on: &dyn Fn() -> Result<()>) -> Result<Option<String>> {
    let Some(bytes) = map(path)? else { return Ok(None) };
    let mut hash = Sha256::new();
    for block in bytes.chunks(BLOCK) {
        go_on()?;
        hash.update(block);
    }
    Ok(Some(hex(hash.finalize())))
}

/// SHA-256 of tensors, one after the other, and of what is said of them.
pub(super) struct TensorsDigest(Sha256);

impl TensorsDigest {
    /// `words` belong to all of the tensors; name, type and shape of each say which bytes are its own.
    pub fn new(words: &impl Serialize, tensors: &[(&str, Dtype, &[usize])]) -> Result<Self> {
        let header = serde_json::to_vec(&(words, tensors)).map_err(|e| Error::Internal(e.to_string()))?;
        let mut hash = Sha256::new();
        hash.update((header.len() as u64).to_le_bytes());
        hash.update(header);
        Ok(TensorsDigest(hash))
    }

    /// The next tensor. `done` is told how many bytes were hashed since it last was.
    pub fn add(&mut self, bytes: &[u8], done: &mut dyn FnMut(u64) -> Result<()>) -> Result<()> {
        let blocks: Vec<&[u8]> = bytes.chunks(BLOCK).collect();
        for group in blocks.chunks(BLOCKS * rayon::current_num_threads()) {
            let digests: Vec<_> = group.par_iter().map(Sha256::digest).collect();
            digests.iter().for_each(|digest| self.0.update(digest));
            done(group.iter().map(|block| block.len() as u64).sum())?;
        }
        Ok(())
    }

    pub fn finish(self) -> String {
        hex(self.0.finalize())
    }
}

impl Checkpoint {
    /// SHA-256 of `config.json`'s values and of every weight: the same model has the same, in whatever shards it lies.
    pub fn digest(&self, progress: &mut dyn Progress) -> Result<String> {
        let what = format!("checksum of {}", self.path().display());
        let mut work = Work::begin(&what, self.total_bytes(), progress);
        let described = self.tensors().iter().map(|info| (info.name.as_str(), info.dtype, &info.shape[..]));
        let mut digest = TensorsDigest::new(self.config(), &described.collect::<Vec<_>>())?;
        for at in 0..self.tensors().len() {
            digest.add(self.bytes(at)?, &mut |bytes| {
                work.advance(bytes);
                check_interrupt()
            })?;
        }
        work.end();
        Ok(digest.finish())
    }
}

/// Progress of what takes long enough to be shown.
struct Work<'a> {
    progress: Option<&'a mut dyn Progress>,
    done: u64,
}

impl<'a> Work<'a> {
    fn begin(what: &str, total: u64, progress: &'a mut dyn Progress) -> Self {
        let shown = total > MAX_SILENT;
        if shown {
            progress.begin(what, 0, total, Unit::Bytes);
        }
        Work { progress: shown.then_some(progress), done: 0 }
    }

    fn advance(&mut self, bytes: u64) {
        self.done += bytes;
        if let Some(progress) = &mut self.progress {
            progress.advance(self.done, "");
        }
    }

    fn end(self) {
        if let Some(progress) = self.progress {
            progress.end("");
        }
    }
}
