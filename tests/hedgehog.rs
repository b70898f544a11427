//! The hedgehog mixer against an independent PyTorch form (fixtures of tests/python/hedgehog_fixtures.py), and its
//! chunked form against its recurrent one.

mod common;

use candle_core::Tensor;
use common::{difference, random};
use std::collections::BTreeMap;
use subquad::checkpoint::load_tensors;
use subquad::mixer::{self, Bound, Branches, Combine, HeadSizes, Heads, Mixer, Options, State, Window};
use subquad::ops::{Tape, Var};

fn build(sizes: HeadSizes, half: usize, window: Option<usize>) -> Box<dyn Mixer> {
    let registration = mixer::find("hedgehog").unwrap();
    let given = serde_json::json!({ "feature_width": half });
    let options = Options::new(registration.options, given.as_object().unwrap()).unwrap();
    (registration.build)(&options, sizes, window.map(|size| Window { size, combine: Combine::Joint })).unwrap()
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
    let sizes = HeadSizes { heads: q.dim(2).unwrap(), kv_heads: k.dim(2).unwrap(), width: q.dim(3).unwrap() };
    let window = x["window"].to_vec1::<u32>().unwrap()[0] as usize;
    let mixer = build(sizes, x["w_q"].dim(2).unwrap(), (window > 0).then_some(window));
    let names = [("q_map", "w_q"), ("k_map", "w_k"), ("window_factor", "factor")];
    let names = || names.iter().filter(|(_, theirs)| x.contains_key(*theirs));
    let bind = |tape: &Tape| {
        let bound = Bound(names().map(|(ours, theirs)| (ours.to_string(), tape.leaf(x[*theirs].clone()))).collect());
        (Heads { q: tape.leaf(q.clone()), k: tape.leaf(k.clone()), v: tape.leaf(x["v"].clone()) }, bound)
    };
    let tape = Tape::new();
    let (heads, bound) = bind(&tape);
    let output = mixer.mix(&heads, &bound, None, Branches::Both).unwrap();
    close("output", output.value(), &x["output"]);
    let mut grads = tape.backward(vec![(&output, x["output_gradient"].clone())]).unwrap();
    for (name, var) in [("q", &heads.q), ("k", &heads.k), ("v", &heads.v)] {
        close(&format!("{case}: gradient of {name}"), &grads.take(var).unwrap(), &x[&format!("grad.{name}")]);
    }
    for (ours, theirs) in names() {
        close(
            &format!("{case}: gradient of {theirs}"),
            &grads.take(&bound.0[*ours]).unwrap(),
            &x[&format!("grad.{theirs}")],
        );
    }

    let tape = Tape::new();
    let (heads, bound) = bind(&tape);
    let (output, loss) = mixer.transfer(&heads, &bound, true).unwrap();
    close("output of the transfer", output.value(), &x["output"]);
    let loss = loss.unwrap();
    close("weights loss", &loss.value().reshape(1).unwrap(), &x["weights_loss"]);
    let mut grads = tape.backward(vec![(&loss, Tensor::new(1f32, &candle_core::Device::Cpu).unwrap())]).unwrap();
    for (ours, theirs) in names() {
        let got = grads.take(&bound.0[*ours]).unwrap();
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

/// Whole sequence at once = cut in two anywhere = token by token, outputs and states.
#[test]
fn chunked_equals_recurrent_wherever_it_is_cut() {
    let sizes = HeadSizes { heads: 4, kv_heads: 2, width: 8 };
    let (batch, tokens) = (2, 90);
    let (q, k, v) = (
        random(1, &[batch, tokens, 4, 8], 2.0),
        random(2, &[batch, tokens, 2, 8], 2.0),
        random(3, &[batch, tokens, 2, 8], 1.0),
    );
    let part = |from: usize, n: usize| {
        let cut = |x: &Tensor| Var::from(x.narrow(1, from, n).unwrap().contiguous().unwrap());
        Heads { q: cut(&q), k: cut(&k), v: cut(&v) }
    };
    for window in [None, Some(1), Some(16), Some(64), Some(200)] {
        let mixer = build(sizes, 6, window);
        let tensors = mixer.tensors().into_iter().enumerate();
        let bound =
            Bound(tensors.map(|(i, t)| (t.name.to_string(), random(10 + i as u64, &t.shape, 1.0).into())).collect());
        let mut whole_state = State::default();
        let whole = mixer.mix(&part(0, tokens), &bound, Some(&mut whole_state), Branches::Both).unwrap();
        let stateless = mixer.mix(&part(0, tokens), &bound, None, Branches::Both).unwrap();
        close("with and without state", whole.value(), stateless.value());
        for cut in [1, 15, 16, 17, 63, 64, 65, 89] {
            let mut state = State::default();
            let first = mixer.mix(&part(0, cut), &bound, Some(&mut state), Branches::Both).unwrap();
            let second = mixer.mix(&part(cut, tokens - cut), &bound, Some(&mut state), Branches::Both).unwrap();
            let joined = Tensor::cat(&[first.value(), second.value()], 1).unwrap();
            close(&format!("window {window:?}, cut at {cut}"), &joined, whole.value());
        }
        let mut state = State::default();
        let steps: Vec<Tensor> = (0..tokens).map(|i| mixer.step(&part(i, 1), &bound, &mut state).unwrap()).collect();
        close(&format!("steps, window {window:?}"), &Tensor::cat(&steps, 1).unwrap(), whole.value());
        assert_eq!(state.seen, whole_state.seen);
        assert_eq!(state.tensors.keys().collect::<Vec<_>>(), whole_state.tensors.keys().collect::<Vec<_>>());
        for (name, tensor) in &state.tensors {
            close(&format!("state {name}, window {window:?}"), tensor, &whole_state.tensors[name]);
        }
        assert_eq!(state.bytes(), batch * mixer.state_bytes(tokens), "state_bytes tells the truth");
        // A fork goes its own way and leaves the original alone.
        let mut fork = state.fork().unwrap();
        mixer.step(&part(0, 1), &bound, &mut fork).unwrap();
        let before = state.tensors["s"].clone();
        mixer.step(&part(1, 1), &bound, &mut fork).unwrap();
        close("fork", &before, &state.tensors["s"]);
    }
}

#[test]
fn branches_can_be_switched_off() {
    let sizes = HeadSizes { heads: 2, kv_heads: 1, width: 8 };
    let heads = Heads {
        q: random(1, &[1, 40, 2, 8], 2.0).into(),
        k: random(2, &[1, 40, 1, 8], 2.0).into(),
        v: random(3, &[1, 40, 1, 8], 1.0).into(),
    };
    let mixer = build(sizes, 8, Some(8));
    let bound = Bound(
        mixer
            .tensors()
            .into_iter()
            .map(|t| (t.name.to_string(), t.initial.tensor(t.name, &t.shape, 0).unwrap().into()))
            .collect(),
    );
    let run = |b| mixer.mix(&heads, &bound, None, b).unwrap().value().clone();
    let (both, window, linear) = (run(Branches::Both), run(Branches::WindowOnly), run(Branches::LinearOnly));
    let first = |x: &Tensor, from, n| x.narrow(1, from, n).unwrap();
    // The window alone sees the same first 8 tokens as both; the linear branch alone nothing of them.
    close("first window", &first(&both, 0, 8), &first(&window, 0, 8));
    assert_eq!(common::largest(&first(&linear, 0, 8), &first(&linear, 0, 8).zeros_like().unwrap()), 0.0);
    assert!(difference(&first(&window, 8, 32), &first(&both, 8, 32)) > 1e-2);
    assert!(difference(&first(&linear, 8, 32), &first(&both, 8, 32)) > 1e-2);
}
