//! Mixers against other people's code: fixtures of tests/python/mixer_fixtures.py, one layer each, outputs before the o
//! projection and the gradients of the layer's input and of every tensor of the mixer.

#[path = "../common/mod.rs"]
mod common;
mod delta;
mod kernels;
mod operators;
mod scalar_decay;
mod vector_decay;

use candle_core::Tensor;
use common::difference;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use subquad::checkpoint::load_tensors;
use subquad::mixer::{self, Branches, Combine, Initial, LayerDims, LayerInputs, Params, Window};
use subquad::ops::linear::linear;
use subquad::ops::rope::Rotary;
use subquad::ops::{Tape, Var};

const TOLERANCE: f64 = 3e-5;

/// How one of our tensors is made of the fixture's.
#[derive(Clone, Copy)]
enum Fit {
    /// The same elements in our shape.
    Same(&'static str),
    /// One value or row for all heads, where ours has one for each: the fixture's gradient is the sum of ours.
    Shared(&'static str),
    /// As many rows of the fixture's tensor as ours has, from this one on.
    Rows(&'static str, usize),
    /// As many columns.
    Columns(&'static str, usize),
    /// The same elements, which the fixture uses in more places than ours: gradients cannot be compared.
    Given(&'static str),
    /// The same elements, whose gradient is what is left of terms as large as the gradient of the second tensor.
    Cancelling(&'static str, &'static str),
    /// The fixture's plus a constant.
    Plus(&'static str, f32),
    /// ln(x / (1 - x)) of the fixture's x.
    Logit(&'static str),
    /// Ours alone: nothing of the kind in the fixture.
    Constant(f32),
    /// Ours alone, as it starts.
    Start,
}

type Tensors = BTreeMap<String, Tensor>;

/// A weight of the fixture, and the row at which each head's projection begins.
type Place = (&'static str, [usize; 2]);

const HEADS: usize = 2;
const WIDTH: usize = 8;
/// Where most layers keep q, k, v.
const SEPARATE: [Place; 3] = [("q_proj.weight", [0, 8]), ("k_proj.weight", [0, 8]), ("v_proj.weight", [0, 8])];

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
        self.check_with(None, SEPARATE);
    }

    /// Beside a window, with q, k, v projected by these weights.
    fn check_with(&self, window: Option<Window>, places: [Place; 3]) {
        self.check_projected(window, |x, input| places.map(|place| project(x, input, place)));
    }

    /// With q, k, v [B, T, H, K] that `project` makes of the fixture and the layer's input.
    fn check_projected(&self, window: Option<Window>, project: impl Fn(&Tensors, &Var) -> [Var; 3]) {
        let what = self.fixture;
        let path = format!("{}/tests/fixtures/mixer_{what}.safetensors", env!("CARGO_MANIFEST_DIR"));
        let x: Tensors = load_tensors(path.as_ref()).unwrap().0;
        let (_, tokens, model_width) = x["x"].dims3().unwrap();
        let (heads, kv_heads) = (HEADS, HEADS);
        let layer_dims = LayerDims { heads, kv_heads, width: WIDTH, model_width, layer: self.layer, layers: 4 };
        let mixer = mixer::build(self.mixer, self.options.as_object().unwrap(), layer_dims, window).unwrap();
        let tape = Tape::new();
        let input = tape.leaf(x["x"].clone());
        let [q, k, v] = project(&x, &input);
        // Fixtures with RoPE have its cosines; RetNet's layer makes them itself.
        let angles =
            (x.contains_key("cos") || self.mixer == "retention").then(|| Rotary::new(WIDTH, 10000.0).angles(0, tokens));
        let layer = LayerInputs::new(q, k, v).unwrap().of_layer(input.clone(), angles);
        let fit =
            |name: &str| self.tensors.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("{what}: {name}?")).1;
        let of = |name: &str, shape: &[usize], start: Initial| match fit(name) {
            Fit::Same(theirs) | Fit::Given(theirs) | Fit::Cancelling(theirs, _) => x[theirs].reshape(shape).unwrap(),
            Fit::Shared(theirs) => x[theirs].broadcast_as(shape).unwrap().contiguous().unwrap(),
            Fit::Rows(theirs, from) => rows(&x[theirs], from, shape),
            Fit::Columns(theirs, from) => x[theirs].narrow(1, from, shape[1]).unwrap().contiguous().unwrap(),
            Fit::Plus(theirs, more) => (&x[theirs] + more as f64).unwrap().reshape(shape).unwrap(),
            Fit::Logit(theirs) => {
                let p = &x[theirs];
                (p.log().unwrap() - (1.0 - p).unwrap().log().unwrap()).unwrap().reshape(shape).unwrap()
            }
            Fit::Constant(value) => Tensor::full(value, shape, x["x"].device()).unwrap(),
            Fit::Start => start.tensor(name, shape, 0).unwrap(),
        };
        let ours: Vec<(&str, Var)> =
            mixer.tensors().iter().map(|t| (t.name, tape.leaf(of(t.name, &t.shape, t.initial)))).collect();
        let params = Params(ours.iter().map(|(name, var)| (name.to_string(), var.clone())).collect());
        let output = mixer.mix(&layer, &params, None, Branches::Both).unwrap();
        let d = difference(&output.value().reshape(x["output"].dims()).unwrap(), &x["output"]);
        assert!(d < TOLERANCE, "{what}: output differs by {d:.1e}");
        let up = x["output_gradient"].reshape(output.value().dims()).unwrap();
        let mut gradients = tape.backward(vec![(&output, up)]).unwrap();
        let gradient = |theirs: &str| x[&format!("grad.{theirs}")].clone();
        let same = |name: &str, got: Tensor, want: Tensor| {
            let d = difference(&got.reshape(want.dims()).unwrap(), &want);
            assert!(d < TOLERANCE, "{what}: gradient of {name} differs by {d:.1e}");
        };
        same("the input", gradients.take(&input).unwrap(), gradient("x"));
        for (name, var) in &ours {
            let got = gradients.take(var).unwrap_or_else(|| panic!("{what}: no gradient of {name}"));
            match fit(name) {
                Fit::Same(theirs) | Fit::Plus(theirs, _) => same(name, got, gradient(theirs)),
                Fit::Shared(theirs) => same(name, got.sum(0).unwrap(), gradient(theirs)),
                // The fixtures do not have the gradients of k and v projections, of which a mixer may add some rows.
                Fit::Rows(theirs, _) if !x.contains_key(&format!("grad.{theirs}")) => {}
                Fit::Rows(theirs, from) => same(name, got.clone(), rows(&gradient(theirs), from, got.dims())),
                Fit::Cancelling(theirs, terms) => {
                    let terms = gradient(terms).flatten_all().unwrap();
                    let among = |x: &Tensor| Tensor::cat(&[&x.flatten_all().unwrap(), &terms], 0).unwrap();
                    same(name, among(&got), among(&gradient(theirs)));
                }
                Fit::Columns(theirs, from) => {
                    let columns = got.dims()[1];
                    same(name, got, gradient(theirs).narrow(1, from, columns).unwrap());
                }
                Fit::Logit(theirs) => {
                    let slope = (&x[theirs] * (1.0 - &x[theirs]).unwrap()).unwrap();
                    same(name, got, (gradient(theirs) * slope).unwrap());
                }
                Fit::Given(_) | Fit::Constant(_) | Fit::Start => {}
            }
        }
    }
}

/// The projection of the layer's input by a weight of the fixture.
fn project(x: &Tensors, input: &Var, (name, starts): Place) -> Var {
    let (batch, tokens, _) = input.value().dims3().unwrap();
    let of_head = |start: usize| x[name].narrow(0, start, WIDTH).unwrap();
    let weight = Tensor::cat(&starts.map(of_head), 0).unwrap();
    linear(input, &weight.into()).unwrap().reshape(&[batch, tokens, HEADS, WIDTH]).unwrap()
}

/// Rows of `x` from `from` on that fill `shape`.
fn rows(x: &Tensor, from: usize, shape: &[usize]) -> Tensor {
    let elements: usize = shape.iter().product();
    let row = x.elem_count() / x.dims()[0];
    x.narrow(0, from, elements / row).unwrap().reshape(shape).unwrap()
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
