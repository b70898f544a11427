//! What a run has finished, and what it works on: one JSON line each, rewritten whole so that no line is ever half there.

use crate::checkpoint::write_atomically;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The stage of an export, and the one of notes that belong to the whole run.
pub const EXPORT: &str = "export";
const RUN: &str = "run";

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// `finished`, or the word of a [`Note`].
    pub event: String,
    /// Name of the stage, `export`, or `run`.
    pub stage: String,
    /// Hash of everything that the result depends on, or the digest that is noted.
    pub key: String,
    /// Wall time of the last sitting; of a note nothing.
    pub seconds: f64,
    /// Unix time.
    pub time: u64,
    /// Version of subquad.
    pub version: String,
    /// SHA-256 of every file that is the result, by its name in the folder of the stage or export. Ledgers of older
    /// versions have none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
}

/// A digest that the ledger keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// Of the adapter that a LoRA stage starts from.
    Adapter,
    /// Of the teacher's configuration and weights.
    Teacher,
    /// Of what an export copies from the teacher's folder.
    Companions,
    /// Of recipe.toml.
    Recipe,
}

impl Note {
    fn word(self) -> &'static str {
        match self {
            Note::Adapter => "adapter",
            Note::Teacher => "teacher",
            Note::Companions => "companions",
            Note::Recipe => "recipe",
        }
    }
}

impl Entry {
    pub fn finished(stage: &str, key: &str, seconds: f64, files: BTreeMap<String, String>) -> Self {
        Entry { files, ..Self::now("finished", stage, key, seconds) }
    }

    fn now(event: &str, stage: &str, key: &str, seconds: f64) -> Self {
        Entry {
            event: event.into(),
            stage: stage.into(),
            key: key.into(),
            seconds,
            time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            version: env!("CARGO_PKG_VERSION").into(),
            files: BTreeMap::new(),
        }
    }

    fn is_finished(&self) -> bool {
        self.event == "finished"
    }
}

/// The file and its entries.
pub struct Ledger {
    path: PathBuf,
    entries: Vec<Entry>,
}

impl Ledger {
    /// The ledger at `path`, made when missing.
    pub fn open(path: &Path) -> Result<Self> {
        match Ledger::read(path)? {
            Some(ledger) => Ok(ledger),
            None => Ledger::empty(path),
        }
    }

    /// Replaces what is there by a ledger without entries.
    pub fn empty(path: &Path) -> Result<Self> {
        write_atomically(path, b"")?;
        Ok(Ledger { path: path.into(), entries: vec![] })
    }

    /// The ledger at `path`; `None`: there is none.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let hint = "start again with `--fresh`, or restore the file";
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
                return Err(Error::run(path, "the ledger is damaged: it is not UTF-8", hint));
            }
            Err(e) => return Err(Error::io(path, "read it")(e)),
        };
        let entry = |(i, line): (usize, &str)| {
            serde_json::from_str(line)
                .map_err(|e| Error::run(path, format!("line {} of the ledger cannot be read: {e}", i + 1), hint))
        };
        let entries = text.lines().enumerate().map(entry).collect::<Result<_>>()?;
        Ok(Some(Ledger { path: path.into(), entries }))
    }

    /// The newest entry that finished `stage`, if it did so with this key: what lies on disk is what it left.
    pub fn finished(&self, stage: &str, key: &str) -> Option<&Entry> {
        self.last(stage).filter(|e| e.key == key)
    }

    /// The newest entry that finished `stage`.
    pub fn last(&self, stage: &str) -> Option<&Entry> {
        self.newest("finished", stage)
    }

    /// Tells whether an export is the last thing that happened: the model is then that of the newest notes and results.
    pub fn ends_with_export(&self) -> bool {
        self.entries.last().is_some_and(|e| e.is_finished() && e.stage == EXPORT)
    }

    /// Tells whether an older version, which kept no checksums, has finished one of these stages last.
    pub fn is_older<'a>(&self, mut stages: impl Iterator<Item = &'a str>) -> bool {
        stages.any(|stage| self.last(stage).is_some_and(|entry| entry.files.is_empty()))
    }

    /// Keeps a digest of the stage, or of the run, unless the newest is the same. The one that it replaces.
    pub fn note(&mut self, note: Note, stage: Option<&str>, digest: &str) -> Result<Option<String>> {
        match self.noted(note, stage).map(String::from) {
            Some(newest) if newest == digest => Ok(None),
            earlier => {
                self.append(Entry::now(note.word(), stage.unwrap_or(RUN), digest, 0.0))?;
                Ok(earlier)
            }
        }
    }

    /// The digest that was last noted.
    pub fn noted(&self, note: Note, stage: Option<&str>) -> Option<&str> {
        self.newest(note.word(), stage.unwrap_or(RUN)).map(|e| e.key.as_str())
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
