//! An exported folder, copied whole: what is in it was compared with the model when it was written.

use std::path::{Path, PathBuf};

use super::files::{self, is_exported};
use super::place::{Place, is_converted};
use super::{ADAPTER, Written};
use crate::arch::Spec;
use crate::checkpoint::{Checkpoint, Location, within, write_atomically};
use crate::model::Student;
use crate::progress::{Progress, Unit, check_interrupt};
use crate::{Error, Result};

/// Copies the export `from` to the folder `to`, under the rules of [`super::export`]. The folder, and its files.
pub fn copy(from: &Path, to: &Path, progress: &mut dyn Progress) -> Result<(PathBuf, Vec<Written>)> {
    if !is_converted(from) {
        let hint = "give a run, or a folder that `convert` or `export` has written";
        return Err(Error::file(from, "this is no converted model", hint));
    }
    let ours = |file: &Written| is_exported(&file.name) || file.name.starts_with(&format!("{ADAPTER}/"));
    let listed: Vec<Written> = files::listing(from)?.into_iter().filter(ours).collect();
    // Before anything is made.
    listed.iter().try_for_each(|file| source(from, &file.name).map(drop))?;
    let place = Place::prepare(to)?;
    if std::fs::canonicalize(from).is_ok_and(|from| Some(from) == std::fs::canonicalize(to).ok()) {
        return Err(Error::usage("the model is there already", "give another folder with `--to`"));
    }
    progress.begin("export: copy", 0, listed.iter().map(|f| f.bytes).sum(), Unit::Bytes);
    let mut done = 0;
    for file in &listed {
        check_interrupt()?;
        let (source, target) = (source(from, &file.name)?, place.folder().join(&file.name));
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(Error::io(parent, "make the folder"))?;
        }
        let bytes = std::fs::read(&source).map_err(Error::io(&source, "read it"))?;
        write_atomically(&target, &bytes)?;
        done += file.bytes;
        progress.advance(done, "");
    }
    progress.end("");
    let checkpoint = Checkpoint::open(&Location::Path(place.folder().into()))?;
    Student::load(&checkpoint, &Spec::of(&checkpoint)?)?;
    Ok((place.finish()?, listed))
}

/// A file of the folder; one that is a link out of it is refused, since all of it would be copied.
fn source(from: &Path, name: &str) -> Result<PathBuf> {
    let found = within(from, name)?;
    found.ok_or_else(|| Error::file(from.join(name), "this file is gone", "run the same command again"))
}
