//! What in a run folder is the run's own: files and stage folders by their names. All else belongs to its user.

use super::store::{REPORT, RESULT, STATE};
use crate::checkpoint::partial;
use crate::stage::STAGES;
use crate::{Error, Result};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

pub const LOCK: &str = ".lock";
pub const LEDGER: &str = "ledger.jsonl";
pub const METRICS: &str = "metrics.jsonl";
pub const RECIPE: &str = "recipe.toml";
pub const PLAN: &str = "plan.json";
pub const MODEL: &str = "model";

/// Files of the run itself but for its lock, and of a stage.
const OF_RUN: [&str; 4] = [LEDGER, METRICS, RECIPE, PLAN];
const OF_STAGE: [&str; 3] = [STATE, RESULT, REPORT];

/// Tells whether the folder with these names in it is that of a run, or empty.
///
/// A run has a ledger from its first moment on. Without one a folder is a run's if a process was killed before it had
/// written one, or while it started again: the lock is there, and nothing that a run does not write. Whoever keeps a
/// `recipe.toml` of their own beside somebody's lock keeps it: a run never leaves it without a plan.
pub fn is_run_or_empty(folder: &Path, names: &[String]) -> Result<bool> {
    let has = |name: &str| names.iter().any(|n| n == name);
    if names.is_empty() || has(LEDGER) {
        return Ok(true);
    }
    if !has(LOCK) || has(RECIPE) && !has(PLAN) {
        return Ok(false);
    }
    for name in names {
        let path = folder.join(name);
        let kind = match fs::symlink_metadata(&path) {
            // Another process has just given it its name.
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            found => found.map_err(Error::io(&path, "look at it"))?.file_type(),
        };
        let whole = match is_stage(name) && kind.is_dir() {
            true => self::names(&path)?.iter().all(|file| is_file(&OF_STAGE, file)),
            // Links are refused under a name of their own.
            false => kind.is_symlink() || is_folder(name) == kind.is_dir(),
        };
        if !(whole && is_ours(name)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Refuses links under the names of files and folders that the run writes to: they may lead to anything. Links in the place
/// of partial files are removed, as these are.
pub fn refuse_links(folder: &Path, names: &[String]) -> Result<()> {
    let written = |name: &str| name == LOCK || name == MODEL || OF_RUN.contains(&name) || is_stage(name);
    match names.iter().find(|name| written(name) && folder.join(name).is_symlink()) {
        None => Ok(()),
        Some(name) => {
            let what = "this is a link, and a run writes only into its own folder";
            let hint = "remove the link, or put what it points to in its place; `--out` itself may be a link";
            Err(Error::run(folder.join(name), what, hint))
        }
    }
}

/// Removes everything of earlier runs but ledger, lock and model.
pub fn forget(folder: &Path) -> Result<()> {
    for name in OF_RUN.iter().filter(|name| **name != LEDGER) {
        remove(&folder.join(name))?;
    }
    remove_partials(folder, &OF_RUN)?;
    for name in names(folder)?.iter().filter(|name| is_stage(name)) {
        let stage = folder.join(name);
        if !stage.is_symlink() && stage.is_dir() {
            OF_STAGE.iter().try_for_each(|file| remove(&stage.join(file)))?;
            remove_partials(&stage, &OF_STAGE)?;
            // Only when it is empty now.
            let _ = fs::remove_dir(&stage);
        }
    }
    Ok(())
}

/// Removes partial files of the run, which a killed process has left.
pub fn tidy(folder: &Path) -> Result<()> {
    remove_partials(folder, &OF_RUN)
}

/// Removes the training state and the partial files of a finished stage.
pub fn tidy_stage(stage: &Path) -> Result<()> {
    remove(&stage.join(STATE))?;
    remove_partials(stage, &OF_STAGE)
}

/// Removes a file, if it is there.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(path, "remove it")(e)),
        _ => Ok(()),
    }
}

fn remove_partials(folder: &Path, files: &[&str]) -> Result<()> {
    partials(folder, files).try_for_each(|path| remove(&path))
}

fn partials(folder: &Path, files: &[&str]) -> impl Iterator<Item = PathBuf> {
    files.iter().filter_map(|file| partial(&folder.join(file)))
}

/// `N-KIND`, as plans name the folders of stages.
fn is_stage(name: &str) -> bool {
    name.split_once('-').is_some_and(|(number, kind)| {
        !number.is_empty()
            && number.bytes().all(|b| b.is_ascii_digit())
            && STAGES.iter().any(|known| known.kind == kind)
    })
}

fn is_folder(name: &str) -> bool {
    name == MODEL || is_stage(name) || is_export_leftover(name)
}

fn is_ours(name: &str) -> bool {
    name == LOCK || is_file(&OF_RUN, name) || is_folder(name)
}

fn is_export_leftover(name: &str) -> bool {
    crate::export::leftovers(MODEL).iter().any(|leftover| leftover == name)
}

/// Tells whether this is one of the files, or the partial file of one.
fn is_file(files: &[&str], name: &str) -> bool {
    files.contains(&name) || partials(Path::new(""), files).any(|path| path == Path::new(name))
}

/// Names in a folder, sorted; none of one that is not there.
pub fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(vec![]),
        entries => entries.map_err(Error::io(folder, "list it"))?,
    };
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    let mut names = entries.map(name).collect::<io::Result<Vec<_>>>().map_err(Error::io(folder, "list it"))?;
    names.sort();
    Ok(names)
}
