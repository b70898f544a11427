//! Time and memory per token of the hedgehog mixer, forward and backward, against the length of the text: both must
//! stay the same from 512 to 8,192 tokens. Softmax attention of the same heads stands beside it.
//!
//! ```text
//! cargo bench --bench length
//! ```

mod common;

use common::models;

use candle_core::{Device, Tensor};
use std::time::Instant;
use subquad::mixer::{Branches, LayerDims, LayerInputs, Mixer, Params, Softmax};
use subquad::ops::{Tape, Var};

const SIZES: LayerDims = LayerDims { heads: 4, kv_heads: 2, width: 64, model_width: 256, layer: 0, layers: 6 };

fn main() {
    if let (Some(mixer), Some(tokens)) = (common::argument("--measure"), common::argument("--tokens")) {
        return measure(&mixer, tokens.parse().expect("a number"));
    }
    if std::env::args().any(|a| a == "--test") {
        return;
    }
    println!("forward + backward of one layer, H 4, G 2, K = V = 64, B 1, f32");
    println!("{:<22} {:>7} {:>14} {:>16}", "mixer", "tokens", "us per token", "KB per token");
    for mixer in ["hedgehog", "hedgehog + window 64", "softmax"] {
        for tokens in [512, 1024, 2048, 4096, 8192] {
            println!("{}", common::child(&["--measure", mixer, "--tokens", &tokens.to_string()]));
        }
    }
}

fn measure(name: &str, tokens: usize) {
    subquad::ops::cpu::allocator::keep_freed_memory();
    let window = name.contains("window").then_some(64);
    let softmax = Softmax::new(SIZES);
    let model = models::teacher("books-llama-7m");
    let student = models::student(&model, window, &[]);
    let mixer: &dyn Mixer = if name == "softmax" { &softmax } else { student.mixer(0) };
    let random = |seed: usize, shape: &[usize]| {
        let n: usize = shape.iter().product();
        let data: Vec<f32> = (0..n).map(|i| ((i * 2654435761 + seed * 97) % 1000) as f32 / 500.0 - 1.0).collect();
        Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
    };
    let q = random(1, &[1, tokens, 4, 64]);
    let (k, v) = (random(2, &[1, tokens, 2, 64]), random(3, &[1, tokens, 2, 64]));
    let step = || {
        let tape = Tape::new();
        let leaf = |x: &Tensor| tape.leaf(x.clone());
        let heads = LayerInputs::new(leaf(&q), leaf(&k), leaf(&v)).unwrap();
        let tensors = mixer.tensors().into_iter();
        let bind = |t: subquad::mixer::NewTensor| {
            let value = t.initial.tensor(t.name, &t.shape, 0).unwrap();
            (t.name.to_string(), if name == "softmax" { Var::constant(value) } else { leaf(&value) })
        };
        let params = Params(tensors.map(bind).collect());
        let output = mixer.mix(&heads, &params, None, Branches::Both).unwrap();
        tape.backward(vec![(&output, q.clone())]).unwrap();
    };
    let before = common::resident_mb("VmHWM");
    step();
    let memory = (common::resident_mb("VmHWM") - before) * 1e3 / tokens as f64;
    let repeats = (32768 / tokens).max(3);
    let mut best = f64::INFINITY;
    for _ in 0..repeats {
        let started = Instant::now();
        step();
        best = best.min(started.elapsed().as_secs_f64());
    }
    println!("{name:<22} {tokens:>7} {:>14.2} {memory:>16.1}", best * 1e6 / tokens as f64);
}
