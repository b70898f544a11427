//! A model's folder to a repository: what differs, in one commit.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hf_hub::RepoTypeModel;
use hf_hub::progress::{ProgressEvent, ProgressHandler, UploadEvent};
use hf_hub::repository::CommitOperation;

use super::commit;
use super::entry::{Entry, Kind};
use super::fault::Fault;
use super::fetch::Sum;
use super::lfs::{Object, Store};
use super::listing::Listing;
use super::session::Session;
use super::{Change, PushFile, PushPlan, is_offline};
use crate::checkpoint::{Checkpoint, HubId, INDEX, Location, within};
use crate::progress::{Progress, Unit};
use crate::{Error, Result};

pub(super) fn compare(folder: &Path, id: &HubId, public: bool, progress: &mut dyn Progress) -> Result<PushPlan> {
    // Only models are pushed; this checks every header.
    Checkpoint::open(&Location::Path(folder.into()))?;
    let session = session(id)?;
    let remote = match Listing::ask(id, Kind::Model, session) {
        Ok(listing) => Some(listing),
        Err(fault) if fault.is_absence(session) => None,
        Err(fault) => return Err(fault.explain(id, Kind::Model.word(), session)),
    };
    let mut there: BTreeMap<&str, &Entry> =
        remote.iter().flat_map(|listing| listing.files.iter().map(|entry| (entry.path.as_str(), entry))).collect();
    let names = names(folder)?;
    // Only what has the same size needs to be read.
    let alike = |name: &str, bytes: u64| there.get(name).is_some_and(|entry| entry.size == bytes);
    let total: u64 = names.iter().filter(|(name, bytes)| alike(name, *bytes)).map(|(_, bytes)| bytes).sum();
    if total > 0 {
        progress.begin("compare with the Hub", 0, total, Unit::Bytes);
    }
    let (mut files, mut done) = (vec![], 0);
    for (name, bytes) in names {
        let change = match there.remove(name.as_str()) {
            None => Change::Add,
            Some(entry) if entry.size != bytes => Change::Replace,
            Some(entry) => {
                let same = Sum::read(&folder.join(&name), entry.is_large(), bytes)? == entry.sum;
                done += bytes;
                progress.advance(done, &name);
                if same { Change::Keep } else { Change::Replace }
            }
        };
        files.push(PushFile { name, bytes, change });
    }
    if total > 0 {
        progress.end("");
    }
    // A loader that finds `model.safetensors` reads no index, and the other way round nobody reads old shards.
    let weights = |name: &str| !name.contains('/') && (name == INDEX || name.ends_with(".safetensors"));
    let old = there.into_values().filter(|entry| weights(&entry.path));
    files.extend(old.map(|entry| PushFile { name: entry.path.clone(), bytes: entry.size, change: Change::Remove }));
    Ok(PushPlan {
        repository: id.repository(),
        create: remote.is_none(),
        public,
        files,
        folder: folder.into(),
        parent: remote.map(|listing| listing.commit),
    })
}

pub(super) fn push(plan: &PushPlan, message: &str, progress: &mut dyn Progress) -> Result<Option<String>> {
    if plan.changes().next().is_none() {
        return Ok(None);
    }
    let id = HubId::parse(&plan.repository)
        .ok_or_else(|| Error::Internal(format!("`{}` is no repository", plan.repository)))?;
    // Nobody means a path here.
    let id = HubId { path: PathBuf::new(), ..id };
    let session = session(&id)?;
    let explain = |fault: Fault| fault.explain(&id, Kind::Model.word(), session);
    if session.token.is_none() {
        let hint = "log in with `hf auth login`, or set HF_TOKEN to a token that may write";
        return Err(Error::hub(&id, "nothing can be sent without a token, and none was found", hint));
    }
    let client = session.hf().map_err(explain)?;
    if plan.create {
        let create = || async {
            let request = client.create_repository().repo_id(&plan.repository).repo_type(RepoTypeModel);
            Ok(request.private(!plan.public).exist_ok(true).send().await.map(|_| ())?)
        };
        session.repeated(create).map_err(explain)?;
        progress.say(&format!("{}: created, {}", plan.repository, if plan.public { "public" } else { "private" }));
    }
    // A commit on another parent is refused: none is made twice, and none over what others sent meanwhile.
    let parent = match &plan.parent {
        Some(parent) => parent.clone(),
        None => Listing::ask(&id, Kind::Model, session).map_err(explain)?.commit,
    };
    let sent = Arc::new(AtomicU64::new(0));
    let store = Store { id: &id, session, sent: sent.clone() };
    let way = prepare(plan, &store, &parent, message, progress)?;
    let model = client.model(&id.owner, &id.name);
    let mut wait = std::time::Duration::from_millis(500);
    let mut attempts = 0;
    let commit = loop {
        let work = async {
            match &way {
                Way::Xet(operations) => {
                    let request = model.create_commit().operations(operations.clone()).commit_message(message);
                    let request = request.parent_commit(&parent).progress(Sent(sent.clone()));
                    Ok::<_, Fault>(request.send().await?.commit_oid)
                }
                Way::Lines(lines) => commit::send(lines, &plan.repository, session).await,
            }
        };
        let fault = match session.run(work, &mut || progress.advance(sent.load(Ordering::Relaxed), "")) {
            Ok(commit) => break commit,
            Err(fault) => fault,
        };
        attempts += 1;
        // A commit whose answer was lost is there all the same: what is in the repository says so.
        if attempts > 1 && matches!(&fault, Fault::Answer { status: 409 | 412, .. }) {
            let now = compare(&plan.folder, &id, plan.public, &mut crate::progress::Silent)?;
            if now.changes().next().is_none() {
                break now.parent;
            }
        }
        let Some(pause) = fault.wait(wait).filter(|_| attempts < 5) else { return Err(explain(fault)) };
        session.sleep(pause).map_err(explain)?;
        wait *= 2;
    };
    progress.advance(plan.bytes(), "");
    progress.end(&format!("{} files", plan.changes().count()));
    Ok(Some(address(session, &plan.repository, commit.as_deref())))
}

/// How a commit is made.
///
/// `hf-hub` sends large files by Xet, which leaves out what the Hub has of them already: of a converted model that is most,
/// its teacher's weights. A Hub without Xet would get them inside `hf-hub`'s commit, whole in memory; so there they go by
/// LFS before it, and the commit names them.
enum Way {
    Xet(Vec<CommitOperation>),
    Lines(String),
}

/// Does what comes before the commit.
fn prepare(
    plan: &PushPlan,
    store: &Store<'_>,
    parent: &str,
    message: &str,
    progress: &mut dyn Progress,
) -> Result<Way> {
    let explain = |fault: Fault| fault.explain(store.id, Kind::Model.word(), store.session);
    let large = commit::large(plan, store.id, store.session).map_err(explain)?;
    progress.begin(&format!("upload to {}", plan.repository), 0, plan.bytes(), Unit::Bytes);
    // Each is read for its checksum when its turn comes.
    let large = plan.sent().filter(|file| large.contains(file.name.as_str()));
    let mut large = large.map(|file| Object::read(&plan.folder, &file.name, file.bytes)).peekable();
    if let Some(Ok(first)) = large.peek()
        && store.takes_xet(first).map_err(explain)?
    {
        let operations = plan.changes().map(|file| match file.change {
            Change::Remove => CommitOperation::delete(&file.name),
            _ => CommitOperation::add_file(&file.name, plan.folder.join(&file.name)),
        });
        return Ok(Way::Xet(operations.collect()));
    }
    let mut there = vec![];
    while let Some(object) = large.next().transpose()? {
        store.send(&object, progress).map_err(explain)?;
        there.push(object);
        progress.advance(store.sent.load(Ordering::Relaxed), "checksum of the next file");
    }
    Ok(Way::Lines(commit::lines(plan, &there, parent, message)?))
}

fn session(id: &HubId) -> Result<&'static Session> {
    match is_offline() {
        true => Err(Error::hub(id, "nothing is sent offline", "leave out `--offline` and HF_HUB_OFFLINE")),
        false => Session::get(),
    }
}

/// Where people see a commit.
fn address(session: &Session, repository: &str, commit: Option<&str>) -> String {
    match commit {
        Some(commit) => format!("{}/{repository}/commit/{commit}", session.endpoint),
        None => format!("{}/{repository}", session.endpoint),
    }
}

/// Names and sizes of the files in a model's folder, sorted; hidden ones and folders do not count.
fn names(folder: &Path) -> Result<Vec<(String, u64)>> {
    let mut names = vec![];
    for entry in folder.read_dir().map_err(Error::io(folder, "list it"))? {
        let path = entry.map_err(Error::io(folder, "list it"))?.path();
        let found = fs::metadata(&path).map_err(Error::io(&path, "look at it"))?;
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            return Err(Error::file(&path, "the name of this file is not UTF-8", "rename it"));
        };
        if found.is_file() && !name.starts_with('.') {
            // What is sent is for others to read: no link may bring other files of this machine along.
            within(folder, name)?;
            names.push((name.to_string(), found.len()));
        }
    }
    names.sort();
    Ok(names)
}

/// Counts what was sent; called from other threads.
struct Sent(Arc<AtomicU64>);

impl ProgressHandler for Sent {
    fn on_progress(&self, event: &ProgressEvent) {
        if let ProgressEvent::Upload(UploadEvent::Progress { bytes_completed, .. }) = event {
            self.0.store(*bytes_completed, Ordering::Relaxed);
        }
    }
}
