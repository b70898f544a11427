//! Writing a checkpoint tensor by tensor: one shard is open at a time, and names appear when all is on disk.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, WithDType};
use safetensors::Dtype;
use serde_json::json;

use super::atomic::Partial;
use super::header::{Layout, encode};
use super::{INDEX, WEIGHTS};
use crate::error::{Error, Result};

/// Streamed writer of `model.safetensors`, or of shards with an index.
///
/// Names, types and shapes are declared first, so that shards and index are known; the tensors follow in that order, one
/// at a time. Until [`Writer::finish`] nothing has its final name, and dropping the writer removes what it wrote.
pub struct Writer {
    folder: PathBuf,
    /// The deepest folder that was there before.
    existing: PathBuf,
    shards: Vec<Shard>,
    declared: Vec<Declared>,
    next: usize,
    partials: Vec<Partial>,
    finished: bool,
}

struct Shard {
    name: String,
    layout: Layout,
}

struct Declared {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    shard: usize,
    /// Offset in the shard's file.
    start: u64,
    bytes: u64,
}

impl Writer {
    /// Declares the tensors of a checkpoint in `folder`, which is made if need be. Shards hold at most `shard_bytes` of
    /// weights, and at least one tensor. The space on the disk is checked before anything is written.
    pub fn create(folder: &Path, tensors: Vec<(String, DType, Vec<usize>)>, shard_bytes: u64) -> Result<Self> {
        if shard_bytes == 0 {
            return Err(Error::usage("shards of 0 bytes hold nothing", "set `export.shard` to a size such as \"5GB\""));
        }
        let tensors: Vec<(String, Dtype, Vec<usize>)> =
            tensors.into_iter().map(|(name, dtype, shape)| (name, dtype.into(), shape)).collect();
        if tensors.is_empty() {
            return Err(Error::Internal("a checkpoint without tensors was declared".into()));
        }
        // Checks names and sizes of all of them together; its header is also the largest there can be.
        let whole = encode(&tensors, &BTreeMap::new())?;
        let existing = folder.ancestors().find(|p| p.exists()).unwrap_or(Path::new("."));
        require_space(existing, whole.length)?;
        let (shards, declared) = plan(tensors, shard_bytes)?;
        require_no_others(folder, &shards)?;

        let existing = existing.to_path_buf();
        let writer = Writer {
            folder: folder.into(),
            existing,
            shards,
            declared,
            next: 0,
            partials: Vec::new(),
            finished: false,
        };
        fs::create_dir_all(folder).map_err(Error::io(folder, "make the folder"))?;
        Ok(writer)
    }

    /// Writes the next declared tensor, converted to the declared type.
    pub fn write(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        let Some(declared) = self.declared.get(self.next).filter(|d| d.name == name) else {
            let expected = self.declared.get(self.next).map_or("nothing", |d| &d.name);
            return Err(Error::Internal(format!("the writer expects {expected}, not `{name}`")));
        };
        if tensor.dims() != declared.shape {
            let what = format!("`{name}` was declared as {:?} and is {:?}", declared.shape, tensor.dims());
            return Err(Error::Internal(what));
        }
        if declared.shard == self.partials.len() {
            self.partials.last_mut().map_or(Ok(()), Partial::close)?;
            let shard = &self.shards[declared.shard];
            let mut partial = Partial::create(&self.folder.join(&shard.name))?;
            partial.write(&shard.layout.header)?;
            self.partials.push(partial);
        }
        self.partials[declared.shard].write_at(declared.start, &raw(tensor, declared.dtype)?)?;
        self.next += 1;
        Ok(())
    }

    /// Brings everything to the disk and gives the files their names, the index last.
    pub fn finish(mut self) -> Result<()> {
        if let Some(declared) = self.declared.get(self.next) {
            return Err(Error::Internal(format!("the writer still expects `{}`", declared.name)));
        }
        self.partials.last_mut().map_or(Ok(()), Partial::close)?;
        if self.shards.len() > 1 {
            let mut partial = Partial::create(&self.folder.join(INDEX))?;
            partial.write(&self.index()?)?;
            partial.close()?;
            self.partials.push(partial);
        }
        let mut placed = Vec::new();
        for partial in std::mem::take(&mut self.partials) {
            let target = partial.target().to_path_buf();
            if let Err(e) = partial.place() {
                // Some shards without the others are of no use to anyone.
                placed.iter().for_each(|path| drop(fs::remove_file(path)));
                return Err(e);
            }
            placed.push(target);
        }
        self.finished = true;
        Ok(())
    }

    fn index(&self) -> Result<Vec<u8>> {
        let total: u64 = self.declared.iter().map(|d| d.bytes).sum();
        let map: BTreeMap<&str, &str> =
            self.declared.iter().map(|d| (d.name.as_str(), self.shards[d.shard].name.as_str())).collect();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        let text = serde_json::to_string_pretty(&index).map_err(|e| Error::Internal(e.to_string()))?;
        Ok((text + "\n").into_bytes())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.finished {
            self.partials.clear();
            // Removes only what is empty, so what others put there stays.
            for made in self.folder.ancestors().take_while(|p| *p != self.existing && !p.as_os_str().is_empty()) {
                if fs::remove_dir(made).is_err() {
                    break;
                }
            }
        }
    }
}

/// Fills shards in the order of the declaration and lays each out.
fn plan(tensors: Vec<(String, Dtype, Vec<usize>)>, shard_bytes: u64) -> Result<(Vec<Shard>, Vec<Declared>)> {
    let mut groups: Vec<Vec<(String, Dtype, Vec<usize>)>> = vec![Vec::new()];
    let mut filled = 0u64;
    for tensor in tensors {
        let bytes = bytes(&tensor);
        if filled > 0 && filled + bytes > shard_bytes {
            groups.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        groups.last_mut().expect("starts with one").push(tensor);
    }
    let count = groups.len();
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    let (mut shards, mut declared) = (Vec::new(), Vec::new());
    for (shard, group) in groups.into_iter().enumerate() {
        let name = match count {
            1 => WEIGHTS.to_string(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", shard + 1),
        };
        let layout = encode(&group, &metadata)?;
        for (tensor, &start) in group.into_iter().zip(&layout.starts) {
            let bytes = bytes(&tensor);
            let (name, dtype, shape) = tensor;
            declared.push(Declared { name, dtype: DType::try_from(dtype)?, shape, shard, start, bytes });
        }
        shards.push(Shard { name, layout });
    }
    Ok((shards, declared))
}

/// Size of a declared tensor; the declaration as a whole was checked against overflow.
fn bytes((_, dtype, shape): &(String, Dtype, Vec<usize>)) -> u64 {
    (shape.iter().product::<usize>() * dtype.bitsize() / 8) as u64
}

fn require_space(folder: &Path, needed: u64) -> Result<()> {
    let available = fs4::available_space(folder).map_err(Error::io(folder, "ask for its free space"))?;
    match available >= needed {
        true => Ok(()),
        false => Err(Error::Disk { path: folder.into(), needed, available }),
    }
}

/// Weights of another checkpoint in the same folder would be mixed with ours, or even be read in their place.
fn require_no_others(folder: &Path, shards: &[Shard]) -> Result<()> {
    let ours = |name: &str| shards.iter().any(|s| s.name == name) || (name == INDEX && shards.len() > 1);
    let weights =
        |name: &str| name == WEIGHTS || name == INDEX || (name.starts_with("model-") && name.ends_with(".safetensors"));
    let Ok(entries) = folder.read_dir() else { return Ok(()) };
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    match names.filter(|n| weights(n) && !ours(n)).min() {
        None => Ok(()),
        Some(other) => Err(Error::file(
            folder.join(other),
            "weights of another checkpoint are in this folder",
            "remove them, or write to another folder",
        )),
    }
}

/// The bytes of a tensor as `dtype`, little-endian, row-major.
pub(super) fn raw(tensor: &Tensor, dtype: DType) -> Result<Vec<u8>> {
    fn collect<T: WithDType, const N: usize>(tensor: &Tensor, bytes: impl Fn(T) -> [u8; N]) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(tensor.elem_count() * N);
        tensor.to_vec1::<T>()?.into_iter().for_each(|x| out.extend_from_slice(&bytes(x)));
        Ok(out)
    }
    let tensor = tensor.detach().to_device(&Device::Cpu)?.to_dtype(dtype)?.flatten_all()?;
    match dtype {
        DType::F64 => collect(&tensor, f64::to_le_bytes),
        DType::F32 => collect(&tensor, f32::to_le_bytes),
        DType::F16 => collect(&tensor, half::f16::to_le_bytes),
        DType::BF16 => collect(&tensor, half::bf16::to_le_bytes),
        DType::I64 => collect(&tensor, i64::to_le_bytes),
        DType::U32 => collect(&tensor, u32::to_le_bytes),
        DType::U8 => Ok(tensor.to_vec1::<u8>()?),
        other => Err(Error::Internal(format!("tensors of type {other:?} are not written"))),
    }
}
