//! Staging directory of an export: write to a hidden sibling of the target, rename it when complete.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::files::{is_adapter, is_exported};
use crate::arch::MODEL_TYPE;
use crate::checkpoint::{CONFIG, shown};
use crate::{Error, Result};

/// A folder being made. Dropped before [`Place::finish`], it vanishes, and what was at the target stays.
pub(super) struct Place {
    target: PathBuf,
    /// Always the same names, so that the next attempt clears away what a killed one left.
    temporary: PathBuf,
    /// The earlier export, for the moment between two renames.
    previous: PathBuf,
    /// Parents that were made for it, the deepest first.
    parents: Vec<PathBuf>,
    finished: bool,
}

impl Place {
    /// Checks the target and makes the temporary folder.
    pub fn prepare(to: &Path) -> Result<Place> {
        let target = resolve(to)?;
        let (Some(name), Some(parent)) = (target.file_name(), target.parent()) else {
            return Err(Error::file(to, "this is not the name of a folder", "give the path of a folder to write"));
        };
        let [temporary, previous] = leftovers(name).map(|name| parent.join(name));
        if previous.is_dir() {
            // An export was killed between its two renames, or before it had removed the older one.
            match !target.exists() && is_converted(&previous) {
                true => fs::rename(&previous, &target).map_err(Error::io(&target, "bring the earlier export back"))?,
                false => remove(&previous)?,
            }
        }
        require_ours(&target)?;
        let missing = parent.ancestors().take_while(|p| !p.exists()).map(PathBuf::from).collect();
        if temporary.is_dir() {
            remove(&temporary)?;
        }
        let place = Place { temporary, previous, parents: missing, finished: false, target };
        fs::create_dir_all(&place.temporary).map_err(Error::io(to, "make the folder"))?;
        Ok(place)
    }

    /// The temporary folder.
    pub fn folder(&self) -> &Path {
        &self.temporary
    }

    /// Gives the folder its name. An earlier export is moved aside first, and removed when the new one is in its place.
    pub fn finish(mut self) -> Result<PathBuf> {
        sync(&self.temporary);
        // Looked at again: much time has gone by, and what came meanwhile must not be lost.
        require_ours(&self.target)?;
        let replaces = self.target.exists();
        if replaces {
            fs::rename(&self.target, &self.previous)
                .map_err(Error::io(&self.target, "move the earlier export aside"))?;
        }
        if let Err(e) = fs::rename(&self.temporary, &self.target) {
            if replaces {
                // Should this fail too, the next export brings the earlier one back.
                let _ = fs::rename(&self.previous, &self.target);
            }
            return Err(Error::io(&self.target, "give the export its name")(e));
        }
        self.finished = true;
        self.target.parent().into_iter().for_each(sync);
        if replaces {
            // The new one is whole and in its place; a rest of the earlier one is cleared away by the next export.
            let _ = fs::remove_dir_all(&self.previous);
        }
        Ok(self.target.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.finished {
            // Nothing is left to be done about a failure: the error that led here is the one to report.
            let _ = fs::remove_dir_all(&self.temporary);
            for parent in &self.parents {
                // Removes only what is empty, so what others put there stays.
                let _ = fs::remove_dir(parent);
            }
        }
    }
}

/// The names beside an export of that name that a killed one may leave: the new export, and the earlier one.
pub(crate) fn leftovers(name: impl AsRef<OsStr>) -> [OsString; 2] {
    [".subquad-partial", ".subquad-previous"].map(|suffix| {
        let mut hidden = OsString::from(".");
        hidden.push(name.as_ref());
        hidden.push(suffix);
        hidden
    })
}

/// Clears away what killed exports left beside `to`; an earlier export that one had moved aside comes back.
pub fn clear_leftovers(to: &Path) -> Result<()> {
    Place::prepare(to).map(drop)
}

/// The folder that `to` means, links followed, so that a link stays and what it points to is replaced.
fn resolve(to: &Path) -> Result<PathBuf> {
    if let Some(file) = to.ancestors().skip(1).find(|p| p.is_file()) {
        return Err(Error::file(file, "this is a file, so no folder can be made in it", "write to another folder"));
    }
    match fs::canonicalize(to) {
        Ok(path) => Ok(path),
        Err(e) if e.kind() == ErrorKind::NotFound && !to.is_symlink() => {
            std::path::absolute(to).map_err(Error::io(to, "find it"))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Err(Error::file(
            to,
            "this is a link to a folder that is not there",
            "remove the link, or write to another folder",
        )),
        Err(e) => Err(Error::io(to, "look at it")(e)),
    }
}

/// Refuses a target that holds anything but an export: it would be lost.
fn require_ours(target: &Path) -> Result<()> {
    let hint = "give a folder that does not exist yet, or an earlier export to replace";
    if !target.exists() {
        return Ok(());
    }
    if !target.is_dir() {
        return Err(Error::file(target, "this is a file, and an export is a folder", hint));
    }
    let mut names = Vec::new();
    for entry in target.read_dir().map_err(Error::io(target, "list it"))? {
        let entry = entry.map_err(Error::io(target, "list it"))?;
        let name = entry.file_name();
        let kind = entry.file_type().map_err(Error::io(target, "look at it"))?;
        let ours = match kind.is_dir() {
            true => is_adapter(&entry.path()),
            false => kind.is_file() && name.to_str().is_some_and(is_exported),
        };
        names.push((name.to_string_lossy().into_owned(), ours));
    }
    names.sort();
    if let Some((name, _)) = names.iter().find(|(_, ours)| !ours) {
        let what = format!("`{}` is in this folder, and an export would replace all of it", shown(name));
        return Err(Error::file(target, what, hint));
    }
    if names.is_empty() || is_converted(target) {
        return Ok(());
    }
    Err(Error::file(target, "this folder holds a model that subquad did not write", hint))
}

/// Whether the folder's config.json is one of ours.
pub(crate) fn is_converted(folder: &Path) -> bool {
    let config = fs::read(folder.join(CONFIG)).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    config.is_some_and(|c| c.get("model_type").and_then(Value::as_str) == Some(MODEL_TYPE))
}

fn remove(folder: &Path) -> Result<()> {
    fs::remove_dir_all(folder).map_err(Error::io(folder, "clear away what an interrupted export left"))
}

/// Makes names in a folder durable where the system can.
fn sync(folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}
