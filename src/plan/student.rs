//! Which layers change, and what they get.

use serde::Serialize;

use super::elements;
use crate::arch::Spec;
use crate::mixer::{self, HeadSizes, Initial, Mixer, Options, Window};
use crate::model::Student;
use crate::recipe::Recipe;
use crate::{Error, Result};

/// The student before it has any weights.
#[derive(Debug, Clone, Serialize)]
pub struct StudentPlan {
    pub mixer: String,
    pub window: Option<Window>,
    /// Layers whose attention is replaced.
    pub replaced: Vec<usize>,
    /// Layers that keep softmax attention.
    pub softmax: Vec<usize>,
    /// What the mixers add, layer by layer.
    pub tensors: Vec<NewTensor>,
    /// Bytes of state of one sequence at the teacher's full context, and of the teacher's keys and values, in f32.
    pub state_bytes: usize,
    pub teacher_state_bytes: usize,
}

/// A tensor that a mixer adds.
#[derive(Debug, Clone, Serialize)]
pub struct NewTensor {
    pub name: String,
    /// Its name in the mixer, and its layer.
    pub short_name: &'static str,
    pub layer: usize,
    pub shape: Vec<usize>,
    /// How it starts, for people.
    pub initial: String,
}

impl StudentPlan {
    /// Elements of every new tensor.
    pub(super) fn sizes(&self) -> Vec<u64> {
        self.tensors.iter().map(|tensor| elements(&tensor.shape)).collect()
    }
}

/// The student, and the mixer of each of its replaced layers. What a recipe asks of a teacher that does not have it is
/// refused.
pub(super) fn student(recipe: &Recipe, spec: &Spec) -> Result<(StudentPlan, Box<dyn Mixer>)> {
    let keep = &recipe.student.keep_softmax;
    if let Some(layer) = keep.largest().filter(|&layer| layer >= spec.layers) {
        return Err(recipe.mistake(
            "student.keep_softmax",
            format!("there is no layer {layer}: the teacher has {} layers, 0 to {}", spec.layers, spec.layers - 1),
            "name layers of the teacher",
        ));
    }
    let (softmax, replaced): (Vec<usize>, Vec<usize>) = (0..spec.layers).partition(|&layer| keep.keeps(layer));
    if replaced.is_empty() {
        return Err(recipe.mistake(
            "student.keep_softmax",
            format!("all {} layers keep softmax attention: there is nothing to convert", spec.layers),
            "name fewer layers",
        ));
    }
    let sizes = HeadSizes { heads: spec.heads, kv_heads: spec.kv_heads, width: spec.head_width };
    let mixer = build(recipe, sizes)
        .map_err(|error| recipe.mistake("student.mixer", error.to_string(), error.hint().unwrap_or_default()))?;
    let of_layer = |&layer: &usize| {
        mixer.tensors().into_iter().map(move |tensor| NewTensor {
            name: Student::tensor_name(layer, tensor.name),
            short_name: tensor.name,
            layer,
            shape: tensor.shape,
            initial: words(tensor.initial),
        })
    };
    let keys_and_values = mixer::Softmax::new(sizes).state_bytes(spec.context);
    let plan = StudentPlan {
        mixer: recipe.student.mixer.clone(),
        window: recipe.student.window,
        tensors: replaced.iter().flat_map(of_layer).collect(),
        state_bytes: mixer.state_bytes(spec.context) * replaced.len() + keys_and_values * softmax.len(),
        teacher_state_bytes: keys_and_values * spec.layers,
        replaced,
        softmax,
    };
    Ok((plan, mixer))
}

fn build(recipe: &Recipe, sizes: HeadSizes) -> Result<Box<dyn Mixer>> {
    let student = &recipe.student;
    let registration = mixer::find(&student.mixer).ok_or_else(|| {
        Error::usage(format!("unknown mixer `{}`", student.mixer), "`subquad mixers` lists the mixers")
    })?;
    (registration.build)(&Options::new(registration.options, &student.options)?, sizes, student.window)
}

fn words(initial: Initial) -> String {
    match initial {
        Initial::Constant(value) => format!("all {value}"),
        Initial::Identity => "identity".into(),
        Initial::Kaiming { .. } => "Kaiming-uniform".into(),
    }
}
