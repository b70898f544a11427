//! A model on disk or in the binary, opened by its headers; tensors are read one at a time.

use std::path::Path;

use candle_core::{DType, Tensor};
use safetensors::Dtype;
use serde_json::{Map, Value};

use super::CONFIG;
use super::builtin::BUILTINS;
use super::device::device;
use super::files::Files;
use super::index::{Shard, shards};
use super::location::Location;
use super::numbers::{Numbers, place_in};
use super::words::{nearest, shown};
use crate::error::{Error, Result};

/// Largest `config.json` that is read.
const MAX_CONFIG: u64 = 1 << 20;

/// What to do about numbers that are not finite.
const NOT_FINITE: &str = "the file is damaged, or was saved by a training that had diverged: download or copy it again, or \
                          give an earlier checkpoint";

/// What a header says of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Size in the file.
    pub bytes: usize,
    /// Name of the file that holds it.
    pub file: String,
}

/// A model in the Hugging Face layout. Opening reads `config.json` and headers only.
pub struct Checkpoint {
    files: Files,
    config: Map<String, Value>,
    shards: Vec<Shard>,
    tensors: Vec<TensorInfo>,
    /// For each of `tensors`: its shard, first byte, and the byte after the last.
    places: Vec<(usize, usize, usize)>,
}

impl Checkpoint {
    /// Opens the folder or builtin at `location` and checks every header against its file and the index.
    pub fn open(location: &Location) -> Result<Self> {
        if let Location::Builtin(text) = location
            && !text.is_model()
        {
            let models = BUILTINS.iter().filter(|b| b.is_model()).map(|b| format!("`builtin:{}`", b.name));
            let hint = format!("models that are built in: {}", models.collect::<Vec<_>>().join(", "));
            return Err(Error::file(location.label(), "this is a text, not a model", hint));
        }
        Checkpoint::of(Files::open(location)?)
    }

    /// The model that these files are.
    pub fn of(files: Files) -> Result<Self> {
        let config = config(&files)?;
        let shards = shards(&files)?;
        let mut found = Vec::new();
        for (i, shard) in shards.iter().enumerate() {
            for (name, place) in &shard.header.tensors {
                let info = TensorInfo {
                    name: name.clone(),
                    dtype: place.dtype,
                    shape: place.shape.clone(),
                    bytes: place.end - place.start,
                    file: shard.name.clone(),
                };
                found.push((info, (i, place.start, place.end)));
            }
        }
        found.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        let (tensors, places) = found.into_iter().unzip();
        Ok(Checkpoint { files, config, shards, tensors, places })
    }

    /// `config.json`, in its own order.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// The other files of the model.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// The folder, or `builtin:NAME`; for messages.
    pub fn path(&self) -> &Path {
        self.files.location()
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.position(name).map(|at| &self.tensors[at])
    }

    /// Bytes of all tensors in the files.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes as u64).sum()
    }

    /// Copies one tensor to the CPU as `dtype`. The file may have it as f32, f16 or bf16; a number in it that is not finite
    /// is an error.
    pub fn tensor(&self, name: &str, dtype: DType) -> Result<Tensor> {
        let at = self.position(name).ok_or_else(|| self.missing(name, |_| true))?;
        let info = &self.tensors[at];
        let numbers = Numbers { bytes: self.bytes(at)?, dtype: self.dtype(at)? };
        if let Some((index, value)) = numbers.first_not_finite() {
            let place = place_in(&info.shape, index);
            let what =
                format!("tensor `{}` holds {value} at {place:?}: not all of its numbers are finite", shown(name));
            return Err(Error::checkpoint(self.files.place(&info.file), what, NOT_FINITE));
        }
        Ok(Tensor::from_raw_buffer(numbers.bytes, numbers.dtype, &info.shape, &device())?.to_dtype(dtype)?)
    }

    /// The bytes of one of [`Checkpoint::tensors`], as its file has them.
    pub(super) fn bytes(&self, at: usize) -> Result<&[u8]> {
        self.bytes_here(at).ok_or_else(|| {
            let what = "only the headers of this model were fetched, not its weights";
            let place = self.files.place(&self.tensors[at].file);
            Error::checkpoint(place, what, "`hub::model` downloads it and gives its folder")
        })
    }

    /// [`Checkpoint::bytes`], or `None` where only the header of the file is here.
    fn bytes_here(&self, at: usize) -> Option<&[u8]> {
        let (shard, start, end) = self.places[at];
        self.shards[shard].bytes.get(start..end)
    }

    /// The number format of a tensor, if it is one that is read.
    fn dtype(&self, at: usize) -> Result<DType> {
        let info = &self.tensors[at];
        stored(info.dtype).ok_or_else(|| {
            Error::checkpoint(
                self.files.place(&info.file),
                format!("tensor `{}` is stored as {:?}; f32, f16 and bf16 are read", shown(&info.name), info.dtype),
                "give the unquantised checkpoint",
            )
        })
    }

    /// The first place at which two tensors of one shape hold different numbers, and these; `None` where they hold the
    /// same, or where their numbers are not here. At most the first `most` elements are compared.
    pub(crate) fn first_difference(&self, names: [&str; 2], most: usize) -> Result<Option<(Vec<usize>, [f32; 2])>> {
        let [Some(a), Some(b)] = names.map(|name| self.position(name)) else { return Ok(None) };
        let (Some(x), Some(y)) = (self.bytes_here(a), self.bytes_here(b)) else { return Ok(None) };
        let (x, y) = (Numbers { bytes: x, dtype: self.dtype(a)? }, Numbers { bytes: y, dtype: self.dtype(b)? });
        let found = x.beginning(most).first_difference(y.beginning(most));
        Ok(found.map(|(index, values)| (place_in(&self.tensors[a].shape, index), values)))
    }

    /// As [`Checkpoint::tensor`], and any other shape than `shape` is an error.
    pub fn tensor_of(&self, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        match self.info(name) {
            Some(info) if info.shape != shape => Err(self.misshapen(info, shape)),
            _ => self.tensor(name, dtype),
        }
    }

    /// The error for a tensor that is not there, with the nearest of the names that `could` be meant.
    pub(crate) fn missing(&self, name: &str, could: impl Fn(&str) -> bool) -> Error {
        let near = nearest(name, self.tensors.iter().map(|t| t.name.as_str()).filter(|t| could(t)));
        let hint = match near {
            Some(near) => format!("the nearest is `{near}`; `config.json` and weights may be of different models"),
            None => "`config.json` and weights may be of different models: download the model again".into(),
        };
        Error::checkpoint(self.path(), format!("there is no tensor `{}`", shown(name)), hint)
    }

    /// The error for a tensor whose shape is not the expected one.
    pub(crate) fn misshapen(&self, info: &TensorInfo, shape: &[usize]) -> Error {
        Error::checkpoint(
            self.files.place(&info.file),
            format!(
                "tensor `{}` has the shape {:?}, and `config.json` asks for {shape:?}",
                shown(&info.name),
                info.shape
            ),
            "`config.json` and weights are of different models: download the model again",
        )
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).ok()
    }
}

/// The types of weights that are read.
fn stored(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}

fn config(files: &Files) -> Result<Map<String, Value>> {
    let place = files.place(CONFIG);
    let Some(bytes) = files.read_at_most(CONFIG, MAX_CONFIG)? else {
        let hint = match files.has_folder("snapshots") {
            true => "this is a folder of the Hub's cache: give the folder of one revision under its `snapshots`",
            false => "a model is a folder in the Hugging Face layout: `config.json`, `tokenizer.json` and safetensors",
        };
        return Err(Error::config(place, "there is no such file", hint));
    };
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(config)) => Ok(config),
        Ok(_) => Err(Error::config(place, "this is not a JSON object", "download or copy the file again")),
        Err(e) => Err(Error::config(
            place,
            format!("this is not JSON: {}", shown(&e.to_string())),
            "download or copy the file again",
        )),
    }
}
