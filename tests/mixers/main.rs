//! The suite of mixers: whatever is registered is held to what a mixer promises, beside every window that it allows.
//!
//! States are plain data and carry no gradient from call to call, so that gradients are held to differences of the loss;
//! the operators below are held to the autograd of their recurrences in `tests/recurrences.rs`.

mod causality;
#[path = "../common/mod.rs"]
mod common;
mod extremes;
mod gradients;
mod recurrent;
mod registered;

use candle_core::{DType, Tensor};
use common::{difference, random};
use serde_json::{Map, Value};
use std::sync::Arc;
use subquad::mixer::{
    self, Branches, LayerDims, LayerInputs, MIXERS, Mixer, OptionKind, Params, Registration, State, Window,
};
use subquad::ops::rope::Rotary;
use subquad::ops::{Documents, Tape, Var};

/// Of sums in another order.
const TOLERANCE: f64 = 5e-5;

/// The same where inputs are not chosen. A quadratic kernel (q.k)^2 leaves few digits of a first key that stands almost
/// upright on its query, and divides one such number by another.
fn tolerance(m: &Registration) -> f64 {
    if m.name == "rebased" { 100.0 * TOLERANCE } else { TOLERANCE }
}

fn layer_dims(heads: usize, kv_heads: usize, width: usize, layer: usize) -> LayerDims {
    LayerDims { heads, kv_heads, width, model_width: heads * width, layer, layers: 4 }
}

/// Every registered mixer, alone and beside each window that it allows.
fn all() -> impl Iterator<Item = (&'static Registration, Option<Window>)> {
    MIXERS.iter().flat_map(|m| {
        let windows = m.combine.iter().flat_map(|&combine| {
            [(1, 0), (16, 0), (16, 3), (64, 0), (200, 0)].map(|(size, sinks)| Some(Window { size, sinks, combine }))
        });
        [None].into_iter().chain(windows).map(move |w| (m, w))
    })
}

/// Every registered mixer, alone and beside one window of each kind.
fn few() -> impl Iterator<Item = (&'static Registration, Option<Window>)> {
    all().filter(|(_, window)| window.is_none_or(|w| (w.size, w.sinks) == (16, 3)))
}

/// Defaults, and each flag and choice of a mixer turned to its other values, one at a time.
fn options(m: &Registration) -> Vec<Map<String, Value>> {
    let others = m.options.iter().flat_map(|option| {
        let values: Vec<Value> = match option.kind {
            OptionKind::Flag => vec![true.into(), false.into()],
            OptionKind::Choice(words) => words.iter().map(|&word| word.into()).collect(),
            OptionKind::Integer { .. } | OptionKind::Number { .. } => vec![],
        };
        let others = values.into_iter().filter(|value| *value != option.default_value());
        others.map(|value| Map::from_iter([(option.name.to_string(), value)]))
    });
    [Map::new()].into_iter().chain(others).collect()
}

/// A mixer with its tensors.
struct Case {
    what: String,
    mixer: Box<dyn Mixer>,
    /// Moved away from their initial values, where symmetries would hide mistakes.
    tensors: Vec<(String, Tensor)>,
}

impl Case {
    fn new(m: &Registration, layer_dims: LayerDims, window: Option<Window>) -> Case {
        Case::with(m, &Map::new(), layer_dims, window)
    }

    fn with(m: &Registration, options: &Map<String, Value>, layer_dims: LayerDims, window: Option<Window>) -> Case {
        let mixer = mixer::build(m.name, options, layer_dims, window).unwrap();
        let moved = |(i, t): (usize, mixer::NewTensor)| {
            let start = t.initial.tensor(t.name, &t.shape, 0).unwrap();
            (t.name.to_string(), (start + random(10 + i as u64, &t.shape, 0.3)).unwrap())
        };
        let tensors = mixer.tensors().into_iter().enumerate().map(moved).collect();
        Case { what: format!("{} {options:?} at {layer_dims:?} beside {window:?}", m.name), mixer, tensors }
    }

    fn params(&self) -> Params {
        Params(self.tensors.iter().map(|(name, t)| (name.clone(), t.clone().into())).collect())
    }

    fn mix(&self, heads: &LayerInputs, state: Option<&mut State>) -> Tensor {
        self.mixer.mix(heads, &self.params(), state, Branches::Both).unwrap().value().clone()
    }

    /// Whole sequence at once = cut in two at each of `cuts` = token by token, outputs and states.
    fn agrees(&self, x: &Layer, cuts: &[usize], tolerance: f64) {
        let (batch, tokens, ..) = x.q.dims4().unwrap();
        let close = |what: String, got: &Tensor, want: &Tensor| {
            let d = difference(got, want);
            assert!(d < tolerance, "{}, {tokens} tokens, {what}: differs by {d:.1e}", self.what);
        };
        let mut end = State::default();
        let whole = self.mix(&x.whole(), Some(&mut end));
        close("without a state".into(), &self.mix(&x.whole(), None), &whole);
        for &cut in cuts {
            let mut state = State::default();
            let first = self.mix(&x.part(0, cut), Some(&mut state));
            let second = self.mix(&x.part(cut, tokens - cut), Some(&mut state));
            close(format!("cut at {cut}"), &Tensor::cat(&[first, second], 1).unwrap(), &whole);
        }
        let mut state = State::default();
        let params = self.params();
        let step = |i: usize, state: &mut State| self.mixer.step(&x.part(i, 1), &params, state).unwrap();
        let steps: Vec<Tensor> = (0..tokens).map(|i| step(i, &mut state)).collect();
        close("token by token".into(), &Tensor::cat(&steps, 1).unwrap(), &whole);
        assert_eq!(state.past, end.past, "{}", self.what);
        assert_eq!(state.tensors.keys().collect::<Vec<_>>(), end.tensors.keys().collect::<Vec<_>>(), "{}", self.what);
        for (name, tensor) in &state.tensors {
            close(format!("state {name}"), tensor, &end.tensors[name]);
            assert_eq!(tensor.dtype(), DType::F32, "{}: state {name}", self.what);
        }
        assert_eq!(state.bytes(), batch * self.mixer.state_bytes(tokens), "{}: state_bytes tells the truth", self.what);
    }

    /// Whether `name` is a tensor of the mixer that training leaves as it is.
    fn fixed(&self, name: &str) -> bool {
        self.mixer.tensors().iter().any(|t| t.name == name && !t.initial.learned())
    }

    /// Inputs and tensors by name: the mixer's own, then the layer's.
    fn named(&self, x: &Layer) -> Vec<(String, Tensor)> {
        let layer = [("input", &x.input), ("q", &x.q), ("k", &x.k), ("v", &x.v)];
        let layer = layer.into_iter().map(|(name, part)| (format!("the layer's {name}"), part.clone()));
        self.tensors.iter().cloned().chain(layer).collect()
    }

    /// Output of `named` tensors and inputs, and these as they take part.
    fn of(
        &self,
        named: &[(String, Tensor)],
        rotary: &Rotary,
        documents: &Arc<Documents>,
        tape: Option<&Tape>,
    ) -> (Var, Vec<Var>) {
        let var = |t: &Tensor| tape.map_or_else(|| t.clone().into(), |tape| tape.leaf(t.clone()));
        let vars: Vec<Var> = named.iter().map(|(_, t)| var(t)).collect();
        let own = named.len() - 4;
        let params = Params(named.iter().zip(&vars).take(own).map(|((n, _), v)| (n.clone(), v.clone())).collect());
        let [input, q, k, v] = [0, 1, 2, 3].map(|i| vars[own + i].clone());
        let heads = LayerInputs::new(q, k, v).unwrap().of_layer(input, Some(rotary.angles(0, documents.tokens())));
        let heads = heads.in_documents(Arc::clone(documents));
        (self.mixer.mix(&heads, &params, None, Branches::Both).unwrap(), vars)
    }
}

/// A layer's projections of `tokens` random tokens.
#[derive(Clone)]
struct Layer {
    input: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rotary: Rotary,
}

impl Layer {
    fn new(layer_dims: LayerDims, batch: usize, tokens: usize) -> Layer {
        let LayerDims { heads, kv_heads, width, model_width, .. } = layer_dims;
        Layer {
            input: random(4, &[batch, tokens, model_width], 1.0),
            q: random(1, &[batch, tokens, heads, width], 2.0),
            k: random(2, &[batch, tokens, kv_heads, width], 2.0),
            v: random(3, &[batch, tokens, kv_heads, width], 1.0),
            rotary: Rotary::new(width, 100.0),
        }
    }

    /// The same with input, q, k and v changed.
    fn map(&self, f: impl Fn(&Tensor, &'static str) -> Tensor) -> Layer {
        let [input, q, k, v] = [(&self.input, "input"), (&self.q, "q"), (&self.k, "k"), (&self.v, "v")];
        Layer {
            input: f(input.0, input.1),
            q: f(q.0, q.1),
            k: f(k.0, k.1),
            v: f(v.0, v.1),
            rotary: self.rotary.clone(),
        }
    }

    fn part(&self, from: usize, n: usize) -> LayerInputs {
        let cut = |x: &Tensor| Var::from(x.narrow(1, from, n).unwrap().contiguous().unwrap());
        let heads = LayerInputs::new(cut(&self.q), cut(&self.k), cut(&self.v)).unwrap();
        heads.of_layer(cut(&self.input), Some(self.rotary.angles(from, n)))
    }

    fn whole(&self) -> LayerInputs {
        self.part(0, self.q.dim(1).unwrap())
    }
}

fn close(what: &str, got: &Tensor, want: &Tensor) {
    let d = difference(got, want);
    assert!(d < TOLERANCE, "{what}: differs by {d:.1e}");
}
