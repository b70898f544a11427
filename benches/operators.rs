//! The core operators A to D, forward and backward, at B 1, H 4, K = V = 64, f32: against the same formula
//! in PyTorch, against the time of their own matrix products, and against the length of the text.
//!
//! ```text
//! cargo bench --bench operators                                  # ours alone
//! PYTHON=path/to/python cargo bench --bench operators            # and benches/pytorch/operators.py, in turns
//! cargo bench --bench operators -- --threads 1                   # both sides on one thread instead of two
//! ```
//!
//! PyTorch's threads wait for each other after every operation: where anything else runs on the machine, two of them
//! are slower than one, and one thread each is the fair comparison.
//!
//! A time is reported only when output and gradients of both sides agree on the same inputs. Each measurement is a
//! process of its own; times are the least of several.
//!
//! The operators' own products are those of the chunked algorithm. With C = K = V = 64 every product of a chunk is one
//! of 64 x 64 x 64; causal ones (marked ') and triangular solves need half of it. S, R: state and its gradient; forward,
//! then backward, per chunk and head:
//!
//! ```text
//! A, B, C   3: q k^T', A v', q S, k^T v                      + 6: do S^T, v R^T, k R, q^T do, do v^T', dA k',
//!                                                                 dA^T q', A^T do'
//! D         5: k k^T', k S, solve', k^T y, q k^T', A y',     + 10.5: y R^T, k R, do S^T, q^T do, e S^T, k^T e, q k^T',
//!              q S                                                A^T do', do y^T', dA k', dA^T q', solve', e y^T',
//!                                                                 dM k', dM^T k'
//! DPLR      8: a k^T', a b^T', A v', a S, solve', k^T v,     + 17.5: v R^T, y R^T, k R, b R, do S^T, q^T do, w S^T,
//!              b^T y, q k^T', q b^T', A v', A y', q S             a^T w, solve', a k^T', A^T w'; twice q x^T',
//!                                                                 A^T do', do y^T', dA x', dA^T q'; twice w y^T',
//!                                                                 dA x', dA^T a'
//! ```

mod common;

use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::process::Command;
use std::time::Instant;
use subquad::ops::cpu::matrix::{Mat, MatMut};
use subquad::ops::delta_rule::delta_rule;
use subquad::ops::dplr::dplr;
use subquad::ops::gated_linear_attention::gated_linear_attention;
use subquad::ops::linear_attention::linear_attention;
use subquad::ops::normalize::normalize;
use subquad::ops::{Documents, KvLayout, Tape, Var};

const HEADS: usize = 4;
const WIDTH: usize = 64;
const TOKENS: usize = 2048;
const LENGTHS: [usize; 4] = [512, 2048, 8192, 32768];
const ROUNDS: usize = 3;

/// Names, and products of 64 x 64 x 64 per chunk and head.
const OPERATORS: [(&str, f64); 7] = [
    ("linear", 9.0),
    ("scalar decay", 9.0),
    ("vector decay", 9.0),
    ("delta", 15.5),
    ("delta, scalar gate", 15.5),
    ("delta, vector gate", 15.5),
    ("dplr", 25.5),
];

fn main() {
    if std::env::args().any(|a| a == "--test") {
        return; // `cargo test --benches` only wants it to start
    }
    let threads: usize = common::argument("--threads").map_or(2, |n| n.parse().expect("a number"));
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("the first pool");
    if let (Some(operator), Some(tokens)) = (common::argument("--measure"), common::argument("--tokens")) {
        return measure(&operator, tokens.parse().expect("a number"));
    }
    if std::env::args().any(|a| a == "--products") {
        return measure_products(threads);
    }
    let only = common::argument("--only");
    let chosen = || OPERATORS.iter().filter(|o| only.as_ref().is_none_or(|only| only == o.0));
    println!(
        "forward + backward, B 1, T {TOKENS}, H {HEADS}, K = V = {WIDTH}, f32, {threads} threads; least of {ROUNDS} rounds"
    );
    let python = std::env::var("PYTHON").ok();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("operator.safetensors");
    let file = file.to_str().expect("a plain path");
    println!(
        "{:<20} {:>8} {:>9} {:>6} {:<10} {:>12} {:>6} {:>12} {:>6}",
        "operator", "ms", "PyTorch", "times", "form", "products ms", "times", "as 64-cubes", "times"
    );
    for (name, products) in chosen() {
        let (mut ours, mut theirs, mut form) = (f64::INFINITY, f64::INFINITY, String::new());
        let (mut large, mut small) = (0.0f64, 0.0f64);
        for _ in 0..ROUNDS {
            let x = child(threads, &["--measure", name, "--tokens", &TOKENS.to_string(), "--save", file]);
            ours = ours.min(x["ms"].as_f64().expect("ms"));
            let rate = child(threads, &["--products"]);
            large = large.max(rate["large"].as_f64().expect("rate"));
            small = small.max(rate["small"].as_f64().expect("rate"));
            let Some(python) = &python else { continue };
            let y = pytorch(threads, python, name, file);
            for (key, value) in y["differences"].as_object().expect("differences") {
                let d = value.as_f64().unwrap_or(f64::NAN);
                assert!(d < 1e-3, "{name}: {key} differs from PyTorch's by {d:.1e}: no time is reported");
            }
            for (key, ms) in y["ms"].as_object().expect("times") {
                let ms = ms.as_f64().expect("ms");
                if ms < theirs {
                    (theirs, form) = (ms, key.clone());
                }
            }
        }
        let gflop = products * (TOKENS.div_ceil(64) * HEADS) as f64 * 2.0 * 64f64.powi(3) / 1e9;
        let (at_large, at_small) = (gflop / large * 1e3, gflop / small * 1e3);
        println!(
            "{name:<20} {ours:>8.2} {theirs:>9.1} {:>6.1} {form:<10} {at_large:>12.2} {:>6.2} {at_small:>12.2} {:>6.2}",
            theirs / ours,
            ours / at_large,
            ours / at_small
        );
    }
    println!();
    println!("{:<20} {:>8} {:>14} {:>14}", "operator", "tokens", "us per token", "KB per token");
    for (name, _) in chosen() {
        for tokens in LENGTHS {
            let x = child(threads, &["--measure", name, "--tokens", &tokens.to_string()]);
            let (ms, kb) = (x["ms"].as_f64().expect("ms"), x["kb_per_token"].as_f64().expect("kb"));
            println!("{name:<20} {tokens:>8} {:>14.2} {kb:>14.1}", ms * 1e3 / tokens as f64);
        }
    }
}

fn child(threads: usize, args: &[&str]) -> serde_json::Value {
    let threads = threads.to_string();
    serde_json::from_str(&common::child(&[args, &["--threads", &threads]].concat())).expect("a measurement")
}

fn pytorch(threads: usize, python: &str, operator: &str, file: &str) -> serde_json::Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/pytorch/operators.py");
    let threads = threads.to_string();
    let args = [script, file, "--operator", operator, "--threads", &threads];
    let output = Command::new(python).args(args).output().expect("python starts");
    let (text, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(text.trim()).unwrap_or_else(|_| panic!("no measurement: {text}{error}"))
}

/// Uniform numbers in 0..1, the same in every process.
fn uniform(seed: u64, shape: &[usize]) -> Tensor {
    use rand::{RngExt, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let data: Vec<f32> = (0..shape.iter().product::<usize>()).map(|_| rng.random()).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).expect("a tensor")
}

/// Names and values of an operator's inputs: keys and low ranks of unit length, features positive, gates -0.3..0.
fn inputs(operator: &str, tokens: usize) -> Vec<(&'static str, Tensor)> {
    let wide = [1, tokens, HEADS, WIDTH];
    let narrow = [1, tokens, HEADS, 1];
    let centred = |seed| uniform(seed, &wide).affine(2.0, -1.0).expect("arithmetic");
    let unit = |seed| {
        let x: Tensor = centred(seed);
        let length = x.sqr().and_then(|x| x.sum_keepdim(3)).and_then(|x| x.sqrt()).expect("arithmetic");
        x.broadcast_div(&length).expect("arithmetic")
    };
    let gate = |shape: &[usize]| (uniform(5, shape) * -0.3).expect("arithmetic");
    let mut all = match operator {
        "linear" => vec![("q", uniform(1, &wide)), ("k", uniform(2, &wide))],
        _ => vec![("q", centred(1)), ("k", unit(2))],
    };
    all.push(("v", centred(3)));
    match operator {
        "scalar decay" | "delta, scalar gate" => all.push(("gate", gate(&narrow))),
        "vector decay" | "delta, vector gate" | "dplr" => all.push(("gate", gate(&wide))),
        _ => {}
    }
    match operator {
        "dplr" => all.extend([("a", (unit(6) * -1.0).expect("arithmetic")), ("b", unit(7))]),
        name if name.starts_with("delta") => all.push(("beta", uniform(6, &narrow))),
        _ => {}
    }
    all
}

fn run(operator: &str, x: &HashMap<&str, Var>, documents: &std::sync::Arc<Documents>) -> Var {
    let (q, k, v, gate) = (&x["q"], &x["k"], &x["v"], x.get("gate"));
    let output = match operator {
        "linear" => linear_attention(q, k, v, None, documents, &KvLayout::none(1), None)
            .and_then(|o| normalize(&o.num, &o.den, 1e-6)),
        "dplr" => dplr((q, k, v), (&x["a"], &x["b"]), gate, None, documents).map(|o| o.0),
        name if name.starts_with("delta") => delta_rule(q, k, v, &x["beta"], gate, None, documents).map(|o| o.0),
        _ => gated_linear_attention(q, k, v, gate, None, None, documents).map(|o| o.0),
    };
    output.expect("the operator runs")
}

fn measure(operator: &str, tokens: usize) {
    subquad::ops::cpu::allocator::keep_freed_memory();
    let inputs = inputs(operator, tokens);
    let up = (uniform(9, &[1, tokens, HEADS, WIDTH]) - 0.5).expect("arithmetic");
    let documents = Documents::whole(1, tokens);
    let step = || {
        let tape = Tape::new();
        let vars: HashMap<&str, Var> = inputs.iter().map(|(name, x)| (*name, tape.leaf(x.clone()))).collect();
        let output = run(operator, &vars, &documents);
        let mut gradients = tape.backward(vec![(&output, up.clone())]).expect("a backward pass");
        let gradients: Vec<_> = inputs.iter().map(|(name, _)| gradients.take(&vars[name]).expect("gradient")).collect();
        (output, gradients)
    };
    let before = common::resident_mb("VmHWM");
    let (output, gradients) = step();
    let memory = (common::resident_mb("VmHWM") - before) * 1e3 / tokens as f64;
    if let Some(file) = common::argument("--save") {
        let mut all: HashMap<String, Tensor> = inputs.iter().map(|(n, x)| (n.to_string(), x.clone())).collect();
        all.extend(inputs.iter().zip(gradients).map(|((name, _), d)| (format!("d{name}"), d)));
        all.extend([("up".to_string(), up.clone()), ("o".to_string(), output.value().clone())]);
        candle_core::safetensors::save(&all, file).expect("a temporary file");
    }
    let mut best = f64::INFINITY;
    let started = Instant::now();
    for i in 0.. {
        let now = Instant::now();
        step();
        best = best.min(now.elapsed().as_secs_f64());
        if i >= 4 && started.elapsed().as_secs_f64() > 1.5 {
            break;
        }
    }
    println!("{}", serde_json::json!({ "ms": best * 1e3, "kb_per_token": memory }));
}

/// GFLOP/s of all threads: each with its own products of 64 x 64 x 64, and with large ones of 768 x 768 x 768.
fn measure_products(threads: usize) {
    let rate = |n: usize, count: usize| {
        let mut best = 0.0f64;
        let buffers: Vec<Vec<f32>> = (0..threads).map(|_| vec![0.5; 2 * n * n]).collect();
        let mut outputs = vec![vec![0.0; n * n]; threads];
        for _ in 0..12 {
            let now = Instant::now();
            std::thread::scope(|scope| {
                for (x, out) in buffers.iter().zip(&mut outputs) {
                    scope.spawn(move || {
                        let (a, b) = (Mat::new(&x[..n * n], n, n), Mat::new(&x[n * n..], n, n));
                        (0..count).for_each(|_| MatMut::new(out, n, n).product(1.0, a, b, 0.0));
                    });
                }
            });
            best =
                best.max(threads as f64 * count as f64 * 2.0 * (n as f64).powi(3) / now.elapsed().as_secs_f64() / 1e9);
        }
        best
    };
    println!("{}", serde_json::json!({ "small": rate(64, 4000), "large": rate(768, 3) }));
}
