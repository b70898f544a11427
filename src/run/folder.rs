//! The folder of a run: one process at a time, every file whole.

use super::ledger::Ledger;
use crate::checkpoint::write_atomically;
use crate::plan::Plan;
use crate::recipe::Recipe;
use crate::{Error, Result};
use fs4::FileExt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

const LEDGER: &str = "ledger.jsonl";
const LOCK: &str = ".lock";

/// An open run folder; the lock goes with it.
pub struct RunFolder {
    path: PathBuf,
    pub ledger: Ledger,
    _lock: File,
}

impl RunFolder {
    /// Opens or makes the folder. One that holds other things is refused; `fresh` empties a run's own folder.
    pub fn open(path: &Path, fresh: bool) -> Result<Self> {
        let ours = path.join(LEDGER).exists() || path.join(LOCK).exists();
        if path.exists() && !ours {
            let mut entries = fs::read_dir(path).map_err(Error::io(path, "look into it"))?;
            if entries.next().is_some() {
                let hint = "choose another folder with `--out`; nothing in this one was touched";
                return Err(Error::run(path, "the folder holds other things than a run", hint));
            }
        }
        fs::create_dir_all(path).map_err(Error::io(path, "make the folder"))?;
        let lock_path = path.join(LOCK);
        let lock = File::create(&lock_path).map_err(Error::io(&lock_path, "make the lock"))?;
        if FileExt::try_lock(&lock).is_err() {
            let hint = "wait for it, stop it, or choose another folder with `--out`";
            return Err(Error::run(path, "another process is running in this folder", hint));
        }
        if fresh {
            for entry in fs::read_dir(path).map_err(Error::io(path, "look into it"))? {
                let entry = entry.map_err(Error::io(path, "look into it"))?.path();
                if entry == lock_path {
                    continue;
                }
                let removed = if entry.is_dir() { fs::remove_dir_all(&entry) } else { fs::remove_file(&entry) };
                removed.map_err(Error::io(&entry, "remove it"))?;
            }
        }
        let ledger = Ledger::open(&path.join(LEDGER))?;
        Ok(RunFolder { path: path.to_path_buf(), ledger, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The recipe, verbatim, with the overrides that were applied to it as comments below, and the plan.
    pub fn write_description(&self, recipe: &Recipe, plan: &Plan) -> Result<()> {
        let mut text = recipe.text.clone();
        for set in &recipe.sets {
            text.push_str(&format!("\n# --set {set}"));
        }
        write_atomically(&self.path.join("recipe.toml"), text.as_bytes())?;
        let plan = serde_json::to_vec_pretty(plan).map_err(|e| Error::Internal(e.to_string()))?;
        write_atomically(&self.path.join("plan.json"), &plan)
    }

    /// The folder of a stage, made when missing.
    pub fn stage(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).map_err(Error::io(&path, "make the folder"))?;
        Ok(path)
    }

    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }
}
