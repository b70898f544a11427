//! Numbers that real models have and that formulas forget: logits in the thousands, gates that are shut, zeros, values of
//! bf16. Outputs, states and gradients stay finite, and the forms agree.

use super::common::{difference, random};
use super::{Case, Layer, TOLERANCE, few, layer_dims, tolerance};
use candle_core::{DType, Tensor};
use subquad::mixer::{CalibrationUpdate, State};
use subquad::ops::{Documents, Tape};

const TOKENS: usize = 70;
/// Rounding moves a logit of ten thousand by a thousandth, and with it the weights of a softmax.
const LARGE: f64 = 1e-3;

/// Collects what is wrong with every mixer before it fails.
#[derive(Default)]
struct Wrong(Vec<String>);

impl Wrong {
    /// Output, states or gradients that are not finite.
    fn not_finite(&mut self, case: &Case, what: &str, x: &Layer) {
        let (batch, tokens, ..) = x.q.dims4().unwrap();
        let mut state = State::default();
        let output = case.mix(&x.whole(), Some(&mut state));
        let mut all = vec![("output".to_string(), output)];
        all.extend(state.tensors.iter().map(|(name, t)| (format!("state {name}"), t.clone())));
        let named = case.named(x);
        let tape = Tape::new();
        let (o, vars) = case.of(&named, &x.rotary, &Documents::whole(batch, tokens), Some(&tape));
        let up = random(99, o.value().dims(), 1.0);
        let mut gradients = tape.backward(vec![(&o, up)]).unwrap();
        for ((name, _), var) in named.iter().zip(&vars) {
            all.extend(gradients.take(var).map(|g| (format!("gradient of {name}"), g)));
        }
        let finite = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|x| x.is_finite());
        let bad: Vec<String> = all.into_iter().filter(|(_, t)| !finite(t)).map(|(name, _)| name).collect();
        if !bad.is_empty() {
            self.0.push(format!("{}, {what}: not finite: {}", case.what, bad.join(", ")));
        }
    }

    fn none(self) {
        assert!(self.0.is_empty(), "{}", self.0.join("\n"));
    }
}

fn times(x: &Tensor, by: f64) -> Tensor {
    (x * by).unwrap()
}

#[test]
fn large_inputs() {
    let layer_dims = layer_dims(4, 2, 8, 2);
    let x = Layer::new(layer_dims, 1, TOKENS);
    let all = |by: f64| x.map(|t, _| times(t, by));
    let logits = x.map(|t, name| if ["q", "k"].contains(&name) { times(t, 500.0) } else { t.clone() });
    let mut wrong = Wrong::default();
    for (m, window) in few() {
        let case = Case::new(m, layer_dims, window);
        for (what, x) in [("all x 30", &all(30.0)), ("all x 300", &all(300.0)), ("q and k x 500", &logits)] {
            wrong.not_finite(&case, what, x);
            case.agrees(x, &[33], LARGE);
        }
    }
    wrong.none();
}

#[test]
fn saturated_gates() {
    let layer_dims = layer_dims(4, 2, 8, 2);
    let x = Layer::new(layer_dims, 1, TOKENS);
    let mut wrong = Wrong::default();
    for (m, window) in few() {
        let start = Case::new(m, layer_dims, window);
        let calibration_params = start.mixer.calibration_params();
        let gate = |name: &str| {
            name.ends_with("bias")
                || calibration_params.iter().any(|k| k.tensor == name && k.update == CalibrationUpdate::Set)
        };
        for i in (0..start.tensors.len()).filter(|&i| gate(&start.tensors[i].0)) {
            for value in [30.0, -30.0, 100.0, -100.0] {
                let mut case = Case::new(m, layer_dims, window);
                let (name, tensor) = &mut case.tensors[i];
                *tensor = tensor.affine(0.0, value).unwrap();
                let what = format!("{name} = {value}");
                case.what += &format!(" with {what}");
                wrong.not_finite(&case, &what, &x);
                case.agrees(&x, &[33], TOLERANCE);
            }
        }
    }
    wrong.none();
}

#[test]
fn zeros() {
    let layer_dims = layer_dims(4, 2, 8, 2);
    let mut wrong = Wrong::default();
    for (m, window) in few() {
        let case = Case::new(m, layer_dims, window);
        for silent in ["input", "q", "k", "v", "everything"] {
            let zero = |name: &str| name == silent || silent == "everything";
            let part = |t: &Tensor, name: &'static str| if zero(name) { t.zeros_like().unwrap() } else { t.clone() };
            let x = Layer::new(layer_dims, 1, TOKENS).map(part);
            wrong.not_finite(&case, &format!("{silent} zero"), &x);
            case.agrees(&x, &[33], tolerance(m));
        }
    }
    wrong.none();
}

/// Inputs and tensors that went through bf16, as those of a checkpoint do: few digits, equal numbers. They are computed
/// with in f32, and make no more difference than their rounding.
#[test]
fn values_of_bf16() {
    let layer_dims = layer_dims(4, 2, 8, 2);
    let rounded = |t: &Tensor| t.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
    for (m, window) in few() {
        let (mut case, x) = (Case::new(m, layer_dims, window), Layer::new(layer_dims, 1, TOKENS));
        let exact = case.mix(&x.whole(), None);
        let x = x.map(|t, _| rounded(t));
        case.tensors.iter_mut().for_each(|(_, t)| *t = rounded(t));
        case.agrees(&x, &[33], TOLERANCE);
        let d = difference(&case.mix(&x.whole(), None), &exact);
        assert!(d < 2e-2, "{}: differs by {d:.1e}", case.what);
    }
}

/// Inputs of bf16 themselves: operators compute with them in f32 and give bf16 back, so that every operator rounds once.
#[test]
fn inputs_of_bf16() {
    let layer_dims = layer_dims(4, 2, 8, 2);
    for (m, window) in few() {
        let (case, x) = (Case::new(m, layer_dims, window), Layer::new(layer_dims, 1, TOKENS));
        let short = x.map(|t, _| t.to_dtype(DType::BF16).unwrap());
        let (got, want) = (case.mix(&short.whole(), None), case.mix(&x.whole(), None));
        assert_eq!(got.dtype(), DType::BF16, "{}", case.what);
        let d = difference(&got, &want);
        assert!(d < 5e-2, "{}: differs by {d:.1e}", case.what);
    }
}
