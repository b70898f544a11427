//! The folder of a run: one process at a time, every file whole.

use super::ledger::Ledger;
use super::store::{REPORT, RESULT, STATE};
use crate::checkpoint::write_atomically;
use crate::plan::Plan;
use crate::recipe::Recipe;
use crate::{Error, Result};
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

pub const LEDGER: &str = "ledger.jsonl";
const LOCK: &str = ".lock";
const METRICS: &str = "metrics.jsonl";
const RECIPE: &str = "recipe.toml";
pub const PLAN: &str = "plan.json";

/// A locked run folder. Until [`RunFolder::begin`] nothing is in it but the lock, and dropping it then leaves no trace.
pub struct RunFolder {
    path: PathBuf,
    /// Folders that were made for it, the deepest first.
    made: Vec<PathBuf>,
    /// Nothing was in it before.
    new: bool,
    lock: Option<File>,
    ledger: Option<Ledger>,
}

impl RunFolder {
    /// Locks the folder, made when missing. One that holds other things than a run is refused.
    pub fn open(path: &Path) -> Result<Self> {
        if let Some(file) = path.ancestors().find(|p| p.is_file()) {
            let hint = "choose another folder with `--out`";
            return Err(Error::run(path, format!("{} is a file, and a run is a folder", file.display()), hint));
        }
        let names = names(path)?;
        // A killed process may have left its lock and nothing else.
        if !names.iter().all(|name| name == LOCK) && !names.iter().any(|name| name == LEDGER) {
            let hint = "choose another folder with `--out`; nothing in this one was touched";
            return Err(Error::run(path, "the folder holds other things than a run", hint));
        }
        let missing = path.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.exists());
        let mut folder = RunFolder {
            path: path.into(),
            made: missing.map(PathBuf::from).collect(),
            new: names.is_empty(),
            lock: None,
            ledger: None,
        };
        fs::create_dir_all(path).map_err(Error::io(path, "make the folder"))?;
        let lock_path = path.join(LOCK);
        let lock = File::create(&lock_path).map_err(Error::io(&lock_path, "make the lock"))?;
        match lock.try_lock() {
            Ok(()) => folder.lock = Some(lock),
            Err(TryLockError::WouldBlock) => {
                // The files are the other process's.
                folder.new = false;
                let hint = "wait for it, stop it, or choose another folder with `--out`";
                return Err(Error::run(path, "another process is running in this folder", hint));
            }
            Err(TryLockError::Error(source)) => return Err(Error::io(&lock_path, "lock it")(source)),
        }
        Ok(folder)
    }

    /// Writes what will be done, and reads what was done before; `fresh` forgets it. From here on the folder stays.
    ///
    /// The recipe stands there verbatim, with the overrides that were applied to it as comments below.
    pub fn begin(&mut self, recipe: &Recipe, plan: &Plan, fresh: bool) -> Result<()> {
        if fresh {
            self.forget()?;
        }
        let ledger = Ledger::open(&self.path.join(LEDGER))?;
        let mut text = recipe.text.clone();
        for set in &recipe.sets {
            text.push_str(&format!("\n# --set {set}"));
        }
        write_atomically(&self.path.join(RECIPE), text.as_bytes())?;
        let plan = serde_json::to_vec_pretty(plan).map_err(|e| Error::Internal(e.to_string()))?;
        write_atomically(&self.path.join(PLAN), &plan)?;
        self.ledger = Some(ledger);
        Ok(())
    }

    /// Removes what earlier runs wrote, and nothing else: what people put beside it stays. The model stays until the next
    /// one takes its place.
    fn forget(&self) -> Result<()> {
        let remove = |path: &Path| match fs::remove_file(path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(path, "remove it")(e)),
            _ => Ok(()),
        };
        // The ledger first: without it nothing counts as finished.
        for name in [LEDGER, METRICS, RECIPE, PLAN] {
            remove(&self.path.join(name))?;
        }
        for name in names(&self.path)? {
            let number = name.split_once('-').map_or("", |(number, _)| number);
            let stage = self.path.join(&name);
            if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) && stage.is_dir() {
                for file in [STATE, RESULT, REPORT] {
                    remove(&stage.join(file))?;
                }
                // Only when it is empty now.
                let _ = fs::remove_dir(&stage);
            }
        }
        Ok(())
    }

    /// What was done before; [`RunFolder::begin`] has read it.
    pub fn ledger(&mut self) -> Result<&mut Ledger> {
        self.ledger.as_mut().ok_or_else(|| Error::Internal("a run that has not begun has no ledger".into()))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of a stage, made when missing.
    pub fn stage(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).map_err(Error::io(&path, "make the folder"))?;
        Ok(path)
    }

    /// Whether an earlier run has left tensors of a stage.
    pub fn begun(&self, stage: &str) -> bool {
        [STATE, RESULT].iter().any(|file| self.path.join(stage).join(file).exists())
    }

    pub fn metrics(&self) -> PathBuf {
        self.path.join(METRICS)
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if self.ledger.is_some() || !self.new {
            return;
        }
        // Nothing is left to be done about a failure: the error that led here is the one to report.
        for name in [LEDGER, RECIPE, PLAN, LOCK] {
            let _ = fs::remove_file(self.path.join(name));
        }
        for folder in &self.made {
            // Removes only what is empty, so what others put there stays.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Names in a folder, sorted; none of one that is not there.
fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(vec![]),
        entries => entries.map_err(Error::io(folder, "list it"))?,
    };
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    let mut names = entries.map(name).collect::<io::Result<Vec<_>>>().map_err(Error::io(folder, "list it"))?;
    names.sort();
    Ok(names)
}
