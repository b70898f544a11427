//! Where links in a model's folder may lead.
//!
//! Files of a model are copied into what is exported, and from there to the Hub. A link in a folder from elsewhere could
//! bring any file of this machine along. So links are followed inside of the folder, and in the cache of the Hub to the
//! contents of the same repository; a link to anywhere else is refused. Weights that are only parsed may lie anywhere.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The folder of a repository's contents in the cache of the Hub, and that of its commits beside it.
const BLOBS: &str = "blobs";
const SNAPSHOTS: &str = "snapshots";

/// The file that `name` is in a model's folder, links followed; `None` when there is none. The folder itself may be a
/// link: it is what the user named.
pub(crate) fn within(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    let path = folder.join(name);
    let real = match fs::canonicalize(&path) {
        Ok(real) => real,
        Err(e) if e.kind() == ErrorKind::NotFound && path.is_symlink() => return Err(dangling(&path)),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(&path, "look at it")(e)),
    };
    let folder = fs::canonicalize(folder).map_err(Error::io(folder, "look at it"))?;
    match real.starts_with(&folder) || blobs(&folder).is_some_and(|blobs| real.starts_with(blobs)) {
        true => Ok(Some(real)),
        false => Err(Error::file(
            &path,
            format!(
                "this is a link out of the model's folder, to `{}`",
                fs::read_link(&path).unwrap_or(real).display()
            ),
            "a file that may be copied or sent must lie in the model's own folder: replace the link by a copy of the file",
        )),
    }
}

/// The contents that the links of a commit's folder lead to: `blobs` beside `snapshots`, never a link itself.
fn blobs(folder: &Path) -> Option<PathBuf> {
    let snapshots = folder.ancestors().skip(1).find(|ancestor| ancestor.ends_with(SNAPSHOTS))?;
    Some(snapshots.parent()?.join(BLOBS))
}

/// The error for a link to nothing.
pub(super) fn dangling(path: &Path) -> Error {
    Error::file(
        path,
        "this is a link to a file that is not there",
        "the download is incomplete: download the model again",
    )
}
