//! Which files of a repository are needed.

use std::collections::BTreeSet;

use serde_json::Value;

use super::entry::{Entry, Kind};
use super::explain::prefix;
use super::listing::Listing;
use crate::checkpoint::{CONFIG, HubId, INDEX, TEXTS, WEIGHTS};
use crate::{Error, Result};

/// Files beside the weights, which are taken where they are there.
const SMALL: [&str; 11] = [
    CONFIG,
    "README.md",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];
/// What the names of licences start with; they go with the model wherever it goes.
const LEGAL: [&str; 4] = ["LICENSE", "LICENCE", "NOTICE", "COPYING"];
/// Names that a message lists at most.
const MAX_NAMES: usize = 12;

/// The files of a model that are read whole by everyone: all but the weights, and the index of these.
pub(super) fn small(listing: &Listing) -> Vec<&Entry> {
    let legal = |name: &str| LEGAL.iter().any(|legal| name.to_ascii_uppercase().starts_with(legal));
    let index = |name: &str| name == INDEX && listing.find(WEIGHTS).is_none();
    listing.top().filter(|e| SMALL.contains(&e.path.as_str()) || legal(&e.path) || index(&e.path)).collect()
}

/// The files of weights: the single one, or the shards that `index` names.
pub(super) fn weights<'a>(id: &HubId, listing: &'a Listing, index: Option<&[u8]>) -> Result<Vec<&'a Entry>> {
    if let Some(single) = listing.find(WEIGHTS) {
        return Ok(vec![single]);
    }
    let Some(index) = index else {
        let others =
            listing.top().filter(|e| [".bin", ".pth", ".gguf", ".safetensors"].iter().any(|s| e.path.ends_with(s)));
        let others = names(others);
        let what = match others.is_empty() {
            true => "this repository has no weights".to_string(),
            false => format!("this repository has no weights that are read, but: {others}"),
        };
        let hint = format!("a model has `{WEIGHTS}`, or shards and `{INDEX}`: give a repository that has them");
        return Err(Error::hub(id, what, hint));
    };
    let shards = shards(index).ok_or_else(|| {
        Error::hub(id, format!("`{INDEX}` cannot be read"), "the repository is damaged: give another revision")
    })?;
    let find = |name: &String| {
        listing.find(name).ok_or_else(|| {
            let what = format!("`{INDEX}` names `{}`, which is not there", crate::checkpoint::shown(name));
            Error::hub(id, what, "the repository is not complete: give another revision")
        })
    };
    shards.iter().map(find).collect()
}

/// The files that an index names.
pub(super) fn shards(index: &[u8]) -> Option<BTreeSet<String>> {
    let index: Value = serde_json::from_slice(index).ok()?;
    let files = index.get("weight_map")?.as_object()?.values();
    files.map(|file| file.as_str().map(String::from)).collect()
}

/// The texts that `id` means: the file or folder that it names, or else the only text of the repository.
pub(super) fn texts<'a>(id: &HubId, listing: &'a Listing, endpoint: &str) -> Result<Vec<&'a Entry>> {
    let is_text =
        |path: &str| path.rsplit_once('.').is_some_and(|(_, e)| TEXTS.contains(&e.to_ascii_lowercase().as_str()));
    let inside = id.inside.as_deref().unwrap_or_default();
    if let Some(file) = listing.find(inside) {
        return Ok(vec![file]);
    }
    let direct = |e: &&Entry| {
        let rest = match inside {
            "" => Some(e.path.as_str()),
            inside => e.path.strip_prefix(inside).and_then(|rest| rest.strip_prefix('/')),
        };
        rest.is_some_and(|rest| !rest.contains('/') && rest != "README.md")
    };
    let found: Vec<&Entry> = listing.files.iter().filter(direct).filter(|e| is_text(&e.path)).collect();
    let page = format!("{endpoint}/{}{}", prefix(Kind::Dataset.word()), id.repository());
    let repository = HubId { inside: None, ..id.clone() };
    let all = |e: &&Entry| is_text(&e.path) && !e.path.ends_with("README.md");
    match found.len() {
        1 => Ok(found),
        2.. if id.inside.is_some() => Ok(found),
        2.. => {
            let what = format!("this dataset has several texts: {}", names(found.into_iter()));
            Err(Error::hub(
                id,
                what,
                format!("name one of them, as `{repository}/FILE`; the others may be for evaluation"),
            ))
        }
        _ => {
            let texts = names(listing.files.iter().filter(all));
            let (what, hint) = match texts.is_empty() {
                false => {
                    (format!("no text there; this dataset has: {texts}"), format!("name one, as `{repository}/FILE`"))
                }
                true => (
                    format!("this dataset has no text that is read, but: {}", names(listing.files.iter())),
                    format!(
                        ".txt and .jsonl files are read, parquet is not: convert it to JSON lines with a \"text\" each, or \
                         see {page} for another form"
                    ),
                ),
            };
            Err(Error::hub(id, what, hint))
        }
    }
}

/// Names for a message.
fn names<'a>(files: impl Iterator<Item = &'a Entry>) -> String {
    let all: Vec<String> = files.map(|entry| format!("`{}`", crate::checkpoint::shown(&entry.path))).collect();
    match all.len() {
        0..=MAX_NAMES => all.join(", "),
        n => format!("{} and {} more", all[..MAX_NAMES].join(", "), n - MAX_NAMES),
    }
}
