//! The Hugging Face Hub: models and texts come from it into the cache that all its clients share, and models go to it.
//!
//! Files come over plain HTTP with ranges, so that a download that was cut goes on where it ended; each is compared with
//! the checksum that the Hub names before it gets its name in the cache. Only what is needed is fetched: never weights in
//! other formats, and for `plan` and `inspect` nothing of the weights but their headers. `push` says what goes up how.
//!
//! Without the feature `hub` the same functions say that this build cannot.

#[cfg(feature = "hub")]
mod cache;
#[cfg(feature = "hub")]
mod choice;
#[cfg(feature = "hub")]
mod commit;
#[cfg(feature = "hub")]
mod entry;
#[cfg(feature = "hub")]
mod explain;
#[cfg(feature = "hub")]
mod fault;
#[cfg(feature = "hub")]
mod fetch;
#[cfg(feature = "hub")]
mod lfs;
#[cfg(feature = "hub")]
mod listing;
#[cfg(feature = "hub")]
mod pull;
#[cfg(feature = "hub")]
mod push;
#[cfg(feature = "hub")]
mod session;
#[cfg(not(feature = "hub"))]
mod without;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use crate::checkpoint::{Checkpoint, HubId, Location};
use crate::progress::Progress;
use crate::{Error, Result};
#[cfg(feature = "hub")]
use {pull as inner, push as sender};
#[cfg(not(feature = "hub"))]
use {without as inner, without as sender};

static OFFLINE: AtomicBool = AtomicBool::new(false);

/// From now on nothing but the cache is asked, as with `HF_HUB_OFFLINE=1`.
pub fn set_offline() {
    OFFLINE.store(true, Ordering::SeqCst);
}

/// Whether the network is off.
pub fn is_offline() -> bool {
    let truth = |value: String| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE");
    OFFLINE.load(Ordering::SeqCst) || std::env::var("HF_HUB_OFFLINE").is_ok_and(truth)
}

/// A model on disk or in the binary: one on the Hub is downloaded, unless the cache has it.
pub fn model(location: &Location, progress: &mut dyn Progress) -> Result<Location> {
    match location {
        Location::Hub(id) => Ok(Location::Path(inner::model(whole(id)?, progress)?)),
        here => Ok(here.clone()),
    }
}

/// A text on disk or in the binary: one on the Hub is downloaded, unless the cache has it.
pub fn text(location: &Location, progress: &mut dyn Progress) -> Result<Location> {
    match location {
        Location::Hub(id) => Ok(Location::Path(inner::text(id, progress)?)),
        here => Ok(here.clone()),
    }
}

/// A model opened by its headers. Of one on the Hub nothing else of the weights is fetched.
pub fn open(location: &Location) -> Result<Checkpoint> {
    match location {
        Location::Hub(id) => inner::open(whole(id)?),
        here => Checkpoint::open(here),
    }
}

/// What a model or text on the Hub weighs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weight {
    /// Of all files that are needed.
    pub bytes: u64,
    /// Of those that the cache does not have.
    pub absent: u64,
}

/// The files of a model on the Hub; nothing is downloaded.
pub fn weigh_model(id: &HubId) -> Result<Weight> {
    inner::weigh_model(whole(id)?)
}

/// The files of a text on the Hub; nothing is downloaded.
pub fn weigh_text(id: &HubId) -> Result<Weight> {
    inner::weigh_text(id)
}

/// A model is a whole repository.
fn whole(id: &HubId) -> Result<&HubId> {
    match &id.inside {
        None => Ok(id),
        Some(_) => {
            let what = "there is no such file or folder, and a model on the Hub is a whole repository, `OWNER/NAME`";
            let near = id.near_miss().map(|near| format!("did you mean `{near}`? Otherwise "));
            let hint = format!("{}check the path, or give `{}`", near.unwrap_or_default(), id.repository());
            Err(Error::file(&id.path, what, hint))
        }
    }
}

/// What becomes of a file in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    Add,
    Replace,
    /// Weights of an earlier model, which loaders would take for this one's.
    Remove,
    /// It is there already.
    Keep,
}

/// One file of a push.
#[derive(Debug, Clone, Serialize)]
pub struct PushFile {
    pub name: String,
    pub bytes: u64,
    pub change: Change,
}

/// What a push would do.
#[derive(Debug, Clone, Serialize)]
pub struct PushPlan {
    pub repository: String,
    /// Whether the repository has to be created.
    pub create: bool,
    /// Whether it is created for everyone to see.
    pub public: bool,
    pub files: Vec<PushFile>,
    #[serde(skip)]
    pub folder: PathBuf,
    /// The commit that the repository was compared at.
    #[serde(skip)]
    pub parent: Option<String>,
}

impl PushPlan {
    /// Files that would be sent or removed.
    pub fn changes(&self) -> impl Iterator<Item = &PushFile> {
        self.files.iter().filter(|file| file.change != Change::Keep)
    }

    /// Files that would be sent.
    pub fn sent(&self) -> impl Iterator<Item = &PushFile> {
        self.files.iter().filter(|file| matches!(file.change, Change::Add | Change::Replace))
    }

    /// Bytes that would be sent.
    pub fn bytes(&self) -> u64 {
        self.sent().map(|file| file.bytes).sum()
    }
}

/// Compares a folder with a repository, file by file; nothing is sent.
pub fn compare(folder: &std::path::Path, id: &HubId, public: bool, progress: &mut dyn Progress) -> Result<PushPlan> {
    if id.inside.is_some() || id.revision.is_some() {
        return Err(Error::usage(
            format!("`{id}` is not the name of a repository"),
            "give `--repo OWNER/NAME`; what is sent becomes a commit on its main branch",
        ));
    }
    sender::compare(folder, id, public, progress)
}

/// Does what the plan says in one commit, and gives its address; `None` where there was nothing to do.
pub fn push(plan: &PushPlan, message: &str, progress: &mut dyn Progress) -> Result<Option<String>> {
    sender::push(plan, message, progress)
}
