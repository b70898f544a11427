//! Families of teachers: what `config.json` means, as plain data. One file per family, one line in [`FAMILIES`].
//!
//! Whatever a model does that the decoder does not do is refused here, with the reason: a model that loads and computes
//! something else is worse than one that does not load.

mod check;
mod fields;
mod llama;

use std::path::Path;

use serde_json::{Map, Value};

use crate::checkpoint::{CONFIG, Checkpoint, nearest, shown};
use crate::error::{Error, Result};
use crate::mixer::Site;
use fields::Fields;

/// `model_type` of the models that this crate writes.
pub const MODEL_TYPE: &str = "subquad";
/// The newest form of the `subquad` block of `config.json` that is read.
pub const FORMAT: u64 = 1;

/// A decoder as plain data. Letters as in the crate's legend.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// Name of the [`Family`].
    pub family: &'static str,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// `D`, width of the residual stream.
    pub width: usize,
    /// Number of blocks.
    pub layers: usize,
    /// `H`, query heads.
    pub heads: usize,
    /// `G`, key-value heads; divides `H`.
    pub kv_heads: usize,
    /// `K`, width of a head; need not be `D / H`.
    pub head_width: usize,
    /// Width of the MLP's hidden layer.
    pub ffn: usize,
    /// Tokens that the teacher was trained to see.
    pub context: usize,
    /// Added to the mean square in RMSNorm.
    pub norm_eps: f64,
    pub rope: Rope,
    /// Whether the head shares the embedding's weights.
    pub tied: bool,
    /// Token that starts a text.
    pub bos: Option<u32>,
    /// Tokens that end a text; `config.json`'s first.
    pub eos: Vec<u32>,
    pub names: Names,
}

/// Rotary position embedding of the whole head width, halves rotated against each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Base of the frequencies: pair `i` turns by `theta^(-2i/K)` per token.
    pub theta: f64,
}

/// Names of the tensors; `{}` in a name stands for the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names {
    /// `[vocab, D]`
    pub embed: &'static str,
    /// `[D]`
    pub final_norm: &'static str,
    /// `[vocab, D]`, absent when tied
    pub head: &'static str,
    /// `[D]`
    pub attn_norm: &'static str,
    /// `[H K, D]`
    pub q: &'static str,
    /// `[G K, D]`
    pub k: &'static str,
    /// `[G K, D]`
    pub v: &'static str,
    /// `[D, H K]`
    pub o: &'static str,
    /// `[D]`
    pub mlp_norm: &'static str,
    /// `[ffn, D]`
    pub gate: &'static str,
    /// `[ffn, D]`
    pub up: &'static str,
    /// `[D, ffn]`
    pub down: &'static str,
}

impl Names {
    /// The name that `template` has in `layer`.
    pub fn of_layer(template: &str, layer: usize) -> String {
        template.replace("{}", &layer.to_string())
    }
}

/// A family of teachers.
pub struct Family {
    pub name: &'static str,
    /// The `model_type`s of `config.json` that it reads.
    pub model_types: &'static [&'static str],
    /// Reads `config.json`, whose place the path names for messages.
    pub spec: fn(&Map<String, Value>, &Path) -> Result<Spec>,
}

/// All families.
pub static FAMILIES: &[Family] = &[llama::FAMILY];

impl Spec {
    /// The architecture of a teacher or of a converted model, held to the names, shapes and types in the headers.
    pub fn of(checkpoint: &Checkpoint) -> Result<Spec> {
        let path = checkpoint.files().place(CONFIG);
        let mut spec = match conversion(checkpoint.config(), &path)? {
            None => family(checkpoint.config(), "model_type", &path)?(checkpoint.config(), &path)?,
            Some(block) => {
                let read = family(block, "teacher_model_type", &path)?;
                // Written for other programs, which know windows and linear layers by these keys; the block has the truth.
                let mut config = checkpoint.config().clone();
                config.retain(|key, _| key != "layer_types" && key != "sliding_window");
                read(&config, &path)?
            }
        };
        add_generation_ends(&mut spec, checkpoint)?;
        check::check(&spec, checkpoint, conversion(checkpoint.config(), &path)?.is_some())?;
        Ok(spec)
    }

    /// What the mixer of a layer is told.
    pub fn site(&self, layer: usize) -> Site {
        Site {
            heads: self.heads,
            kv_heads: self.kv_heads,
            width: self.head_width,
            model_width: self.width,
            layer,
            layers: self.layers,
        }
    }

    /// Name and shape of every tensor of the teacher, in the order in which a forward pass needs them. A tied head is
    /// not among them.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, q, kv) = (self.width, self.heads * self.head_width, self.kv_heads * self.head_width);
        let names = &self.names;
        let mut all = vec![(names.embed.to_string(), vec![self.vocab, d])];
        for layer in 0..self.layers {
            let block = [
                (names.attn_norm, vec![d]),
                (names.q, vec![q, d]),
                (names.k, vec![kv, d]),
                (names.v, vec![kv, d]),
                (names.o, vec![d, q]),
                (names.mlp_norm, vec![d]),
                (names.gate, vec![self.ffn, d]),
                (names.up, vec![self.ffn, d]),
                (names.down, vec![d, self.ffn]),
            ];
            all.extend(block.into_iter().map(|(template, shape)| (Names::of_layer(template, layer), shape)));
        }
        all.push((names.final_norm.to_string(), vec![d]));
        if !self.tied {
            all.push((names.head.to_string(), vec![self.vocab, d]));
        }
        all
    }

    /// Number of the teacher's weights; a tied head counts once.
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }
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

type Reader = fn(&Map<String, Value>, &Path) -> Result<Spec>;

/// The reader of the family that the text under `key` names.
fn family(object: &Map<String, Value>, key: &str, path: &Path) -> Result<Reader> {
    let known = || FAMILIES.iter().flat_map(|f| f.model_types.iter().copied());
    let list = known().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let Some(name) = object.get(key).and_then(Value::as_str) else {
        return Err(Error::config(
            path,
            format!("`{key}` is missing or not a text"),
            format!("it names the architecture; known are {list}"),
        ));
    };
    FAMILIES.iter().find(|f| f.model_types.contains(&name)).map(|f| f.spec).ok_or_else(|| {
        let near = nearest(name, known()).map(|near| format!("did you mean `{near}`? "));
        Error::config(
            path,
            format!("the architecture `{}` is not known", shown(name)),
            format!("{}known are {list}", near.unwrap_or_default()),
        )
    })
}

/// Appends the ends of text that `generation_config.json` adds to `config.json`'s: chat models stop at more than one.
fn add_generation_ends(spec: &mut Spec, checkpoint: &Checkpoint) -> Result<()> {
    const NAME: &str = "generation_config.json";
    const LARGEST: u64 = 1 << 20;
    let Some(bytes) = checkpoint.files().read_at_most(NAME, LARGEST)? else { return Ok(()) };
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
