//! Embedded teachers and untrained Hedgehog students of them.

use subquad::arch::{FORMAT, Spec};
use subquad::checkpoint::{Checkpoint, Location};
use subquad::mixer::{Combine, Window};
use subquad::model::{Conversion, Model, Student};

/// The embedded teacher of that name.
pub fn teacher(name: &str) -> Model {
    let checkpoint = Checkpoint::open(&Location::resolve(&format!("builtin:{name}"), None).unwrap()).unwrap();
    Model::load(&checkpoint, &Spec::of(&checkpoint).unwrap()).unwrap()
}

/// Hedgehog at its initial values in all layers but `softmax_layers`, beside a window under a joint normaliser.
pub fn student(model: &Model, window: Option<usize>, softmax_layers: &[usize]) -> Student {
    student_of("hedgehog", model, window.map(|size| Window { size, sinks: 0, combine: Combine::Joint }), softmax_layers)
}

/// A mixer at its initial values in all layers but `softmax_layers`.
pub fn student_of(mixer: &str, model: &Model, window: Option<Window>, softmax_layers: &[usize]) -> Student {
    let conversion = Conversion {
        format: FORMAT,
        teacher_model_type: "llama".into(),
        teacher: "a test's teacher".into(),
        mixer: mixer.into(),
        options: Default::default(),
        window,
        softmax_layers: softmax_layers.to_vec(),
        trained_sequence: None,
    };
    Student::new(conversion, &model.spec, 0).unwrap()
}
