//! What a run has finished, and which adapters its stages started from: one JSON line each, rewritten whole so that no
//! line is ever half there.

use crate::checkpoint::write_atomically;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// `finished`, or `adapter`.
    pub event: String,
    /// Name of the stage, or `export`.
    pub stage: String,
    /// Hash of everything that the result depends on, or of the adapter.
    pub key: String,
    /// Wall time of the last sitting; of an adapter nothing.
    pub seconds: f64,
    /// Unix time.
    pub time: u64,
    /// Version of subquad.
    pub version: String,
}

impl Entry {
    pub fn finished(stage: &str, key: &str, seconds: f64) -> Self {
        Self::now("finished", stage, key, seconds)
    }

    fn now(event: &str, stage: &str, key: &str, seconds: f64) -> Self {
        Entry {
            event: event.into(),
            stage: stage.into(),
            key: key.into(),
            seconds,
            time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

/// The file and its entries.
pub struct Ledger {
    path: PathBuf,
    entries: Vec<Entry>,
}

impl Ledger {
    pub fn open(path: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                write_atomically(path, b"")?;
                String::new()
            }
            Err(e) => return Err(Error::io(path, "read it")(e)),
        };
        let entry = |(i, line): (usize, &str)| {
            serde_json::from_str(line).map_err(|e| {
                let hint = "start again with `--fresh`, or restore the file";
                Error::run(path, format!("line {} of the ledger cannot be read: {e}", i + 1), hint)
            })
        };
        Ok(Ledger { path: path.into(), entries: text.lines().enumerate().map(entry).collect::<Result<_>>()? })
    }

    /// The newest entry that finished `stage`, if it did so with this key: what lies on disk is what it left.
    pub fn finished(&self, stage: &str, key: &str) -> Option<&Entry> {
        self.newest("finished", stage).filter(|e| e.key == key)
    }

    /// Notes that `stage` starts from the adapter of this digest.
    pub fn start(&mut self, stage: &str, digest: &str) -> Result<()> {
        match self.started(stage) {
            Some(newest) if newest == digest => Ok(()),
            _ => self.append(Entry::now("adapter", stage, digest, 0.0)),
        }
    }

    /// The digest of the adapter that `stage` last started from.
    pub fn started(&self, stage: &str) -> Option<&str> {
        self.newest("adapter", stage).map(|e| e.key.as_str())
    }

    fn newest(&self, event: &str, stage: &str) -> Option<&Entry> {
        self.entries.iter().rev().find(|e| e.event == event && e.stage == stage)
    }

    pub fn append(&mut self, entry: Entry) -> Result<()> {
        self.entries.push(entry);
        let line = |e: &Entry| serde_json::to_string(e).map_err(|e| Error::Internal(e.to_string()));
        let lines: Vec<String> = self.entries.iter().map(line).collect::<Result<_>>()?;
        write_atomically(&self.path, (lines.join("\n") + "\n").as_bytes())
    }
}
