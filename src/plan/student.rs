//! Which layers change, and what they get.

use serde::Serialize;

use super::elements;
use super::refused::refused;
use crate::Result;
use crate::arch::{FORMAT, Spec};
use crate::mixer::{Mixer, Window};
use crate::model::{Conversion, Student, softmax};
use crate::recipe::Recipe;

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
    /// Whether training changes it.
    pub learned: bool,
}

impl StudentPlan {
    /// Elements of every new tensor.
    pub(super) fn sizes(&self) -> Vec<u64> {
        self.tensors.iter().map(|tensor| elements(&tensor.shape)).collect()
    }

    /// Elements of those that training changes.
    pub(super) fn learned_sizes(&self) -> Vec<u64> {
        self.tensors.iter().filter(|tensor| tensor.learned).map(|tensor| elements(&tensor.shape)).collect()
    }
}

/// Bytes of the teacher's keys and values at its full context, of some layers.
pub(super) fn softmax_bytes(spec: &Spec, layers: impl Iterator<Item = usize>) -> usize {
    layers.map(|layer| softmax(spec, layer).state_bytes(spec.context)).sum()
}

/// The student, and its outline. What a recipe asks of a teacher that does not have it is refused, all of it at once.
pub(super) fn student(recipe: &Recipe, spec: &Spec) -> Result<(StudentPlan, Student)> {
    let (softmax, replaced): (Vec<usize>, Vec<usize>) =
        (0..spec.layers).partition(|&layer| recipe.student.keep_softmax.keeps(layer));
    let conversion = Conversion {
        format: FORMAT,
        // Not needed to say what the student will be.
        teacher_model_type: String::new(),
        teacher: String::new(),
        mixer: recipe.student.mixer.clone(),
        options: recipe.student.options.clone(),
        window: recipe.student.window,
        softmax_layers: softmax.clone(),
        trained_sequence: recipe.trained_sequence(),
    };
    let outline = Student::without_weights(conversion, spec)
        .map_err(|error| recipe.mistake("student.mixer", error.to_string(), error.hint().unwrap_or_default()))?;
    let refused = refused(recipe, spec, &outline, &replaced);
    if !refused.is_empty() {
        return Err(recipe.mistakes(refused));
    }
    let of_layer = |&layer: &usize| {
        let outline = &outline;
        outline.mixer(layer).tensors().into_iter().map(move |tensor| NewTensor {
            name: outline.tensor_name(layer, tensor.name),
            short_name: tensor.name,
            layer,
            shape: tensor.shape,
            initial: tensor.initial.to_string(),
            learned: tensor.initial.learned(),
        })
    };
    let plan = StudentPlan {
        mixer: recipe.student.mixer.clone(),
        window: recipe.student.window,
        tensors: replaced.iter().flat_map(of_layer).collect(),
        state_bytes: outline.state_bytes(spec.context),
        teacher_state_bytes: softmax_bytes(spec, 0..spec.layers),
        replaced,
        softmax,
    };
    Ok((plan, outline))
}
