//! The cache that all clients of the Hub share: contents by checksum, and folders of links for each commit.
//!
//! ```text
//! models--OWNER--NAME/refs/REVISION                the commit of a branch or tag
//!                     blobs/SUM                    contents
//!                     blobs/SUM.incomplete         the beginning of one
//!                     snapshots/COMMIT/PATH        links to contents
//! .locks/models--OWNER--NAME/SUM.lock              held while a file is fetched
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Component, Path, PathBuf};

use super::entry::{Entry, Kind};
use super::session::Session;
use crate::checkpoint::{HubId, create_anew, open_or_create};
use crate::{Error, Result};

/// One repository's part of the cache.
pub(super) struct Cache {
    root: PathBuf,
    folder: PathBuf,
    locks: PathBuf,
}

impl Cache {
    pub fn of(id: &HubId, kind: Kind, session: &Session) -> Cache {
        let name = format!("{}--{}--{}", kind.plural(), id.owner, id.name);
        let root = session.cache.clone();
        Cache { folder: root.join(&name), locks: root.join(".locks").join(name), root }
    }

    /// Where the cache lies, for messages.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    pub fn blob(&self, entry: &Entry) -> PathBuf {
        self.folder.join("blobs").join(&entry.sum)
    }

    pub fn incomplete(&self, entry: &Entry) -> PathBuf {
        self.folder.join("blobs").join(format!("{}.incomplete", entry.sum))
    }

    /// Whether all of a file is there, under its name in the commit's folder.
    pub fn has(&self, commit: &str, entry: &Entry) -> bool {
        is_file_of(&self.snapshot(commit).join(&entry.path), entry.size)
    }

    /// The commit that a revision was when it was last looked at.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.into());
        }
        let noted = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(noted.trim().to_string()).filter(|commit| is_commit(commit))
    }

    /// Notes the commit of a revision.
    pub fn note(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        replace(&path, |temporary| create_anew(temporary)?.write_all(commit.as_bytes()))
    }

    /// Gives contents that are there a name in the commit's folder.
    pub fn link(&self, commit: &str, entry: &Entry) -> Result<()> {
        let name = self.snapshot(commit).join(&entry.path);
        // From the name's folder up to the repository's: snapshots, the commit, and the folders of the path.
        let up = 1 + Path::new(&entry.path).components().filter(|part| matches!(part, Component::Normal(_))).count();
        let target: PathBuf = std::iter::repeat_n("..", up).collect::<PathBuf>().join("blobs").join(&entry.sum);
        replace(&name, |temporary| place(&target, &self.blob(entry), temporary))
    }

    /// Holds a file against other processes; `None` while one of them has it.
    pub fn lock(&self, entry: &Entry) -> Result<Option<File>> {
        let path = self.locks.join(format!("{}.lock", entry.sum));
        create_parent(&path)?;
        let file = open_or_create(&path, OpenOptions::new().write(true))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            // A file system without locks: downloads are renamed into place, so two at once only waste time.
            Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => Ok(Some(file)),
            Err(TryLockError::Error(e)) => Err(Error::io(&path, "lock it")(e)),
        }
    }

    /// Bytes that are free where the cache lies.
    pub fn free(&self) -> Option<u64> {
        fs4::available_space(self.root.ancestors().find(|folder| folder.is_dir())?).ok()
    }
}

/// Makes a small file and gives it its name at once. Other processes may do the same at the same time: each has a
/// temporary name of its own.
fn replace(path: &Path, make: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
    create_parent(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    // What a killed process of the same number left.
    let _ = fs::remove_file(&temporary);
    make(&temporary).and_then(|()| fs::rename(&temporary, path)).map_err(Error::io(path, "write it"))
}

#[cfg(unix)]
fn place(target: &Path, _: &Path, name: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, name)
}

/// Links need rights there that few have.
#[cfg(not(unix))]
fn place(_: &Path, blob: &Path, name: &Path) -> std::io::Result<()> {
    fs::hard_link(blob, name).or_else(|_| fs::copy(blob, name).map(|_| ()))
}

/// Whether this is a file, or a link to one, of that many bytes.
pub(super) fn is_file_of(path: &Path, size: u64) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == size)
}

pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

pub(super) fn create_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(Error::io(parent, "make this folder")),
        None => Ok(()),
    }
}
