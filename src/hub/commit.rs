//! One commit, as the Hub takes it: JSON lines of small contents, and names of what is stored apart from git.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::fault::Fault;
use super::lfs::Object;
use super::session::Session;
use super::{Change, PushPlan};
use crate::checkpoint::HubId;
use crate::{Error, Result};

/// Files that the Hub is asked about at once, as `huggingface_hub` does.
const AT_ONCE: usize = 256;
/// Bytes of the beginning of a file by which the Hub tells texts from others.
const SAMPLE: u64 = 512;

/// Which of the files that are sent the Hub stores apart from git.
pub(super) fn large<'a>(plan: &'a PushPlan, id: &HubId, session: &Session) -> Result<BTreeSet<&'a str>, Fault> {
    let sent: Vec<_> = plan.sent().collect();
    let mut large = BTreeSet::new();
    for files in sent.chunks(AT_ONCE) {
        let mut about = vec![];
        for file in files {
            let path = plan.folder.join(&file.name);
            let mut sample = vec![];
            let read = File::open(&path).and_then(|file| file.take(SAMPLE).read_to_end(&mut sample));
            read.map_err(Error::io(&path, "read it")).map_err(Fault::Ours)?;
            about.push(json!({ "path": file.name, "size": file.bytes, "sample": STANDARD.encode(sample) }));
        }
        let answer =
            session.post(&format!("api/models/{}/preupload/main", plan.repository), &json!({ "files": about }))?;
        for file in files {
            let said = answer.get("files").and_then(Value::as_array).into_iter().flatten();
            let mode = said.into_iter().find(|said| said.get("path").and_then(Value::as_str) == Some(&file.name));
            let mode = mode.ok_or_else(|| Fault::Nonsense(format!("nothing is said about `{}`", file.name)))?;
            // A model that lacks a file is no model.
            if mode.get("shouldIgnore").and_then(Value::as_bool) == Some(true) {
                let what = format!("`.gitignore` of the repository keeps `{}` out; nothing was sent", file.name);
                let hint = "take its line out of `.gitignore` there, or the file out of the folder";
                return Err(Fault::Ours(Error::hub(id, what, hint)));
            }
            // The store of large files takes no empty ones.
            if file.bytes > 0 && mode.get("uploadMode").and_then(Value::as_str) == Some("lfs") {
                large.insert(file.name.as_str());
            }
        }
    }
    Ok(large)
}

/// The commit of a plan whose large files are in the store.
pub(super) fn lines(plan: &PushPlan, large: &[Object], parent: &str, message: &str) -> Result<String> {
    let header = json!({ "summary": message, "description": "", "parentCommit": parent });
    let mut lines = format!("{}\n", json!({ "key": "header", "value": header }));
    for file in plan.changes() {
        let (name, object) = (&file.name, large.iter().find(|object| object.name == file.name));
        let (key, value) = match object {
            _ if file.change == Change::Remove => ("deletedFile", json!({ "path": name })),
            Some(Object { sum, size, .. }) => {
                ("lfsFile", json!({ "path": name, "algo": "sha256", "oid": sum, "size": size }))
            }
            None => {
                let path = plan.folder.join(name);
                let bytes = fs::read(&path).map_err(Error::io(&path, "read it"))?;
                ("file", json!({ "path": name, "content": STANDARD.encode(bytes), "encoding": "base64" }))
            }
        };
        lines += &format!("{}\n", json!({ "key": key, "value": value }));
    }
    Ok(lines)
}

/// Makes it: one attempt. Gives its name, if the Hub does.
pub(super) async fn send(lines: &str, repository: &str, session: &Session) -> Result<Option<String>, Fault> {
    let path = format!("api/models/{repository}/commit/main");
    let answer = session.submit(&path, "application/x-ndjson", lines.into()).await?;
    Ok(answer.get("commitOid").and_then(Value::as_str).map(String::from))
}
