//! The decoder against transformers (fixtures of tests/python/teacher_fixtures.py): logits, hidden states, generation.

mod common;

use candle_core::{DType, Tensor};
use common::largest;
use std::collections::BTreeMap;
use subquad::arch::Spec;
use subquad::checkpoint::{Checkpoint, Location, load_tensors};
use subquad::model::{Flow, Model, Sampler, Session, View};

struct Case {
    model: Model,
    fixture: BTreeMap<String, Tensor>,
}

impl Case {
    fn open(name: &str) -> Case {
        let location = Location::resolve(&format!("builtin:{name}"), None).unwrap();
        let checkpoint = Checkpoint::open(&location).unwrap();
        let model = Model::load(&checkpoint, &Spec::of(&checkpoint).unwrap()).unwrap();
        let path = format!("{}/tests/fixtures/teacher_{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
        Case { model, fixture: load_tensors(path.as_ref()).unwrap().0 }
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.fixture[name].flatten_all().unwrap().to_vec1::<u32>().unwrap()
    }

    /// Every `stride`-th column, as the fixture holds it.
    fn columns(&self, logits: &Tensor) -> Tensor {
        let stride = self.ids("stride")[0] as usize;
        let columns: Vec<u32> = (0..logits.dims().last().unwrap() / stride).map(|c| (c * stride) as u32).collect();
        let n = columns.len();
        logits.index_select(&Tensor::from_vec(columns, n, logits.device()).unwrap(), logits.rank() - 1).unwrap()
    }
}

fn logits_and_hidden_states(name: &str) {
    let case = Case::open(name);
    let view = View::teacher(&case.model);
    let logits = view.logits(&case.ids("ids"), 1).unwrap().squeeze(0).unwrap();
    let d = largest(&case.columns(&logits), &case.fixture["logits"]);
    assert!(d < 1e-4, "logits differ by {d}");
    assert_eq!(logits.argmax(1).unwrap().to_vec1::<u32>().unwrap(), case.ids("argmax"));
    let batch = view.logits(&case.ids("batch_ids"), 2).unwrap();
    let batch = if batch.dim(2).unwrap() == case.fixture["batch_logits"].dim(2).unwrap() {
        batch
    } else {
        case.columns(&batch)
    };
    let d = largest(&batch, &case.fixture["batch_logits"]);
    assert!(d < 1e-4, "logits of a batch differ by {d}");

    let positions = case.fixture["positions"].to_dtype(DType::U32).unwrap();
    let mut layer_inputs = vec![];
    let last = view
        .run(&case.ids("ids"), 1, &mut |hook| {
            layer_inputs.push(hook.input.value().clone());
            Ok(Flow::Continue)
        })
        .unwrap();
    layer_inputs.push(last);
    for (i, x) in layer_inputs.iter().enumerate() {
        let x = x.squeeze(0).unwrap().index_select(&positions, 0).unwrap();
        let d = largest(&x, &case.fixture["hidden"].get(i).unwrap());
        assert!(d < 1e-4, "hidden state {i} differs by {d}");
    }
}

fn greedy_generation(name: &str) {
    let case = Case::open(name);
    let mut session = Session::new(View::teacher(&case.model));
    let mut sampler = Sampler::new(0.0, 1.0, 0);
    let mut logits = session.feed(&case.ids("prompt")).unwrap();
    let mut generated = vec![];
    for _ in 0..64 {
        let next = sampler.next(&logits).unwrap();
        generated.push(next);
        logits = session.feed(&[next]).unwrap();
    }
    assert_eq!(generated, case.ids("generated"));
}

#[test]
fn stories_logits() {
    logits_and_hidden_states("stories260K");
}

#[test]
fn books_logits() {
    logits_and_hidden_states("books-llama-7m");
}

#[test]
fn stories_generation() {
    greedy_generation("stories260K");
}

#[test]
fn books_generation() {
    greedy_generation("books-llama-7m");
}
