//! A converted model as a folder in the Hugging Face layout: merged weights, config.json, tokenizer, recipe and card.
//!
//! Everything is written into a hidden folder beside the target, opened again there and compared with the model in
//! memory; only then it gets its name. Whatever stops an export, what stood at the target before still stands there.

mod adapter;
mod card;
mod config;
mod copy;
mod files;
mod fla;
mod fla_layers;
mod forms;
mod names;
mod parity;
mod peft;
mod place;
mod python;
mod range;
mod read_adapter;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use sha2::{Digest, Sha256};

use crate::checkpoint::{CONFIG, Checkpoint, Writer, hex, write_atomically};
use crate::evaluate::report::Report;
use crate::model::{Model, Student};
use crate::progress::{Progress, Unit, check_interrupt};
use crate::{Error, Result};
use files::Copies;
use place::Place;

pub use copy::copy;
pub use files::{TOKENIZER, check_companions};
pub use fla::export_fla;
pub use forms::{NO_GGUF, without_fla};
pub use names::ADAPTER;
pub use parity::{Parity, TOLERANCE, compare};
pub use peft::Settings;
pub use place::clear_leftovers;
pub(crate) use place::{is_converted, leftovers};
pub use range::require_range;
pub use read_adapter::read_adapter;

/// How weights are stored.
#[derive(Debug, Clone, PartialEq)]
pub struct ExportOptions {
    /// Largest size of one file of weights, in bytes.
    pub shard_bytes: u64,
    /// f32, bf16 or f16 for the teacher's tensors; `None`: each as in the teacher. A mixer's own tensors are always f32.
    pub dtype: Option<DType>,
    /// What an adapter names as the model below it; `None`: the folder's own name.
    pub base: Option<String>,
}

/// One file of an exported folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub name: String,
    pub bytes: u64,
}

/// What an export wrote, and how it was found to compare.
#[derive(Debug, Clone, PartialEq)]
pub struct Exported {
    /// The folder, links resolved.
    pub folder: PathBuf,
    /// Bytes of all files.
    pub bytes: u64,
    /// All files, sorted by name.
    pub files: Vec<Written>,
    /// Files of a tokenizer that the teacher does not have.
    pub absent: Vec<&'static str>,
    /// Largest absolute difference between logits of the folder, opened again, and of the model in memory with its
    /// weights rounded to the types of the folder; at most [`TOLERANCE`].
    pub largest_difference: f32,
    /// Largest absolute difference that this rounding makes to logits; `None` when nothing is rounded.
    pub rounding: Option<f32>,
}

/// Writes `model` with the mixers of `student` to the folder `to`, and proves it by opening it again.
///
/// An adapter that the student has is written beside the rest, in [`ADAPTER`]; `teacher` is the checkpoint that it came
/// from; `reports` are shown on the card. An earlier export at `to` is replaced; a folder with anything else in it is
/// refused.
#[expect(clippy::too_many_arguments, reason = "each is one thing that goes into the folder")]
pub fn export(
    model: &Model,
    student: &Student,
    teacher: &Checkpoint,
    recipe_text: &str,
    options: &ExportOptions,
    reports: &[Report],
    to: &Path,
    progress: &mut dyn Progress,
) -> Result<Exported> {
    let tensors = tensors(model, student, teacher, options)?;
    let copies = Copies::of(teacher)?;
    let place = Place::prepare(to)?;
    let folder = place.folder();
    let write = |progress: &mut dyn Progress| {
        for (name, bytes) in &copies.files {
            check_interrupt()?;
            write_atomically(&folder.join(name), bytes)?;
        }
        let dtype = main_dtype(&tensors[..model.spec.tensors().len()]);
        let config = config::config(model, student, teacher, dtype)?;
        write_atomically(&folder.join(CONFIG), &config::text(&config)?)?;
        if !copies.contains(names::GENERATION) {
            let generation = config::generation(&model.spec, &config);
            write_atomically(&folder.join(names::GENERATION), &config::text(&generation)?)?;
        }
        for (name, text) in python::FILES {
            write_atomically(&folder.join(name), text.as_bytes())?;
        }
        write_atomically(&folder.join(files::RECIPE), recipe_text.as_bytes())?;
        let card = card::card(model, student, teacher, reports)?;
        write_atomically(&folder.join(names::CARD), card.as_bytes())?;
        let name = || to.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let base = options.base.clone().unwrap_or_else(name);
        adapter::write(&folder.join(ADAPTER), model, student, &base)?;
        write_weights(folder, &tensors, options.shard_bytes, progress)
    };
    write(progress).map_err(|error| under(error, folder, to))?;

    let parity = compare(folder, model, student, progress)?;
    let files = files::listing(folder)?;
    check_interrupt()?;
    Ok(Exported {
        folder: place.finish()?,
        bytes: files.iter().map(|f| f.bytes).sum(),
        files,
        absent: copies.absent,
        largest_difference: parity.largest_difference,
        rounding: parity.rounding,
    })
}

/// SHA-256 of what an export takes from the teacher's folder beside configuration and weights.
pub fn companions_digest(teacher: &Checkpoint) -> Result<String> {
    let mut hash = Sha256::new();
    let mut add = |name: &str, bytes: &[u8]| {
        for part in [name.as_bytes(), bytes] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    };
    for (name, bytes) in &Copies::of(teacher)?.files {
        add(name, bytes);
    }
    if let Some(license) = card::license(teacher)? {
        add(names::CARD, license.as_bytes());
    }
    Ok(hex(hash.finalize()))
}

/// Name and text of the files of code in every export.
pub(crate) fn code() -> &'static [(&'static str, &'static str)] {
    &python::FILES
}

/// What could not be written is known to people by the place that it was meant for.
fn under(error: Error, temporary: &Path, to: &Path) -> Error {
    match error {
        Error::Disk { needed, available, .. } => Error::Disk { path: to.into(), needed, available },
        Error::Io { path, action, source } => {
            let path = path.strip_prefix(temporary).map(|inside| to.join(inside)).unwrap_or(path);
            Error::Io { path, action, source }
        }
        other => other,
    }
}

/// A tensor as it is to be stored.
struct Stored {
    name: String,
    dtype: DType,
    tensor: Tensor,
}

impl Stored {
    fn bytes(&self) -> u64 {
        (self.tensor.elem_count() * self.dtype.size_in_bytes()) as u64
    }
}

/// The teacher's tensors in the order of a forward pass, then those of the mixers, layer by layer. All of them are finite
/// in the types that they are stored in.
fn tensors(model: &Model, student: &Student, teacher: &Checkpoint, options: &ExportOptions) -> Result<Vec<Stored>> {
    if let Some(other) = options.dtype.filter(|d| config::dtype_word(*d).is_none()) {
        return Err(Error::usage(
            format!("weights are not exported as {}", other.as_str()),
            "set `export.dtype` to \"f32\", \"bf16\" or \"f16\", or leave it out",
        ));
    }
    let mut all = Vec::new();
    for stored in model.spec.stored() {
        let dtype = match (options.dtype, teacher.info(&stored.name)) {
            (Some(dtype), _) => dtype,
            (None, Some(info)) => DType::try_from(info.dtype)?,
            (None, None) => return Err(teacher.missing(&stored.name, |_| true)),
        };
        all.push(Stored { tensor: model.stored(&stored)?, name: stored.name, dtype });
    }
    for (name, ..) in student.new_tensors() {
        let tensor = student.tensors.get(&name);
        let tensor = tensor.ok_or_else(|| Error::Internal(format!("the student has no `{name}`")))?;
        all.push(Stored { tensor: tensor.clone(), name, dtype: DType::F32 });
    }
    all.iter().try_for_each(|stored| range::require(&stored.name, &stored.tensor, stored.dtype))?;
    Ok(all)
}

/// The type of most bytes; config.json names one, and other programs take it for all of the teacher's tensors.
fn main_dtype(tensors: &[Stored]) -> DType {
    let mut bytes: BTreeMap<&str, (u64, DType)> = BTreeMap::new();
    for stored in tensors {
        bytes.entry(stored.dtype.as_str()).or_insert((0, stored.dtype)).0 += stored.bytes();
    }
    bytes.into_values().max_by_key(|(bytes, _)| *bytes).map_or(DType::F32, |(_, dtype)| dtype)
}

/// Writes the weights; the writer checks the space on the disk before.
fn write_weights(folder: &Path, tensors: &[Stored], shard_bytes: u64, progress: &mut dyn Progress) -> Result<()> {
    let declared = tensors.iter().map(|s| (s.name.clone(), s.dtype, s.tensor.dims().to_vec())).collect();
    let mut writer = Writer::create(folder, declared, shard_bytes)?;
    let total = tensors.iter().map(Stored::bytes).sum();
    progress.begin("export: weights", 0, total, Unit::Bytes);
    let mut done = 0;
    for stored in tensors {
        check_interrupt()?;
        writer.write(&stored.name, &stored.tensor)?;
        done += stored.bytes();
        progress.advance(done, "");
    }
    writer.finish()?;
    progress.end("");
    Ok(())
}
