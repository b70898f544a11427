//! The store of large files: where they are to be put, in one piece or in parts, and what ends an upload.

use std::sync::Arc;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::http::{Request, Response};
use super::{Hub, absent, body, hex};

/// Of signed addresses.
const SIGNATURE: &str = "signature=OfTheStore";

impl Hub {
    /// What is to be done with each file; nothing with those that are there.
    pub(super) fn batch(&self, request: &Request, repository: Option<(String, String)>) -> Response {
        if repository.is_none() {
            return absent(true);
        }
        let body = body(request);
        let mut state = self.state();
        let most = state.part;
        let mut in_parts = false;
        let objects = body["objects"].as_array().unwrap().iter().map(|object| {
            let (oid, size) = (object["oid"].as_str().unwrap(), object["size"].as_u64().unwrap() as usize);
            if state.large.contains_key(oid) {
                return object.clone();
            }
            // Another host, as far as clients can tell: it must not be shown the token.
            let store = format!("{}/lfs/{oid}", self.address.replace("127.0.0.1", "localhost"));
            let upload = match most.filter(|&most| size > most) {
                None => json!({ "href": format!("{store}?{SIGNATURE}"), "header": { "X-Signed": "yes" } }),
                Some(most) => {
                    in_parts = true;
                    state.parts.insert(oid.into(), Default::default());
                    let mut header = json!({ "chunk_size": most.to_string() });
                    for part in 1..=size.div_ceil(most) {
                        header[format!("{part:05}")] = json!(format!("{store}/part/{part}?{SIGNATURE}"));
                    }
                    json!({ "href": format!("{}/lfs/{oid}/complete?{SIGNATURE}", self.address), "header": header })
                }
            };
            let verify = format!("{}{}", self.address, request.path.replace("objects/batch", "verify"));
            json!({ "oid": oid, "size": size, "actions": { "upload": upload, "verify": { "href": verify } } })
        });
        let objects: Vec<Value> = objects.collect();
        let transfer = match body["transfers"].as_array().unwrap().contains(&json!("xet")) && state.xet {
            true => "xet",
            false if in_parts => "multipart",
            false => "basic",
        };
        Response::json(json!({ "transfer": transfer, "objects": objects }))
    }

    /// What is asked below `/lfs`.
    pub(super) fn store(&self, request: &Request, path: &[&str]) -> Response {
        let refuse = |words: &str| Response::error(400, "", words);
        if request.header("authorization").is_some() {
            return refuse("the token is not for the store");
        }
        if request.query != SIGNATURE {
            return refuse("the address is not signed");
        }
        if request.method == "PUT" && request.header("content-length").is_none() {
            return refuse("the length is missing");
        }
        let mut state = self.state();
        match (request.method.as_str(), path) {
            ("PUT", [oid]) if sum(&request.body) == *oid => {
                state.large.insert(oid.to_string(), Arc::new(request.body.clone()));
                Response::new(200, "")
            }
            ("PUT", [oid, "part", part]) => {
                let Some(parts) = state.parts.get_mut(*oid) else { return refuse("no such upload") };
                parts.insert(part.parse().unwrap(), request.body.clone());
                Response::new(200, "").with("etag", etag(&request.body))
            }
            ("POST", [oid, "complete"]) => {
                let Some(parts) = state.parts.remove(*oid) else { return refuse("no such upload") };
                let told = parts.iter().map(|(number, bytes)| json!({ "partNumber": number, "etag": etag(bytes) }));
                let whole = parts.values().flatten().copied().collect::<Vec<u8>>();
                if body(request) != json!({ "oid": oid, "parts": told.collect::<Vec<_>>() }) || sum(&whole) != *oid {
                    return refuse("the parts do not make up the file");
                }
                state.large.insert(oid.to_string(), Arc::new(whole));
                Response::json(json!({ "success": true }))
            }
            _ => refuse("wrong checksum, or no such address"),
        }
    }

    pub(super) fn verify(&self, body: &Value) -> Response {
        let oid = body["oid"].as_str().unwrap();
        let mut state = self.state();
        if state.large.get(oid).is_none_or(|bytes| body["size"] != bytes.len()) {
            return Response::error(422, "", "that object is not there");
        }
        state.verified.push(oid.into());
        Response::new(200, "")
    }
}

fn sum(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn etag(part: &[u8]) -> String {
    format!("\"{}\"", &sum(part)[..32])
}
