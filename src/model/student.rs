//! What a converted model has beyond its teacher's weights.

use super::adapter::Adapter;
use crate::arch::{self, Spec};
use crate::checkpoint::{CONFIG, Checkpoint};
use crate::mixer::{self, Mixer, Options, Softmax, Window};
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The description of a conversion, as it stands in the block `subquad` of an exported config.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conversion {
    /// Version of this block.
    pub format: u64,
    /// `model_type` of the teacher.
    pub teacher_model_type: String,
    /// Where the teacher was taken from, so that evaluation finds it again: a Hub id, `builtin:NAME`, or a path.
    pub teacher: String,
    pub mixer: String,
    /// The mixer's own options, defaults filled in.
    pub options: serde_json::Map<String, serde_json::Value>,
    pub window: Option<Window>,
    /// Layers that keep softmax attention.
    pub softmax_layers: Vec<usize>,
    /// Tokens of the training windows, the longest text that the student has learned from; `None` if it was not trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained_sequence: Option<usize>,
}

impl Conversion {
    /// The conversion that a checkpoint's config.json describes; `None` for a plain teacher.
    pub fn of(checkpoint: &Checkpoint) -> Result<Option<Conversion>> {
        let path = checkpoint.files().location().join(CONFIG);
        let Some(block) = arch::conversion(checkpoint.config(), &path)? else { return Ok(None) };
        let conversion = serde_json::from_value(serde_json::Value::Object(block.clone()));
        conversion.map(Some).map_err(|e| {
            Error::config(&path, format!("the block `subquad` cannot be read: {e}"), "export the model again")
        })
    }

    /// An option of the mixer that is a flag; one that it does not have is off.
    pub fn flag(&self, name: &str) -> bool {
        self.options.get(name).and_then(serde_json::Value::as_bool).unwrap_or(false)
    }
}

/// The attention of a layer of the teacher.
pub fn softmax(spec: &Spec, layer: usize) -> Softmax {
    Softmax::new(spec.layer_dims(layer)).within(spec.blocks[layer].window)
}

/// Mixers and new tensors of a student.
pub struct Student {
    pub conversion: Conversion,
    mixers: Vec<Box<dyn Mixer>>,
    /// What the names of each layer's mixer tensors begin with.
    prefixes: Vec<String>,
    /// Mixer tensors and adapters by full name.
    pub tensors: BTreeMap<String, Tensor>,
    pub adapter: Option<Adapter>,
}

impl Student {
    /// A student at its initial values.
    pub fn new(conversion: Conversion, spec: &Spec, seed: u64) -> Result<Student> {
        let mut student = Student::without_weights(conversion, spec)?;
        for (name, shape, initial) in student.new_tensors() {
            student.tensors.insert(name.clone(), initial.tensor(&name, &shape, seed)?);
        }
        Ok(student)
    }

    /// The student that a converted checkpoint holds; `None` for a plain teacher.
    pub fn load(checkpoint: &Checkpoint, spec: &Spec) -> Result<Option<Student>> {
        let Some(conversion) = Conversion::of(checkpoint)? else { return Ok(None) };
        let path = checkpoint.files().location().join(CONFIG);
        let mut student = Student::without_weights(conversion, spec).map_err(|e| {
            Error::config(&path, format!("the block `subquad` describes no model: {e}"), "export the model again")
        })?;
        for (name, shape, _) in student.new_tensors() {
            student.tensors.insert(name.clone(), checkpoint.tensor_of(&name, &shape, DType::F32)?);
        }
        Ok(Some(student))
    }

    /// A student without its tensors: all that can be said of a conversion before it has any.
    pub fn without_weights(conversion: Conversion, spec: &Spec) -> Result<Student> {
        let registration = mixer::known(&conversion.mixer)?;
        if let Some(layer) = conversion.softmax_layers.iter().find(|l| **l >= spec.layers) {
            return Err(Error::usage(
                format!("`keep_softmax` names layer {layer}, and the teacher has layers 0 to {}", spec.layers - 1),
                "name existing layers",
            ));
        }
        let options = Options::new(registration.options, &conversion.options)?;
        let mixers = (0..spec.layers).map(|l| match conversion.softmax_layers.contains(&l) {
            true => Ok(Box::new(softmax(spec, l)) as Box<dyn Mixer>),
            false => (registration.build)(&options, spec.layer_dims(l), conversion.window),
        });
        let mixers = mixers.collect::<Result<_>>()?;
        let conversion = Conversion { options: options.values().clone(), ..conversion };
        let prefixes = (0..spec.layers).map(|l| spec.mixer_prefix(l)).collect();
        Ok(Student { conversion, mixers, prefixes, tensors: BTreeMap::new(), adapter: None })
    }

    pub fn mixer(&self, layer: usize) -> &dyn Mixer {
        &*self.mixers[layer]
    }

    /// Whether the layer's attention was replaced.
    pub fn replaced(&self, layer: usize) -> bool {
        !self.conversion.softmax_layers.contains(&layer)
    }

    /// Full name of a mixer's tensor.
    pub fn tensor_name(&self, layer: usize, name: &str) -> String {
        format!("{}{name}", self.prefixes[layer])
    }

    /// Names, shapes and initial values of all mixer tensors, in the order of layers.
    pub fn new_tensors(&self) -> Vec<(String, Vec<usize>, mixer::Initial)> {
        let of = |layer: usize| {
            self.mixer(layer).tensors().into_iter().map(move |t| (self.tensor_name(layer, t.name), t.shape, t.initial))
        };
        (0..self.mixers.len()).flat_map(of).collect()
    }

    /// Names of the mixer tensors that training may change.
    pub fn learned_tensors(&self) -> Vec<String> {
        self.new_tensors().into_iter().filter(|(_, _, initial)| initial.learned()).map(|(name, ..)| name).collect()
    }

    /// State bytes of one sequence after `context` tokens, all layers.
    pub fn state_bytes(&self, context: usize) -> usize {
        self.mixers.iter().map(|m| m.state_bytes(context)).sum()
    }

    /// A layer's mixer tensors by their short names.
    pub fn mixer_tensors(&self, layer: usize) -> impl Iterator<Item = (&str, &String, &Tensor)> {
        let prefix = &self.prefixes[layer];
        self.tensors.iter().filter_map(move |(name, t)| Some((name.strip_prefix(prefix.as_str())?, name, t)))
    }

    /// Starts a new adapter; its A is drawn from `seed`, its B is zero.
    pub fn adapt(&mut self, adapter: Adapter, spec: &Spec, seed: u64) -> Result<()> {
        for layer in 0..spec.layers {
            for (name, shape, initial) in adapter.tensors(spec, layer) {
                self.tensors.insert(name.clone(), initial.tensor(&name, &shape, seed)?);
            }
        }
        self.adapter = Some(adapter);
        Ok(())
    }

    /// Folds the adapter into the model's weights and forgets it. Nothing to do without one.
    pub fn merge(&mut self, model: &mut super::Model) -> Result<()> {
        if let Some(adapter) = self.adapter.take() {
            adapter.merge(model, &self.tensors)?;
            self.tensors.retain(|name, _| !name.contains(".lora_"));
        }
        Ok(())
    }
}
