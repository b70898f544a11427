//! The weights of a checkpoint: one file, or the shards that an index names; every header read and held to the index.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::files::{Bytes, Files, is_plain};
use super::header::{Header, decode};
use super::words::shown;
use super::{INDEX, WEIGHTS};
use crate::error::{Error, Result};

/// Largest index that is read.
const MAX_INDEX: u64 = 100_000_000;

/// One file of weights.
pub(super) struct Shard {
    pub name: String,
    pub bytes: Bytes,
    pub header: Header,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Opens the files of weights, in the order that every loader follows: the single file first, then the index.
pub(super) fn shards(files: &Files) -> Result<Vec<Shard>> {
    if let Some(shard) = shard(files, WEIGHTS)? {
        return Ok(vec![shard]);
    }
    let Some(index) = files.read_at_most(INDEX, MAX_INDEX)? else { return Err(no_weights(files)) };
    let place = files.place(INDEX);
    let wrong = |what: String, hint: &str| Error::checkpoint(&place, what, hint);
    let index: Index = serde_json::from_slice(&index).map_err(|e| {
        wrong(
            format!("the index cannot be read: {}", shown(&e.to_string())),
            "an index is a JSON object with `weight_map`, tensor names to file names: download or copy it again",
        )
    })?;
    let names: BTreeSet<&str> = index.weight_map.values().map(String::as_str).collect();
    if names.is_empty() {
        return Err(wrong("`weight_map` is empty".into(), "download or copy the index again"));
    }
    if let Some(name) = names.iter().find(|name| !is_plain(name)) {
        return Err(wrong(
            format!("the shard `{}` is not in this folder", shown(name)),
            "an index may only name files beside it; do not use a model that reaches out of its folder",
        ));
    }
    let mut shards = Vec::new();
    for name in &names {
        shards.push(shard(files, name)?.ok_or_else(|| {
            let have = files.names();
            let absent = names.iter().filter(|n| !have.iter().any(|h| h == *n)).count();
            wrong(
                format!("the shard `{}` is not there ({absent} of {} are missing)", shown(name), names.len()),
                "the download is incomplete: download the model again",
            )
        })?);
    }
    check(&index, &shards, &wrong)?;
    Ok(shards)
}

/// Every tensor once, and where the index says.
fn check(index: &Index, shards: &[Shard], wrong: &impl Fn(String, &str) -> Error) -> Result<()> {
    let hint = "index and shards are of different models or versions: download the model again into an empty folder";
    let mut homes: BTreeMap<&str, &str> = BTreeMap::new();
    for shard in shards {
        for tensor in shard.header.tensors.keys() {
            if let Some(other) = homes.insert(tensor, &shard.name) {
                let what =
                    format!("tensor `{}` is in two shards, `{other}` and `{}`", shown(tensor), shown(&shard.name));
                return Err(wrong(what, hint));
            }
        }
    }
    for (tensor, named) in &index.weight_map {
        let what = match homes.get(tensor.as_str()) {
            Some(home) if home == named => continue,
            Some(home) => {
                format!("the index places tensor `{}` in `{}`, and it is in `{home}`", shown(tensor), shown(named))
            }
            None => {
                format!("the index places tensor `{}` in `{}`, which does not have it", shown(tensor), shown(named))
            }
        };
        return Err(wrong(what, hint));
    }
    Ok(())
}

fn shard(files: &Files, name: &str) -> Result<Option<Shard>> {
    let Some(bytes) = files.map(name)? else { return Ok(None) };
    let header = decode(&bytes, bytes.length(), &files.place(name))?;
    Ok(Some(Shard { name: name.into(), bytes, header }))
}

fn no_weights(files: &Files) -> Error {
    let names = files.names();
    let found = |suffix: &str| names.iter().find(|n| n.ends_with(suffix));
    let hint = if let Some(shard) = found(".safetensors") {
        format!(
            "`{}` alone does not say what belongs to the model: add the index, or name a single file `{WEIGHTS}`",
            shown(shard)
        )
    } else if let Some(other) = found(".bin").or(found(".pth")).or(found(".pt")).or(found(".gguf")) {
        format!("`{}` is of another format: only safetensors are read, so convert it first", shown(other))
    } else {
        "the download is incomplete: download the model again".into()
    };
    Error::checkpoint(files.location(), format!("there is neither `{WEIGHTS}` nor `{INDEX}`"), hint)
}
