//! Small tensor maps in one file: optimiser state, adapters, statistics.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor};
use safetensors::Dtype;

use super::atomic::Partial;
use super::device::device;
use super::digest::TensorsDigest;
use super::files::map;
use super::header::{decode, encode};
use super::words::shown;
use super::writer::raw;
use crate::error::{Error, Result};

/// Writes `tensors`, each in its own type, with `metadata` into one safetensors file, at once.
pub fn save_tensors(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let declared: Vec<(String, Dtype, Vec<usize>)> =
        tensors.iter().map(|(name, t)| (name.clone(), t.dtype().into(), t.dims().to_vec())).collect();
    let layout = encode(&declared, metadata)?;
    let mut partial = Partial::create(path)?;
    partial.write(&layout.header)?;
    for (tensor, start) in tensors.values().zip(layout.starts) {
        partial.write_at(start, &raw(tensor, tensor.dtype())?)?;
    }
    partial.place()
}

/// SHA-256 of what [`save_tensors`] writes: names, types, shapes, values and metadata.
pub fn tensors_digest(tensors: &BTreeMap<String, Tensor>, metadata: &BTreeMap<String, String>) -> Result<String> {
    let described = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.dtype().into(), tensor.dims()));
    let mut digest = TensorsDigest::new(metadata, &described.collect::<Vec<_>>())?;
    for tensor in tensors.values() {
        digest.add(&raw(tensor, tensor.dtype())?, &mut |_| Ok(()))?;
    }
    Ok(digest.finish())
}

/// Reads what [`save_tensors`] wrote, to the CPU, in the types of the file.
pub fn load_tensors(path: &Path) -> Result<(BTreeMap<String, Tensor>, BTreeMap<String, String>)> {
    let bytes = map(path)?.ok_or_else(|| {
        Error::file(path, "there is no such file", "check the path; if a run wrote it, start that run again")
    })?;
    let header = decode(&bytes, bytes.length(), path)?;
    let mut tensors = BTreeMap::new();
    for (name, place) in header.tensors {
        let dtype = loadable(place.dtype).ok_or_else(|| {
            Error::checkpoint(
                path,
                format!("tensor `{}` is stored as {:?}, which is not read", shown(&name), place.dtype),
                "this file was not written by subquad: give the one that was",
            )
        })?;
        let tensor = Tensor::from_raw_buffer(&bytes[place.start..place.end], dtype, &place.shape, &device())?;
        tensors.insert(name, tensor);
    }
    Ok((tensors, header.metadata))
}

/// The elements of a tensor, row by row, on the host.
pub fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// Weights and moments, counters and token ids.
fn loadable(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F64 => Some(DType::F64),
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::I64 => Some(DType::I64),
        Dtype::U32 => Some(DType::U32),
        Dtype::U8 => Some(DType::U8),
        _ => None,
    }
}
