//! The folder of a run: one process at a time, every file whole.

use super::ledger::{Ledger, Note};
use super::ours::{self, LEDGER, LOCK, METRICS, PLAN, RECIPE};
use super::store::{RESULT, STATE};
use crate::checkpoint::{hex, open_or_create, write_atomically};
use crate::plan::Plan;
use crate::recipe::Recipe;
use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

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
    /// Locks the folder, made when missing. A folder that is not empty and is not a run is refused.
    pub fn open(path: &Path) -> Result<Self> {
        if let Some(file) = path.ancestors().find(|p| p.is_file()) {
            let hint = "choose another folder with `--out`";
            return Err(Error::run(path, format!("{} is a file, and a run is a folder", file.display()), hint));
        }
        let names = ours::names(path)?;
        if !ours::is_run_or_empty(path, &names)? {
            let hint = "choose another folder with `--out`; nothing in this one was touched";
            return Err(Error::run(path, "this folder is not empty and is not a subquad run", hint));
        }
        ours::refuse_links(path, &names)?;
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
        let lock = open_or_create(&lock_path, OpenOptions::new().write(true))?;
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
        let path = self.path.join(LEDGER);
        let mut ledger = if fresh { self.forget(&path)? } else { Ledger::open(&path)? };
        ours::tidy(&self.path)?;
        let mut text = recipe.text.clone();
        for set in &recipe.sets {
            text.push_str(&format!("\n# --set {set}"));
        }
        write_atomically(&self.path.join(RECIPE), text.as_bytes())?;
        let plan = serde_json::to_vec_pretty(plan).map_err(|e| Error::Internal(e.to_string()))?;
        write_atomically(&self.path.join(PLAN), &plan)?;
        ledger.note(Note::Recipe, None, &hex(Sha256::digest(text)))?;
        self.ledger = Some(ledger);
        Ok(())
    }

    /// Removes what earlier runs wrote, and nothing else: what users put beside it stays. The model stays until the next
    /// one takes its place.
    fn forget(&self, ledger: &Path) -> Result<Ledger> {
        // The ledger first: when it is empty nothing counts as finished, and while it is there this is a run.
        let ledger = Ledger::empty(ledger)?;
        ours::forget(&self.path)?;
        Ok(ledger)
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
        // Ledger and lock last, so that what is left is a run's at any time.
        let _ = ours::tidy(&self.path);
        for name in [RECIPE, PLAN, LEDGER, LOCK] {
            let _ = fs::remove_file(self.path.join(name));
        }
        for folder in &self.made {
            // Removes only what is empty, so what others put there stays.
            let _ = fs::remove_dir(folder);
        }
    }
}
