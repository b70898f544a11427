//! Large files to a Hub that stores them under their SHA-256: each in one piece (`basic`), or in parts (`multipart`, the
//! Hub's own), read from the disk block by block.
//!
//! The protocol: <https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md>, and for parts `lfs.py` of
//! `huggingface_hub`. Addresses of contents are signed and lie elsewhere: they get the headers that the Hub names for them,
//! and never the token.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::stream;
use reqwest::Body;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, ETAG, HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};

use super::fault::Fault;
use super::fetch::Sum;
use super::session::Session;
use crate::checkpoint::HubId;
use crate::progress::Progress;
use crate::{Error, Result};

/// The ways to send that are spoken here.
const TRANSFERS: &[&str] = &["basic", "multipart"];
const MEDIA: &str = "application/vnd.git-lfs+json";
/// Bytes that are read at once.
const BLOCK: u64 = 256 << 10;

/// A file that is stored apart from git.
pub(super) struct Object {
    pub name: String,
    pub path: PathBuf,
    pub size: u64,
    pub sum: String,
}

impl Object {
    /// A file of a folder; reads all of it.
    pub fn read(folder: &Path, name: &str, size: u64) -> Result<Object> {
        let path = folder.join(name);
        let sum = Sum::read(&path, true, size)?;
        Ok(Object { name: name.into(), path, size, sum })
    }
}

/// Where a repository's large files go.
pub(super) struct Store<'a> {
    pub id: &'a HubId,
    pub session: &'a Session,
    /// Bytes that have gone out, of this push.
    pub sent: Arc<AtomicU64>,
}

impl Store<'_> {
    /// Whether the Hub takes this file, and with it all others, by Xet.
    pub fn takes_xet(&self, object: &Object) -> Result<bool, Fault> {
        let answer = self.ask(object, &["basic", "multipart", "xet"])?;
        Ok(answer.get("transfer").and_then(Value::as_str) == Some("xet"))
    }

    /// Sends a file, unless the Hub has it. It asks for the addresses only now, because they expire.
    pub fn send(&self, object: &Object, progress: &mut dyn Progress) -> Result<(), Fault> {
        let answer = self.ask(object, TRANSFERS)?;
        let start = self.sent.load(Ordering::Relaxed);
        if let Some(upload) = Action::find(&answer, "upload")? {
            match upload.parts(object.size)? {
                None => drop(self.put(object, &upload.address, upload.headers()?, 0..object.size, progress)?),
                Some(parts) => self.send_parts(object, &upload.address, parts, progress)?,
            }
        }
        if let Some(verify) = Action::find(&answer, "verify")? {
            let ours = verify.address.starts_with(&format!("{}/", self.session.endpoint));
            let mut headers = if ours { self.session.headers() } else { HeaderMap::new() };
            headers.extend(verify.headers()?);
            self.tell(object, &verify.address, headers, &json!({ "oid": object.sum, "size": object.size }))?;
        }
        self.sent.store(start + object.size, Ordering::Relaxed);
        progress.advance(start + object.size, &object.name);
        Ok(())
    }

    /// Sends a file in parts, and has them put together at `address`.
    fn send_parts(
        &self,
        object: &Object,
        address: &str,
        parts: Vec<Part>,
        progress: &mut dyn Progress,
    ) -> Result<(), Fault> {
        let mut done = vec![];
        for (number, Part { range, address }) in (1..).zip(parts) {
            let answer = self.put(object, &address, HeaderMap::new(), range, progress)?;
            let etag = answer.get(ETAG).and_then(|etag| etag.to_str().ok());
            let etag = etag.ok_or_else(|| Fault::Nonsense(format!("part {number} got no etag")))?;
            done.push(json!({ "partNumber": number, "etag": etag }));
        }
        let told = self.tell(object, address, HeaderMap::new(), &json!({ "oid": object.sum, "parts": done }));
        // Parts are put together once: when the answer was lost, a second try fails, and the file is there.
        match told {
            Err(_) if Action::find(&self.ask(object, TRANSFERS)?, "upload")?.is_none() => Ok(()),
            told => told,
        }
    }

    /// What the Hub has to say about a file: nothing to do, or where to put it.
    fn ask(&self, object: &Object, transfers: &[&str]) -> Result<Value, Fault> {
        let body = json!({
            "operation": "upload", "transfers": transfers, "hash_algo": "sha256", "ref": { "name": "main" },
            "objects": [{ "oid": object.sum, "size": object.size }],
        });
        let address = format!("{}/{}.git/info/lfs/objects/batch", self.session.endpoint, self.id.repository());
        let mut headers = self.session.headers();
        headers.insert(ACCEPT, HeaderValue::from_static(MEDIA));
        self.session.repeated(|| async {
            let answer = self.session.deliver(&address, headers.clone(), MEDIA, body.to_string()).await?;
            let answer: Value = answer.json().await?;
            let Some(about) = answer.pointer("/objects/0") else {
                return Err(Fault::Nonsense(format!("nothing is said about `{}`", object.name)));
            };
            match about.get("error") {
                None => Ok(answer),
                Some(error) => Err(Fault::Answer {
                    status: error
                        .get("code")
                        .and_then(Value::as_u64)
                        .and_then(|code| code.try_into().ok())
                        .unwrap_or(0),
                    code: String::new(),
                    words: error.get("message").and_then(Value::as_str).unwrap_or_default().into(),
                    wait: None,
                }),
            }
        })
    }

    /// Puts a part of a file at an address, and gives the headers of the answer.
    fn put(
        &self,
        object: &Object,
        address: &str,
        headers: HeaderMap,
        range: Range<u64>,
        progress: &mut dyn Progress,
    ) -> Result<HeaderMap, Fault> {
        let start = self.sent.load(Ordering::Relaxed);
        let attempt = || async {
            self.sent.store(start, Ordering::Relaxed);
            let body = contents(object, range.clone(), self.sent.clone()).map_err(Fault::Ours)?;
            // A store of signed addresses wants the length, which a stream does not have.
            let length = range.end - range.start;
            let request = self.session.put(address).headers(headers.clone()).header(CONTENT_LENGTH, length).body(body);
            Ok(self.session.sent(request, &self.sent).await?.headers().clone())
        };
        let mut tick = || progress.advance(self.sent.load(Ordering::Relaxed), &object.name);
        let answer = self.session.watched(attempt, &mut tick);
        tick();
        answer.map_err(|fault| fault.of_store(self.id, &object.name, self.session))
    }

    /// Says something about a file to an address that the Hub has named.
    fn tell(&self, object: &Object, address: &str, headers: HeaderMap, what: &Value) -> Result<(), Fault> {
        let told = self.session.repeated(|| async {
            self.session.deliver(address, headers.clone(), MEDIA, what.to_string()).await.map(|_| ())
        });
        told.map_err(|fault| fault.of_store(self.id, &object.name, self.session))
    }
}

/// Bytes of a file that go to an address of their own.
struct Part {
    range: Range<u64>,
    address: String,
}

/// An address, and what the Hub says about using it.
struct Action {
    address: String,
    header: serde_json::Map<String, Value>,
}

impl Action {
    /// An action of the only file of an answer; `None`: it need not be done.
    fn find(answer: &Value, name: &str) -> Result<Option<Action>, Fault> {
        let Some(action) = answer.pointer("/objects/0/actions").and_then(|actions| actions.get(name)) else {
            return Ok(None);
        };
        let address = action.get("href").and_then(Value::as_str);
        let address = address.ok_or_else(|| Fault::Nonsense("an upload without an address".into()))?.to_string();
        let header = action.get("header").and_then(Value::as_object).cloned().unwrap_or_default();
        Ok(Some(Action { address, header }))
    }

    /// The headers that the address wants.
    fn headers(&self) -> Result<HeaderMap, Fault> {
        let pair = |(name, value): (&String, &Value)| {
            let mut value = HeaderValue::from_str(value.as_str()?).ok()?;
            // Logs show such values as secret.
            value.set_sensitive(true);
            Some((HeaderName::try_from(name).ok()?, value))
        };
        let pairs: Option<HeaderMap> = self.header.iter().map(pair).collect();
        pairs.ok_or_else(|| Fault::Nonsense("an upload with headers that are none".into()))
    }

    /// The parts that a file is to be sent in, each with its address; `None`: it is sent in one piece. Their size and
    /// addresses stand among the headers.
    fn parts(&self, size: u64) -> Result<Option<Vec<Part>>, Fault> {
        let Some(length) = self.header.get("chunk_size") else { return Ok(None) };
        let wrong = || Fault::Nonsense("an upload in parts that do not make up the file".into());
        let length = length.as_u64().or_else(|| length.as_str()?.parse().ok()).filter(|&n| n > 0).ok_or_else(wrong)?;
        let numbered = |(name, address): (&String, &Value)| Some((name.parse().ok()?, address.as_str()?.to_string()));
        let mut addresses: Vec<(u64, String)> = self.header.iter().filter_map(numbered).collect();
        addresses.sort();
        if addresses.len() as u64 != size.div_ceil(length) {
            return Err(wrong());
        }
        let starts = (0..size).step_by(usize::try_from(length).map_err(|_| wrong())?);
        let part = |(start, (_, address))| Part { range: start..size.min(length.saturating_add(start)), address };
        Ok(Some(starts.zip(addresses).map(part).collect()))
    }
}

/// Bytes of a file, as they are read; `sent` counts them.
fn contents(object: &Object, range: Range<u64>, sent: Arc<AtomicU64>) -> Result<Body> {
    let path = &object.path;
    let mut file = File::open(path).map_err(Error::io(path, "read it"))?;
    if file.metadata().map_err(Error::io(path, "look at it"))?.len() != object.size {
        return Err(Error::file(path, "this file changed while it was sent", "run the same command again"));
    }
    file.seek(SeekFrom::Start(range.start)).map_err(Error::io(path, "read it"))?;
    let mut left = range.end - range.start;
    let blocks = std::iter::from_fn(move || {
        let mut block = vec![0; left.min(BLOCK) as usize];
        left -= block.len() as u64;
        sent.fetch_add(block.len() as u64, Ordering::Relaxed);
        (!block.is_empty()).then(|| file.read_exact(&mut block).map(|()| block))
    });
    Ok(Body::wrap_stream(stream::iter(blocks)))
}
