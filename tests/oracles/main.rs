//! Mixers against other people's code: fixtures of tests/python/mixer_fixtures.py, one layer each, outputs before the o
//! projection and the gradients of the layer's input and of every tensor of the mixer.

#[path = "../common/mod.rs"]
mod common;
mod delta;
mod kernels;
mod vector_decay;

use candle_core::Tensor;
use common::difference;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use subquad::checkpoint::load_tensors;
use subquad::mixer::{self, Bound, Branches, Heads, Initial, Site};
use subquad::ops::linear::linear;
use subquad::ops::{Tape, Var};

const TOLERANCE: f64 = 3e-5;

/// How one of our tensors is made of the fixture's.
#[derive(Clone, Copy)]
enum Fit {
    /// The same elements in our shape.
    Same(&'static str),
    /// One value or row for all heads, where ours has one for each: the fixture's gradient is the sum of ours.
    Shared(&'static str),
    /// The same elements, which do not train there.
    Fixed(&'static str),
    /// Ours alone: nothing of the kind in the fixture.
    Constant(f32),
    /// Ours alone, as it starts.
    Start,
}

/// A mixer and where its tensors are in a fixture.
struct Oracle<'a> {
    fixture: &'a str,
    mixer: &'a str,
    options: Value,
    layer: usize,
    tensors: &'a [(&'a str, Fit)],
}

impl Oracle<'_> {
    fn check(&self) {
        let what = self.fixture;
        let path = format!("{}/tests/fixtures/mixer_{what}.safetensors", env!("CARGO_MANIFEST_DIR"));
        let x: BTreeMap<String, Tensor> = load_tensors(path.as_ref()).unwrap().0;
        let (heads, width) = (2, 8);
        let (batch, tokens, model_width) = x["x"].dims3().unwrap();
        let site = Site { heads, kv_heads: heads, width, model_width, layer: self.layer, layers: 2 };
        let mixer = mixer::build(self.mixer, self.options.as_object().unwrap(), site, None).unwrap();
        let tape = Tape::new();
        let input = tape.leaf(x["x"].clone());
        let project = |name: &str| -> Var {
            // Heads that are narrower there have zeros beside them here.
            let weight = x[&format!("{name}_proj.weight")].reshape((heads, (), model_width)).unwrap();
            let weight = weight.pad_with_zeros(1, 0, width - weight.dim(1).unwrap()).unwrap();
            let weight = weight.reshape((heads * width, model_width)).unwrap();
            linear(&input, &weight.into()).unwrap().reshape(&[batch, tokens, heads, width]).unwrap()
        };
        let layer = Heads::new(project("q"), project("k"), project("v")).unwrap().of_layer(input.clone(), None);
        let fit =
            |name: &str| self.tensors.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("{what}: {name}?")).1;
        let of = |name: &str, shape: &[usize], start: Initial| match fit(name) {
            Fit::Same(theirs) | Fit::Fixed(theirs) => x[theirs].reshape(shape).unwrap(),
            Fit::Shared(theirs) => x[theirs].broadcast_as(shape).unwrap().contiguous().unwrap(),
            Fit::Constant(value) => Tensor::full(value, shape, x["x"].device()).unwrap(),
            Fit::Start => start.tensor(name, shape, 0).unwrap(),
        };
        let ours: Vec<(&str, Var)> =
            mixer.tensors().iter().map(|t| (t.name, tape.leaf(of(t.name, &t.shape, t.initial)))).collect();
        let bound = Bound(ours.iter().map(|(name, var)| (name.to_string(), var.clone())).collect());
        let output = mixer.mix(&layer, &bound, None, Branches::Both).unwrap();
        let d = difference(&output.value().reshape(x["output"].dims()).unwrap(), &x["output"]);
        assert!(d < TOLERANCE, "{what}: output differs by {d:.1e}");
        let up = x["output_gradient"].reshape(output.value().dims()).unwrap();
        let mut gradients = tape.backward(vec![(&output, up)]).unwrap();
        let same = |name: &str, got: Tensor, theirs: &str| {
            let want = &x[&format!("grad.{theirs}")];
            let d = difference(&got.reshape(want.dims()).unwrap(), want);
            assert!(d < TOLERANCE, "{what}: gradient of {name} differs by {d:.1e}");
        };
        same("the input", gradients.take(&input).unwrap(), "x");
        for (name, var) in &ours {
            let got = gradients.take(var).unwrap_or_else(|| panic!("{what}: no gradient of {name}"));
            match fit(name) {
                Fit::Same(theirs) => same(name, got, theirs),
                Fit::Shared(theirs) => same(name, got.sum(0).unwrap(), theirs),
                Fit::Fixed(_) | Fit::Constant(_) | Fit::Start => {}
            }
        }
    }
}

/// The parts that mechanisms of flash-linear-attention share, by its names.
const FINISH: [(&str, Fit); 3] = [
    ("norm_weight", Fit::Shared("g_norm_swish_gate.weight")),
    ("output_gate_weight", Fit::Same("g_proj.weight")),
    ("output_gate_bias", Fit::Constant(0.0)),
];
const CONVOLUTIONS: [(&str, Fit); 3] = [
    ("q_convolution", Fit::Same("q_conv1d.weight")),
    ("k_convolution", Fit::Same("k_conv1d.weight")),
    ("v_convolution", Fit::Same("v_conv1d.weight")),
];

/// Shared parts, then a mechanism's own.
fn with(parts: &[&[(&'static str, Fit)]]) -> Vec<(&'static str, Fit)> {
    parts.concat()
}

fn defaults() -> Value {
    json!({})
}
