//! Files that only subquad writes, opened without following links: a folder that comes from elsewhere may hold links that
//! lead to other files of its user.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// How often a name is freed before another process that takes it again each time has won.
const MAX_ATTEMPTS: u32 = 8;

/// The name under which [`super::write_atomically`] and its kin write `target`: beside it, and always the same, so that the
/// next attempt replaces what a killed one left. `None`: `target` is not the name of a file.
pub(crate) fn partial(target: &Path) -> Option<PathBuf> {
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(target.file_name()?);
    hidden.push(".partial");
    Some(target.with_file_name(hidden))
}

/// Makes an empty file and opens it for writing. A file or link of that name is removed first; what a link points to stays.
pub(crate) fn create_anew(path: &Path) -> io::Result<File> {
    for _ in 0..MAX_ATTEMPTS {
        match fs::remove_file(path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        match OpenOptions::new().write(true).create_new(true).open(path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
            opened => return opened,
        }
    }
    Err(ErrorKind::AlreadyExists.into())
}

/// Opens a file with what it holds, or makes it. A link, or anything else that is not a regular file, is an error.
pub(crate) fn open_or_create(path: &Path, options: &OpenOptions) -> Result<File> {
    let mut options = options.clone();
    options.create(true).truncate(false);
    // For a link that appears after the look at it.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOFOLLOW);
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_symlink() => {
            let what = "this is a link, and subquad writes this file only in its own place";
            return Err(Error::file(path, what, "remove the link"));
        }
        Ok(found) if !found.is_file() => {
            return Err(Error::file(path, "this is not a regular file", "remove it, or choose another folder"));
        }
        _ => {}
    }
    options.open(path).map_err(Error::io(path, "open it"))
}
