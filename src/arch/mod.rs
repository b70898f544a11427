//! Families of teachers: what `config.json` means, as plain data. One file per family, one line in [`FAMILIES`].
//!
//! Whatever a model does that the decoder does not do is refused here, with the reason: a model that loads and computes
//! something else is worse than one that does not load.

mod check;
mod common;
mod falcon;
mod fields;
mod gemma;
mod gemma2;
mod gemma3;
mod gpt2;
mod gpt_neox;
mod granite;
mod llama;
mod mistral;
mod mixtral;
mod names;
mod olmo2;
mod olmoe;
mod opt;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod ropes;
mod shared;
mod smollm3;
mod spec;
mod stablelm;
mod starcoder2;

use std::path::Path;

use serde_json::{Map, Value};

use crate::checkpoint::{CONFIG, Checkpoint, nearest, shown};
use crate::error::{Error, Result};
use fields::Fields;

pub use names::{Arrangement, Names, NormAt, Part, Stored, Target};
pub use spec::{
    Activation, Block, Experts, Layout, Learned, Multipliers, Norm, NormKind, QkNorm, Rope, Scaling, Spec, StoredTensor,
};

/// `model_type` of the models that this crate writes.
pub const MODEL_TYPE: &str = "subquad";
/// The newest form of the `subquad` block of `config.json` that is read.
pub const FORMAT: u64 = 1;
/// Keys that an exported config.json uses for its own layers. What the teacher says under them is kept in the object
/// [`OF_TEACHER`] beside the block.
pub const REUSED: [&str; 4] = ["layer_types", "sliding_window", "use_sliding_window", "max_window_layers"];
/// The object of an exported config.json that holds the teacher's own values of [`REUSED`].
pub const OF_TEACHER: &str = "subquad_teacher";
/// The object of an exported config.json that holds the decoder as data, in the words of [`Spec`], for programs that know
/// no families. The teacher's own keys say the same, and only what they may have lost is read here.
pub const DECODER: &str = "subquad_decoder";

/// The key of config.json that says whether the head shares the embedding's weights.
pub const TIED: &str = "tie_word_embeddings";

/// A family of teachers.
pub struct Family {
    pub name: &'static str,
    /// What people know its models as.
    pub models: &'static str,
    /// The `model_type`s of `config.json` that it reads.
    pub model_types: &'static [&'static str],
    /// What of it is read and kept, in a few words each.
    pub supported: &'static [&'static str],
    /// What is refused, with the reason where it is not plain.
    pub refused: &'static [&'static str],
    /// Reads `config.json`.
    spec: fn(&Fields) -> Result<Spec>,
}

/// All families.
pub static FAMILIES: &[Family] = &[
    llama::FAMILY,
    mistral::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    gemma::FAMILY,
    gemma2::FAMILY,
    gemma3::FAMILY,
    phi3::FAMILY,
    olmo2::FAMILY,
    smollm3::FAMILY,
    granite::FAMILY,
    starcoder2::FAMILY,
    stablelm::FAMILY,
    gpt2::FAMILY,
    opt::FAMILY,
    gpt_neox::FAMILY,
    falcon::FAMILY,
    mixtral::FAMILY,
    qwen3_moe::FAMILY,
    olmoe::FAMILY,
];

impl Spec {
    /// The architecture of a teacher or of a converted model, held to the names, shapes and types in the headers.
    pub fn of(checkpoint: &Checkpoint) -> Result<Spec> {
        let path = checkpoint.files().place(CONFIG);
        let block = conversion(checkpoint.config(), &path)?;
        let mut spec = match block {
            None => (family(checkpoint.config(), "model_type", &path)?.spec)(&Fields {
                map: checkpoint.config(),
                path: &path,
            })?,
            Some(block) => {
                let family = family(block, "teacher_model_type", &path)?;
                let config = of_teacher(checkpoint.config());
                (family.spec)(&Fields { map: &config, path: &path })?
            }
        };
        // Files that were saved without a head lack what all other names begin with.
        let base = spec.names.base;
        spec.bare = !checkpoint.tensors().iter().any(|tensor| tensor.name.starts_with(base));
        add_generation_ends(&mut spec, checkpoint)?;
        check::check(&spec, checkpoint, block.is_some())?;
        shared::glance(&spec, checkpoint)?;
        Ok(spec)
    }
}

/// The config.json of a converted model as its teacher's family reads it.
///
/// transformers 4 takes a tied head for its own default and leaves it out of the files that it saves, where the family's
/// default may be another; [`DECODER`] still says it.
fn of_teacher(config: &Map<String, Value>) -> Map<String, Value> {
    let mut config = config.clone();
    config.retain(|key, _| !REUSED.contains(&key.as_str()));
    if let Some(Value::Object(own)) = config.remove(OF_TEACHER) {
        config.extend(own.into_iter().filter(|(key, _)| REUSED.contains(&key.as_str())));
    }
    let tied = config.get(DECODER).and_then(|decoder| decoder.get("tied")).cloned();
    if let Some(tied) = tied.filter(|_| config.get(TIED).is_none_or(Value::is_null)) {
        config.insert(TIED.into(), tied);
    }
    config
}

/// The `subquad` block of a converted model, or `None` for any other model.
pub fn conversion<'a>(config: &'a Map<String, Value>, path: &Path) -> Result<Option<&'a Map<String, Value>>> {
    if config.get("model_type").and_then(Value::as_str) != Some(MODEL_TYPE) {
        return Ok(None);
    }
    let again = "copy the file again from where the model was exported";
    let Some(block) = config.get(MODEL_TYPE).and_then(Value::as_object) else {
        return Err(Error::config(path, "`model_type` is \"subquad\", and the block `subquad` is missing", again));
    };
    match block.get("format").and_then(Value::as_u64) {
        Some(FORMAT) => Ok(Some(block)),
        Some(newer) if newer > FORMAT => Err(Error::config(
            path,
            format!("this model was written by a newer subquad (format {newer}; this one reads {FORMAT})"),
            "update subquad",
        )),
        _ => Err(Error::config(path, "`subquad.format` is missing or impossible", again)),
    }
}

/// The family that the text under `key` names.
fn family(object: &Map<String, Value>, key: &str, path: &Path) -> Result<&'static Family> {
    let known = || FAMILIES.iter().flat_map(|f| f.model_types.iter().copied());
    let Some(name) = object.get(key).and_then(Value::as_str) else {
        let list = known().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        return Err(Error::config(
            path,
            format!("`{key}` is missing or not a text"),
            format!("it names the architecture; known are {list}"),
        ));
    };
    FAMILIES.iter().find(|f| f.model_types.contains(&name)).ok_or_else(|| unknown(name, known(), path))
}

/// The error for a type that no family has: what is near, and what to do about it.
fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a str> + Clone, path: &Path) -> Error {
    // `qwen4` is no misspelt `qwen2`, but whoever has one may look at all that begin so.
    let stem = |word: &str| word.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default().to_lowercase();
    let kin = known.clone().filter(|other| stem(name).len() > 2 && stem(other) == stem(name));
    let mut near: Vec<&str> = kin.collect();
    near.extend(nearest(name, known).filter(|nearest| !near.contains(nearest)));
    let near = match &near[..] {
        [] => String::new(),
        [one] => format!("did you mean `{one}`? "),
        all => format!("near it are {}. ", all.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")),
    };
    let hint = format!(
        "{near}`subquad teachers` lists what is known. A new family is one file and one line in src/arch: \
         CONTRIBUTING.md walks through it"
    );
    Error::config(path, format!("the architecture `{}` is not known", shown(name)), hint)
}

/// Appends the ends of text that `generation_config.json` adds to `config.json`'s: chat models stop at more than one.
fn add_generation_ends(spec: &mut Spec, checkpoint: &Checkpoint) -> Result<()> {
    const NAME: &str = "generation_config.json";
    const MAX_BYTES: u64 = 1 << 20;
    let Some(bytes) = checkpoint.files().read_at_most(NAME, MAX_BYTES)? else { return Ok(()) };
    let path = checkpoint.files().place(NAME);
    let Ok(config) = serde_json::from_slice::<Map<String, Value>>(&bytes) else {
        return Err(Error::config(path, "this is not a JSON object", "download or copy the file again, or remove it"));
    };
    for id in (Fields { map: &config, path: &path }).tokens("eos_token_id", spec.vocab)? {
        if !spec.eos.contains(&id) {
            spec.eos.push(id);
        }
    }
    Ok(())
}
