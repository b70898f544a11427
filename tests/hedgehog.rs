//! The hedgehog mixer against an independent PyTorch form (fixtures of tests/python/hedgehog_fixtures.py).

mod common;

use candle_core::Tensor;
use common::{difference, random};
use std::collections::BTreeMap;
use subquad::checkpoint::load_tensors;
use subquad::mixer::{self, Branches, Combine, LayerDims, LayerInputs, Mixer, Options, Params, Window};
use subquad::ops::Tape;

fn build(sizes: LayerDims, half: usize, window: Option<usize>) -> Box<dyn Mixer> {
    let registration = mixer::find("hedgehog").unwrap();
    let given = serde_json::json!({ "feature_width": half, "output_scale": false });
    let options = Options::new(registration.options, given.as_object().unwrap()).unwrap();
    (registration.build)(&options, sizes, window.map(|size| Window { size, sinks: 0, combine: Combine::Joint }))
        .unwrap()
}

fn layer_dims(heads: usize, kv_heads: usize, width: usize) -> LayerDims {
    LayerDims { heads, kv_heads, width, model_width: heads * width, layer: 0, layers: 1 }
}

fn close(what: &str, got: &Tensor, want: &Tensor) {
    let d = difference(got, want);
    // Gradients that are zero in exact arithmetic have no relative error.
    assert!(d < 3e-5 || common::largest(got, want) < 2e-6, "{what} differs by {d:.1e}");
}

fn against_pytorch(case: &str) {
    let path = format!("{}/tests/fixtures/hedgehog_{case}.safetensors", env!("CARGO_MANIFEST_DIR"));
    let x: BTreeMap<String, Tensor> = load_tensors(path.as_ref()).unwrap().0;
    let (q, k) = (&x["q"], &x["k"]);
    let sizes = layer_dims(q.dim(2).unwrap(), k.dim(2).unwrap(), q.dim(3).unwrap());
    let window = x["window"].to_vec1::<u32>().unwrap()[0] as usize;
    let mixer = build(sizes, x["w_q"].dim(2).unwrap(), (window > 0).then_some(window));
    let names = [("q_map", "w_q"), ("k_map", "w_k"), ("window_factor", "factor")];
    let names = || names.iter().filter(|(_, theirs)| x.contains_key(*theirs));
    let bind = |tape: &Tape| {
        let params = Params(names().map(|(ours, theirs)| (ours.to_string(), tape.leaf(x[*theirs].clone()))).collect());
        (LayerInputs::new(tape.leaf(q.clone()), tape.leaf(k.clone()), tape.leaf(x["v"].clone())).unwrap(), params)
    };
    let tape = Tape::new();
    let (heads, params) = bind(&tape);
    let output = mixer.mix(&heads, &params, None, Branches::Both).unwrap();
    close("output", output.value(), &x["output"]);
    let mut grads = tape.backward(vec![(&output, x["output_gradient"].clone())]).unwrap();
    for (name, var) in [("q", &heads.q), ("k", &heads.k), ("v", &heads.v)] {
        close(&format!("{case}: gradient of {name}"), &grads.take(var).unwrap(), &x[&format!("grad.{name}")]);
    }
    for (ours, theirs) in names() {
        close(
            &format!("{case}: gradient of {theirs}"),
            &grads.take(&params.0[*ours]).unwrap(),
            &x[&format!("grad.{theirs}")],
        );
    }

    let tape = Tape::new();
    let (heads, params) = bind(&tape);
    let (output, loss) = mixer.transfer(&heads, &params, true).unwrap();
    close("output of the transfer", output.value(), &x["output"]);
    let loss = loss.unwrap();
    close("weights loss", &loss.value().reshape(1).unwrap(), &x["weights_loss"]);
    let mut grads = tape.backward(vec![(&loss, Tensor::new(1f32, &candle_core::Device::Cpu).unwrap())]).unwrap();
    for (ours, theirs) in names() {
        let got = grads.take(&params.0[*ours]).unwrap();
        close(&format!("{case}: weights gradient of {theirs}"), &got, &x[&format!("weights_grad.{theirs}")]);
    }
}

#[test]
fn pytorch_window() {
    for case in ["window1", "window5", "window64", "short"] {
        against_pytorch(case);
    }
}

#[test]
fn pytorch_without_window() {
    for case in ["linear", "linear_long", "clamped"] {
        against_pytorch(case);
    }
}

#[test]
fn branches_can_be_switched_off() {
    let sizes = layer_dims(2, 1, 8);
    let (q, k, v) = (random(1, &[1, 40, 2, 8], 2.0), random(2, &[1, 40, 1, 8], 2.0), random(3, &[1, 40, 1, 8], 1.0));
    let heads = LayerInputs::new(q.into(), k.into(), v.into()).unwrap();
    let mixer = build(sizes, 8, Some(8));
    let params = Params(
        mixer
            .tensors()
            .into_iter()
            .map(|t| (t.name.to_string(), t.initial.tensor(t.name, &t.shape, 0).unwrap().into()))
            .collect(),
    );
    let run = |b| mixer.mix(&heads, &params, None, b).unwrap().value().clone();
    let (both, window, linear) = (run(Branches::Both), run(Branches::WindowOnly), run(Branches::LinearOnly));
    let first = |x: &Tensor, from, n| x.narrow(1, from, n).unwrap();
    // The window alone sees the same first 8 tokens as both; the linear branch alone nothing of them.
    close("first window", &first(&both, 0, 8), &first(&window, 0, 8));
    assert_eq!(common::largest(&first(&linear, 0, 8), &first(&linear, 0, 8).zeros_like().unwrap()), 0.0);
    assert!(difference(&first(&window, 8, 32), &first(&both, 8, 32)) > 1e-2);
    assert!(difference(&first(&linear, 8, 32), &first(&both, 8, 32)) > 1e-2);
}
