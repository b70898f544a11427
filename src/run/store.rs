//! Training state and metrics on disk.

use crate::checkpoint::{load_tensors, open_or_create, save_tensors, tensors_digest, write_atomically};
use crate::train::{Metric, Saved, Store};
use crate::{Error, Result};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Files of a stage's folder: training state while it trains, what it made, what it measured.
pub const STATE: &str = "state.safetensors";
pub const RESULT: &str = "student.safetensors";
pub const REPORT: &str = "report.json";

/// Where a training state's metadata has the digest of all its tensors and words.
const DIGEST: &str = "sha256";

/// The state of one stage, valid for one key, and the run's metrics.
pub struct StageStore {
    pub state: PathBuf,
    pub metrics: PathBuf,
    pub stage: String,
    pub key: String,
}

impl Store for StageStore {
    fn load(&mut self) -> Result<Option<Saved>> {
        if !self.state.exists() {
            return Ok(None);
        }
        let (tensors, mut words) = load(&self.state)?;
        let wanted = words.remove(DIGEST);
        let is_ours = words.get("key") == Some(&self.key);
        let whole = match &wanted {
            Some(wanted) => *wanted == tensors_digest(&tensors, &words)?,
            // Older versions saved none, and had other keys.
            None => !is_ours,
        };
        if !whole {
            return Err(damaged(&self.state, "its values do not have the checksum that was saved with them"));
        }
        // State of another recipe, text or teacher is not a beginning of this one.
        Ok(is_ours.then_some((tensors, words)))
    }

    fn save(&mut self, tensors: BTreeMap<String, Tensor>, mut words: BTreeMap<String, String>) -> Result<()> {
        words.insert("key".into(), self.key.clone());
        words.insert(DIGEST.into(), tensors_digest(&tensors, &words)?);
        save_tensors(&self.state, &tensors, &words)
    }

    fn metric(&mut self, metric: &Metric) -> Result<()> {
        let mut line = serde_json::to_string(metric).map_err(|e| Error::Internal(e.to_string()))?;
        line.push('\n');
        let mut file = open_or_create(&self.metrics, OpenOptions::new().append(true))?;
        file.write_all(line.as_bytes()).map_err(Error::io(&self.metrics, "write to it"))
    }

    fn rewind(&mut self, step: u64) -> Result<()> {
        let Ok(text) = std::fs::read_to_string(&self.metrics) else { return Ok(()) };
        let keep = |line: &&str| match serde_json::from_str::<serde_json::Value>(line) {
            Ok(v) => v["stage"] != self.stage.as_str() || v["step"].as_u64().is_some_and(|s| s <= step),
            Err(_) => false, // the torn last line of a killed run
        };
        let kept: String = text.lines().filter(keep).flat_map(|l| [l, "\n"]).collect();
        if kept.len() == text.len() { Ok(()) } else { write_atomically(&self.metrics, kept.as_bytes()) }
    }
}

/// What a finished training stage leaves: all tensors of the student.
pub fn save_student(path: &Path, tensors: &BTreeMap<String, Tensor>, key: &str) -> Result<()> {
    save_tensors(path, tensors, &BTreeMap::from([("key".into(), key.into())]))
}

/// The tensors that [`save_student`] wrote.
pub fn load_student(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    Ok(load(path)?.0)
}

fn load(path: &Path) -> Result<Saved> {
    load_tensors(path).map_err(|error| match error {
        Error::Checkpoint { path, what, .. } => damaged(&path, &what),
        other => other,
    })
}

/// A damaged file of a run is not to be downloaded again, as that of a model would be.
fn damaged(path: &Path, what: &str) -> Error {
    let what = format!("what an earlier run saved is damaged: {what}");
    Error::run(path, what, "remove this file, or start again with `--fresh`")
}
