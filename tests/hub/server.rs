//! The Hub's protocol, as far as clients speak it for models and datasets, in memory: create, preupload, LFS batch and
//! upload, commit, listing in pages, files with ranges behind a redirect. Faults can be ordered.
#![allow(dead_code)]

#[path = "http.rs"]
pub mod http;
#[path = "store.rs"]
mod store;

use std::collections::BTreeMap;
use std::io::BufReader;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use http::{Request, Response};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Who has it may write.
pub const TOKEN: &str = "hf_SecretOfTheTests0123456789";
/// Entries of a page of a listing.
const PAGE: usize = 3;

/// What goes wrong with the next requests that fit.
#[derive(Clone)]
pub struct Fault {
    pub method: &'static str,
    /// Of the path.
    pub part: &'static str,
    pub how: How,
    pub times: usize,
}

#[derive(Clone)]
pub enum How {
    /// Status, code, words, more headers.
    Status(u16, &'static str, &'static str, Vec<(&'static str, &'static str)>),
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// Nothing comes after so many bytes of the body, for half a minute.
    Stall(usize),
    /// One byte of the body is another.
    Corrupt,
    /// The connection ends before the request has come whole.
    Hangup,
    /// What was asked is done, and the connection ends without a word.
    Lost,
}

#[derive(Clone)]
pub struct Stored {
    pub bytes: Arc<Vec<u8>>,
    pub large: bool,
}

impl Stored {
    pub fn sum(&self) -> String {
        match self.large {
            true => hex(&Sha256::digest(&*self.bytes)),
            false => git(&self.bytes),
        }
    }
}

pub type Tree = BTreeMap<String, Stored>;

#[derive(Default)]
pub struct Repository {
    pub private: bool,
    /// Commit, message, files.
    pub commits: Vec<(String, String, Tree)>,
    pub tags: BTreeMap<String, String>,
}

impl Repository {
    pub fn tree(&self) -> &Tree {
        &self.commits.last().unwrap().2
    }

    fn commit(&mut self, message: &str, tree: Tree) -> String {
        let sums: String = tree.iter().map(|(name, file)| format!("{name} {}\n", file.sum())).collect();
        let id = git(format!("{} {message}\n{sums}", self.commits.len()).as_bytes());
        self.commits.push((id.clone(), message.into(), tree));
        id
    }

    fn at(&self, revision: &str) -> Option<&(String, String, Tree)> {
        let revision = self.tags.get(revision).map_or(revision, String::as_str);
        match revision {
            "main" => self.commits.last(),
            commit => self.commits.iter().find(|(id, ..)| id == commit),
        }
    }
}

/// One request that came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub token: bool,
    /// Whether the header came that the store has asked for.
    pub signed: bool,
}

#[derive(Default)]
pub struct State {
    /// By kind (`models`, `datasets`) and `OWNER/NAME`.
    pub repositories: BTreeMap<(String, String), Repository>,
    /// Large contents by checksum.
    pub large: BTreeMap<String, Arc<Vec<u8>>>,
    /// Large files longer than this come in parts of it.
    pub part: Option<usize>,
    /// Whether large files go by Xet for those who speak it; there is no such store here.
    pub xet: bool,
    /// Parts that came, by checksum of the whole.
    pub parts: BTreeMap<String, BTreeMap<usize, Vec<u8>>>,
    /// Checksums of the uploads that were verified.
    pub verified: Vec<String>,
    /// A name that `.gitignore` has.
    pub ignored: Option<&'static str>,
    pub faults: Vec<Fault>,
    pub log: Vec<Asked>,
}

/// A server of its own; ends with the process.
#[derive(Clone)]
pub struct Hub {
    pub address: String,
    state: Arc<Mutex<State>>,
}

impl Hub {
    pub fn start() -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hub = Hub { address: format!("http://{}", listener.local_addr().unwrap()), state: Arc::default() };
        let server = hub.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = server.clone();
                std::thread::spawn(move || server.serve(stream));
            }
        });
        hub
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A repository with these files; those named `.safetensors` or longer than a megabyte are large.
    pub fn add(&self, kind: &str, id: &str, files: impl IntoIterator<Item = (String, Vec<u8>)>) -> String {
        let mut state = self.state();
        let mut tree = Tree::new();
        for (name, bytes) in files {
            let file = Stored { large: is_large(&name, bytes.len()), bytes: Arc::new(bytes) };
            if file.large {
                state.large.insert(file.sum(), file.bytes.clone());
            }
            tree.insert(name, file);
        }
        state.repositories.entry((kind.into(), id.into())).or_default().commit("first", tree)
    }

    pub fn fault(&self, method: &'static str, part: &'static str, how: How, times: usize) {
        self.state().faults.push(Fault { method, part, how, times });
    }

    /// What was asked since the last call, and no more faults.
    pub fn asked(&self) -> Vec<Asked> {
        let mut state = self.state();
        state.faults.clear();
        std::mem::take(&mut state.log)
    }

    fn serve(&self, mut stream: TcpStream) {
        let inner = stream.try_clone().unwrap();
        let mut reader = BufReader::new(&inner);
        let Some(request) = Request::head(&mut reader) else { return };
        let fault = {
            let mut state = self.state();
            state.log.push(Asked {
                method: request.method.clone(),
                path: request.path.clone(),
                range: request.header("range").map(String::from),
                token: request.header("authorization").is_some(),
                signed: request.header("x-signed").is_some(),
            });
            let fits = |fault: &&mut Fault| {
                fault.times > 0 && fault.method == request.method && request.path.contains(fault.part)
            };
            state.faults.iter_mut().find(fits).map(|fault| {
                fault.times -= 1;
                fault.how.clone()
            })
        };
        if matches!(fault, Some(How::Hangup)) {
            return;
        }
        let Some(request) = request.whole(&mut reader) else { return };
        let head_only = request.method == "HEAD";
        match fault {
            Some(How::Lost | How::Hangup) => drop(self.answer(&request)),
            Some(How::Status(status, code, words, headers)) => {
                let response = Response::error(status, code, words);
                let response = headers.iter().fold(response, |response, (name, value)| response.with(name, value));
                response.send(&mut stream, head_only, None);
            }
            Some(How::Cut(most)) => self.answer(&request).send(&mut stream, head_only, Some(most)),
            Some(How::Stall(most)) => {
                self.answer(&request).send(&mut stream, head_only, Some(most));
                std::thread::sleep(std::time::Duration::from_secs(30));
            }
            Some(How::Corrupt) => {
                let mut response = self.answer(&request);
                let middle = response.body.len() / 2;
                response.body[middle] ^= 1;
                response.send(&mut stream, head_only, None);
            }
            None => self.answer(&request).send(&mut stream, head_only, None),
        }
    }

    fn answer(&self, request: &Request) -> Response {
        let parts: Vec<&str> = request.path.trim_matches('/').split('/').collect();
        if parts[0] == "lfs" {
            return self.store(request, &parts[1..]);
        }
        let writes = match request.header("authorization") {
            None => false,
            Some(value) if value == format!("Bearer {TOKEN}") => true,
            Some(_) => return Response::error(401, "", "Invalid credentials in Authorization header"),
        };
        match (request.method.as_str(), &parts[..]) {
            ("POST", ["api", "validate-yaml"]) => Response::json(json!({ "errors": [], "warnings": [] })),
            ("GET", ["api", "whoami-v2"]) if writes => {
                Response::json(json!({ "name": "me", "type": "user", "orgs": [] }))
            }
            ("POST" | "PUT", _) if !writes => Response::error(401, "", "Invalid username or password."),
            ("POST", ["api", "repos", "create"]) => self.create(&body(request)),
            ("GET" | "HEAD", ["cdn", oid]) => match self.state().large.get(*oid) {
                Some(bytes) => contents(request, bytes).with("etag", format!("\"{oid}\"")),
                None => Response::error(404, "", "no such object"),
            },
            ("POST", [owner, name, "info", "lfs", "objects", "batch"]) => {
                self.batch(request, self.repository("models", owner, name.trim_end_matches(".git"), writes))
            }
            ("POST", ["datasets", owner, name, "info", "lfs", "objects", "batch"]) => {
                self.batch(request, self.repository("datasets", owner, name.trim_end_matches(".git"), writes))
            }
            ("POST", [.., "info", "lfs", "verify"]) => self.verify(&body(request)),
            (_, ["api", kind @ ("models" | "datasets"), owner, name, rest @ ..]) => {
                match self.repository(kind, owner, name, writes) {
                    Some(key) => self.of_repository(request, &key, rest),
                    None => absent(writes),
                }
            }
            ("GET" | "HEAD", ["datasets", owner, name, "resolve", revision, file @ ..]) => {
                self.resolve(request, ("datasets", owner, name), writes, revision, &file.join("/"))
            }
            ("GET" | "HEAD", [owner, name, "resolve", revision, file @ ..]) => {
                self.resolve(request, ("models", owner, name), writes, revision, &file.join("/"))
            }
            _ => Response::error(404, "", "no such address"),
        }
    }

    fn repository(&self, kind: &str, owner: &str, name: &str, writes: bool) -> Option<(String, String)> {
        let key = (kind.to_string(), format!("{owner}/{name}"));
        self.state().repositories.get(&key).filter(|repository| writes || !repository.private).map(|_| key)
    }

    fn create(&self, body: &Value) -> Response {
        let kind = format!("{}s", body["type"].as_str().unwrap_or("model"));
        let id = format!("{}/{}", body["organization"].as_str().unwrap_or("me"), body["name"].as_str().unwrap());
        let url = format!("{}/{id}", self.address);
        let mut state = self.state();
        if state.repositories.contains_key(&(kind.clone(), id.clone())) {
            return Response::new(409, json!({ "error": "it exists", "url": url }).to_string());
        }
        let private = body["private"].as_bool().unwrap_or(false);
        let mut repository = Repository { private, ..Repository::default() };
        let attributes = Stored { bytes: Arc::new(b"*.safetensors filter=lfs\n".to_vec()), large: false };
        repository.commit("initial commit", Tree::from([(".gitattributes".into(), attributes)]));
        state.repositories.insert((kind, id.clone()), repository);
        Response::json(json!({ "url": url, "name": id }))
    }

    fn of_repository(&self, request: &Request, key: &(String, String), rest: &[&str]) -> Response {
        let missing = || Response::error(404, "RevisionNotFound", "Invalid rev id");
        match (request.method.as_str(), rest) {
            ("GET", [] | ["revision", ..]) => {
                let state = self.state();
                let repository = &state.repositories[key];
                let Some((commit, _, tree)) = repository.at(&rest.get(1..).map_or("main".into(), |r| r.join("/")))
                else {
                    return missing();
                };
                let siblings: Vec<Value> = tree.keys().map(|name| json!({ "rfilename": name })).collect();
                Response::json(json!({
                    "_id": "0", "id": key.1, "modelId": key.1, "sha": commit, "private": repository.private,
                    "gated": false, "disabled": false, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings,
                }))
            }
            ("GET", ["tree", revision]) => {
                let state = self.state();
                let Some((.., tree)) = state.repositories[key].at(revision) else { return missing() };
                let from = request.query.split('&').find_map(|q| q.strip_prefix("cursor=")?.parse().ok()).unwrap_or(0);
                let entry = |(name, file): (&String, &Stored)| {
                    let size = file.bytes.len();
                    let mut entry = json!({ "type": "file", "oid": git(&file.bytes), "size": size, "path": name });
                    if file.large {
                        entry["lfs"] = json!({ "oid": file.sum(), "size": size, "pointerSize": 131 });
                    }
                    entry
                };
                let page: Vec<Value> = tree.iter().skip(from).take(PAGE).map(entry).collect();
                let response = Response::json(Value::Array(page));
                if from + PAGE >= tree.len() {
                    return response;
                }
                let next = format!("{}{}?recursive=true&cursor={}", self.address, request.path, from + PAGE);
                response.with("link", format!("<{next}>; rel=\"next\""))
            }
            ("POST", ["preupload", _]) => {
                let body = body(request);
                let files = body["files"].as_array().unwrap().iter().map(|file| {
                    let (path, size) = (file["path"].as_str().unwrap(), file["size"].as_u64().unwrap() as usize);
                    let mode = if is_large(path, size) { "lfs" } else { "regular" };
                    let ignored = self.state().ignored == Some(path);
                    json!({ "path": path, "uploadMode": mode, "shouldIgnore": ignored, "oid": null })
                });
                Response::json(json!({ "files": files.collect::<Vec<_>>() }))
            }
            ("POST", ["commit", "main"]) => self.commit(request, key),
            _ => Response::error(404, "", "no such address"),
        }
    }

    fn commit(&self, request: &Request, key: &(String, String)) -> Response {
        use base64::Engine;
        let mut state = self.state();
        let mut tree = state.repositories[key].tree().clone();
        let mut message = String::new();
        for line in request.body.split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
            let line: Value = serde_json::from_slice(line).unwrap();
            let value = &line["value"];
            let path = value["path"].as_str().unwrap_or_default().to_string();
            match line["key"].as_str().unwrap() {
                "header" => {
                    message = value["summary"].as_str().unwrap().into();
                    let parent = value["parentCommit"].as_str();
                    if parent.is_some_and(|parent| parent != state.repositories[key].commits.last().unwrap().0) {
                        return Response::error(412, "", "A commit has happened since");
                    }
                }
                "file" => {
                    let bytes = base64::engine::general_purpose::STANDARD.decode(value["content"].as_str().unwrap());
                    let bytes = Arc::new(bytes.unwrap());
                    let large = is_large(&path, bytes.len());
                    let file = Stored { bytes, large };
                    if large {
                        state.large.insert(file.sum(), file.bytes.clone());
                    }
                    tree.insert(path, file);
                }
                "lfsFile" => {
                    let Some(bytes) = state.large.get(value["oid"].as_str().unwrap()).cloned() else {
                        return Response::error(400, "", "that object was not uploaded");
                    };
                    tree.insert(path, Stored { bytes, large: true });
                }
                "deletedFile" => assert!(tree.remove(&path).is_some(), "{path} is not there"),
                other => panic!("{other}"),
            }
        }
        let oid = state.repositories.get_mut(key).unwrap().commit(&message, tree);
        let url = format!("{}/{}/commit/{oid}", self.address, key.1);
        Response::json(json!({ "success": true, "commitOid": oid, "commitUrl": url, "hookOutput": "" }))
    }

    fn resolve(
        &self,
        request: &Request,
        (kind, owner, name): (&str, &str, &str),
        writes: bool,
        revision: &str,
        file: &str,
    ) -> Response {
        let Some(key) = self.repository(kind, owner, name, writes) else { return absent(writes) };
        let state = self.state();
        let Some((commit, _, tree)) = state.repositories[&key].at(revision) else {
            return Response::error(404, "RevisionNotFound", "Invalid rev id");
        };
        let Some(found) = tree.get(file) else {
            return Response::error(404, "EntryNotFound", "Entry not found").with("x-repo-commit", commit);
        };
        let sum = found.sum();
        match found.large {
            false => contents(request, &found.bytes).with("x-repo-commit", commit).with("etag", format!("\"{sum}\"")),
            true => Response::new(302, "")
                // Another host, as far as clients can tell: it must not be shown the token.
                .with("location", format!("{}/cdn/{sum}", self.address.replace("127.0.0.1", "localhost")))
                .with("x-repo-commit", commit)
                .with("x-linked-etag", format!("\"{sum}\""))
                .with("x-linked-size", found.bytes.len()),
        }
    }
}

/// The Hub tells strangers no difference between what is private and what is not there.
fn absent(known: bool) -> Response {
    match known {
        true => Response::error(404, "RepoNotFound", "Repository not found"),
        false => Response::error(401, "RepoNotFound", "Repository not found"),
    }
}

fn contents(request: &Request, bytes: &[u8]) -> Response {
    match request.range(bytes.len()) {
        None => Response::new(200, bytes).with("accept-ranges", "bytes"),
        Some((first, last)) if first < last => Response::new(206, &bytes[first..last])
            .with("content-range", format!("bytes {first}-{}/{}", last - 1, bytes.len())),
        Some(_) => Response::new(416, ""),
    }
}

fn body(request: &Request) -> Value {
    serde_json::from_slice(&request.body).unwrap()
}

fn is_large(name: &str, bytes: usize) -> bool {
    name.ends_with(".safetensors") || bytes > 1 << 20
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Git's checksum of a file.
pub fn git(bytes: &[u8]) -> String {
    use sha1::Digest;
    let mut sum = sha1::Sha1::new();
    sum.update(format!("blob {}\0", bytes.len()));
    sum.update(bytes);
    hex(&sum.finalize())
}
