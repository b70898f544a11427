//! The header of a safetensors file: eight bytes of length, JSON, then the tensors' bytes without a gap.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo as Entry;
use serde::{Deserialize, Serialize};

use super::words::shown;
use crate::error::{Error, Result};

/// Bytes of the length before the header.
const PREFIX: usize = 8;
/// Longest header that is read or written: 25 MB, as the Hub allows; room for 200,000 tensors.
const MAX_LENGTH: usize = 25_000_000;
/// Most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 8;

const INCOMPLETE: &str = "the file is incomplete: download or copy it again";
const WRONG: &str = "the program that wrote this file wrote a wrong header, or the file is damaged: get it again";

/// What a file says of itself; [`decode`] has checked all of it.
pub(super) struct Header {
    pub metadata: BTreeMap<String, String>,
    pub tensors: BTreeMap<String, Place>,
}

/// Where one tensor lies.
pub(super) struct Place {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// First byte and the byte after the last, from the start of the file.
    pub start: usize,
    pub end: usize,
}

/// A header ready to be written, and where the tensors go.
pub(super) struct Layout {
    /// Length and JSON, padded so that the data starts at a multiple of eight.
    pub header: Vec<u8>,
    /// First byte of each tensor from the start of the file, in the order of the declaration.
    pub starts: Vec<u64>,
    /// Length of the whole file.
    pub length: u64,
}

/// The JSON as it stands in the file.
#[derive(Serialize, Deserialize)]
#[serde(expecting = "a JSON object of tensors")]
struct Json {
    #[serde(rename = "__metadata__", default, skip_serializing_if = "Option::is_none")]
    metadata: Option<BTreeMap<String, String>>,
    #[serde(flatten)]
    tensors: BTreeMap<String, Entry>,
}

/// Reads and checks the header of the file of `whole` bytes whose contents start with `bytes`. `path` is for messages.
///
/// The validation of the `safetensors` crate is not used: it adds the header's numbers without a check for overflow, and
/// does not say which tensor is wrong.
pub(super) fn decode(bytes: &[u8], whole: u64, path: &Path) -> Result<Header> {
    let wrong = |what: String, hint: &str| Error::checkpoint(path, what, hint);
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(wrong(
            "this is a Git LFS pointer, not the weights".into(),
            "fetch the weights with `git lfs pull`, or download the model with `hf download`",
        ));
    }
    let Some((length, rest)) = bytes.split_first_chunk::<PREFIX>() else {
        return Err(wrong(format!("{} bytes are too few for a safetensors file", bytes.len()), INCOMPLETE));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_LENGTH as u64 {
        return Err(wrong(
            format!("this is no safetensors file: its header would have {length} bytes, at most {MAX_LENGTH} are read"),
            "only safetensors files are read; convert other formats first, or get the file again",
        ));
    }
    let length = length as usize;
    let Some((json, _)) = rest.split_at_checked(length) else {
        return Err(wrong(
            format!("truncated: the header has {length} bytes, the file only {} after the length", rest.len()),
            INCOMPLETE,
        ));
    };
    let json: Json = serde_json::from_slice(json)
        .map_err(|e| wrong(format!("the header cannot be read: {}", shown(&e.to_string())), WRONG))?;
    let first = PREFIX + length;
    let data = usize::try_from(whole).unwrap_or(usize::MAX).saturating_sub(first);
    check(&json.tensors, data, &wrong)?;

    let tensors = json.tensors.into_iter().map(|(name, entry)| {
        let (start, end) = entry.data_offsets;
        (name, Place { dtype: entry.dtype, shape: entry.shape, start: first + start, end: first + end })
    });
    Ok(Header { tensors: tensors.collect(), metadata: json.metadata.unwrap_or_default() })
}

/// Holds every entry to its own shape, and all of them to the data of `available` bytes: no gap, no overlap, no excess.
fn check(tensors: &BTreeMap<String, Entry>, available: usize, wrong: &impl Fn(String, &str) -> Error) -> Result<()> {
    for (name, entry) in tensors {
        let (start, end) = entry.data_offsets;
        let name = shown(name);
        let Some(size) = size(entry.dtype, &entry.shape) else {
            return Err(wrong(format!("tensor `{name}` has an impossible shape, {}", extents(&entry.shape)), WRONG));
        };
        if end.checked_sub(start) != Some(size) {
            let what = format!(
                "tensor `{name}`, {:?} {}, needs {size} bytes, and the header gives it bytes {start} to {end}",
                entry.dtype,
                extents(&entry.shape)
            );
            return Err(wrong(what, WRONG));
        }
    }
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by_key(|(_, entry)| entry.data_offsets);
    if let Some((name, entry)) = order.last()
        && entry.data_offsets.1 > available
    {
        let what = format!(
            "truncated: tensor `{}` ends at byte {} of the data, of which the file has {available}",
            shown(name),
            entry.data_offsets.1
        );
        return Err(wrong(what, INCOMPLETE));
    }
    let mut reached = 0;
    for (name, entry) in order {
        let (start, end) = entry.data_offsets;
        if start != reached {
            let fault = if start < reached { "overlaps the tensor before it" } else { "leaves a gap before it" };
            let what = format!(
                "tensor `{}` starts at byte {start} of the data and {fault}, which ends at {reached}",
                shown(name)
            );
            return Err(wrong(what, WRONG));
        }
        reached = end;
    }
    match available - reached {
        0 => Ok(()),
        excess => Err(wrong(format!("{excess} bytes after the last tensor belong to none"), WRONG)),
    }
}

/// Bytes of a tensor; `None` when they are no whole number or too many to count.
fn size(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    if shape.len() > MAX_DIMENSIONS {
        return None;
    }
    // Zeros count as ones at first: `[0, 2^63, 2^63]` holds nothing, but its strides overflow.
    let bits = shape.iter().try_fold(dtype.bitsize(), |bits, &n| bits.checked_mul(n.max(1)))?;
    match shape.contains(&0) {
        true => Some(0),
        false => bits.is_multiple_of(8).then_some(bits / 8),
    }
}

/// A shape for messages, cut when it is long.
fn extents(shape: &[usize]) -> String {
    match shape.len() {
        0..=MAX_DIMENSIONS => format!("{shape:?}"),
        n => format!("[{}, …] of {n} dimensions", shape[0]),
    }
}

/// Lays out a file. Inside it, wide types come first, so that each tensor starts at a multiple of its own width, as
/// readers that map the file need; otherwise the order of the declaration holds.
pub(super) fn encode(tensors: &[(String, Dtype, Vec<usize>)], metadata: &BTreeMap<String, String>) -> Result<Layout> {
    let mut names = HashSet::new();
    if let Some((name, ..)) = tensors.iter().find(|(name, ..)| name == "__metadata__" || !names.insert(name)) {
        return Err(Error::Internal(format!("tensor `{name}` is declared twice or has a reserved name")));
    }
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(tensors[i].1.bitsize()));

    let mut entries = serde_json::Map::new();
    if !metadata.is_empty() {
        entries.insert("__metadata__".into(), serde_json::json!(metadata));
    }
    let mut starts = vec![0; tensors.len()];
    let mut reached = 0usize;
    for i in order {
        let (name, dtype, shape) = &tensors[i];
        let overflow = || Error::Internal(format!("tensor `{name}` of shape {} is too large", extents(shape)));
        let end = size(*dtype, shape).and_then(|size| reached.checked_add(size)).ok_or_else(overflow)?;
        let entry = Entry { dtype: *dtype, shape: shape.clone(), data_offsets: (reached, end) };
        entries.insert(name.clone(), serde_json::json!(entry));
        starts[i] = reached as u64;
        reached = end;
    }
    let mut json = serde_json::Value::Object(entries).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(PREFIX), b' ');
    if json.len() > MAX_LENGTH {
        return Err(Error::Internal(format!("a header of {} bytes is longer than readers accept", json.len())));
    }
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    let first = header.len() as u64;
    starts.iter_mut().for_each(|start| *start += first);
    Ok(Layout { header, starts, length: first + reached as u64 })
}
