//! What a repository has at a revision: asked once in a process, so that plan and conversion see the same commit.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

use super::cache::{Cache, is_commit};
use super::entry::{Entry, Kind, LARGE};
use super::fault::Fault;
use super::session::{Session, encoded};
use crate::checkpoint::HubId;

/// The files of a repository at a commit.
#[derive(Debug)]
pub(super) struct Listing {
    pub commit: String,
    pub files: Vec<Entry>,
}

impl Listing {
    /// The listing of `id`, from the Hub; its revision is noted in the cache.
    pub fn of(id: &HubId, kind: Kind, session: &Session) -> Result<Arc<Listing>, Fault> {
        type Seen = BTreeMap<(Kind, String, String), Arc<Listing>>;
        static SEEN: Mutex<Seen> = Mutex::new(BTreeMap::new());
        let key = (kind, id.repository(), id.revision().to_string());
        if let Some(seen) = SEEN.lock().get(&key) {
            return Ok(seen.clone());
        }
        let listing = Arc::new(Listing::ask(id, kind, session)?);
        SEEN.lock().insert(key, listing.clone());
        Ok(listing)
    }

    /// The listing as it is now.
    pub fn ask(id: &HubId, kind: Kind, session: &Session) -> Result<Listing, Fault> {
        let base = format!("api/{}/{}", kind.plural(), id.repository());
        let info = session.json(&format!("{base}/revision/{}", encoded(id.revision(), false)))?;
        let commit = info.get("sha").and_then(Value::as_str).filter(|sha| is_commit(sha));
        let commit = commit.ok_or_else(|| Fault::Nonsense("no commit of the revision".into()))?.to_string();
        let files = session.pages(&format!("{base}/tree/{commit}?recursive=true&expand=false"))?;
        let mut files: Vec<Entry> =
            files.iter().filter_map(|entry| file(entry).transpose()).collect::<Result<_, _>>()?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Cache::of(id, kind, session).note(id.revision(), &commit).map_err(Fault::Ours)?;
        Ok(Listing { commit, files })
    }

    pub fn find(&self, path: &str) -> Option<&Entry> {
        self.files.iter().find(|entry| entry.path == path)
    }

    /// Files that are in no folder.
    pub fn top(&self) -> impl Iterator<Item = &Entry> {
        self.files.iter().filter(|entry| !entry.path.contains('/'))
    }
}

/// A file of a listing; `None` for a folder. What would lead out of a folder is no name.
fn file(entry: &Value) -> Result<Option<Entry>, Fault> {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(String::from);
    if text(entry.get("type")).as_deref() != Some("file") {
        return Ok(None);
    }
    let wrong = || Fault::Nonsense("an entry of its listing has no path, size or checksum".into());
    let path = text(entry.get("path")).filter(|path| is_inside(path)).ok_or_else(wrong)?;
    let size = entry.get("size").and_then(Value::as_u64).ok_or_else(wrong)?;
    let large = entry.get("lfs").filter(|lfs| !lfs.is_null());
    let (sum, digits) = match large {
        Some(lfs) => (text(lfs.get("oid")), LARGE),
        None => (text(entry.get("oid")), 40),
    };
    let is_sum =
        |sum: &String| sum.len() == digits && sum.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'));
    Ok(Some(Entry { path, size, sum: sum.filter(is_sum).ok_or_else(wrong)? }))
}

fn is_inside(path: &str) -> bool {
    !path.contains(['\\', ':', '\0']) && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}
