//! One optimiser step of attention transfer and of LoRA on books-llama-7m (B 4, T 512, f32, window 64), beside the same
//! step in PyTorch on the same cores in the same run.
//!
//! ```text
//! cargo bench --bench steps                                  # ours alone
//! PYTHON=path/to/python cargo bench --bench steps            # and benches/pytorch/lolcats_step.py, in turns
//! ```
//!
//! Each measurement is a process of its own, so that its peak memory is its own. A speed is reported only when the
//! first losses of both sides agree.

mod common;

use common::models;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Instant;
use subquad::model::{Adapter, Student, Target};
use subquad::stage::{LoraObjective, TransferObjective};
use subquad::train::{AdamW, Objective, Optimizer};

const BATCH: usize = 4;
const SEQUENCE: usize = 512;
const ROUNDS: usize = 3;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(i) = args.iter().position(|a| a == "--measure") {
        return measure(&args[i + 1], args[i + 2].parse().expect("steps"));
    }
    if args.iter().any(|a| a == "--test") {
        return; // `cargo test --benches` only wants it to start
    }
    let me = std::env::current_exe().expect("own path");
    let python = std::env::var("PYTHON").ok();
    for mode in ["attention-transfer", "lora"] {
        let (mut ours, mut theirs) = (vec![], vec![]);
        for _ in 0..ROUNDS {
            ours.push(run(Command::new(&me).args(["--measure", mode, "8"])));
            if let Some(python) = &python {
                let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/pytorch/lolcats_step.py");
                let teacher = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/books-llama-7m");
                theirs.push(run(Command::new(python).args([script, teacher, "--mode", mode, "--steps", "6"])));
            }
        }
        report(mode, "subquad", &ours);
        if !theirs.is_empty() {
            report(mode, "PyTorch", &theirs);
            let (a, b) = (&ours[0]["losses"], &theirs[0]["losses"]);
            for i in 0..3 {
                let (a, b) = (a[i].as_f64().expect("loss"), b[i].as_f64().expect("loss"));
                assert!((a / b - 1.0).abs() < 2e-3, "{mode}: loss {i} is {a}, PyTorch's {b}: no speed is reported");
            }
            let speed = median(&ours, "tokens_per_s") / median(&theirs, "tokens_per_s");
            let memory = median(&ours, "peak_mb") / median(&theirs, "peak_mb");
            println!("{mode:<20} {speed:.2} x PyTorch's speed, {memory:.2} x its memory (losses agree)");
        }
    }
}

fn run(command: &mut Command) -> serde_json::Value {
    let output = command.output().expect("the measuring process starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    serde_json::from_str(text.trim()).unwrap_or_else(|_| panic!("no measurement: {text}{error}"))
}

fn median(all: &[serde_json::Value], key: &str) -> f64 {
    let mut values: Vec<f64> = all.iter().map(|v| v[key].as_f64().expect("number")).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn report(mode: &str, who: &str, all: &[serde_json::Value]) {
    let (speed, memory) = (median(all, "tokens_per_s"), median(all, "peak_mb"));
    println!("{mode:<20} {who:<8} {speed:>7.0} tokens/s  {memory:>6.0} MB peak  (median of {})", all.len());
}

fn measure(mode: &str, steps: usize) {
    subquad::ops::cpu::allocator::keep_freed_memory();
    let model = models::teacher("books-llama-7m");
    let mut student = models::student(&model, Some(64), &[]);
    let ids: Vec<u32> = splitmix64(0, BATCH * SEQUENCE).iter().map(|x| (x % model.spec.vocab as u64) as u32).collect();
    let (groups, lr) = match mode {
        "lora" => {
            let targets = vec![Target::Q, Target::K, Target::V, Target::O];
            let adapter = Adapter { rank: 8, alpha: 16.0, targets: targets.clone() };
            student.adapt(adapter.clone(), &model.spec, 0).unwrap();
            for layer in 0..model.spec.layers {
                for (i, target) in targets.iter().enumerate() {
                    let [name, _] = Adapter::names(&model.spec, layer, *target).expect("the teacher has all of them");
                    let tensor = &student.tensors[&name];
                    let inputs = tensor.dims()[1] as f64;
                    let x = splitmix64(1 + 4 * layer as u64 + i as u64, tensor.elem_count());
                    let values = x.iter().map(|x| {
                        let u = (x >> 40) as f64 / (1u64 << 24) as f64;
                        ((2.0 * u - 1.0) / inputs.sqrt()) as f32
                    });
                    let values: Vec<f32> = values.collect();
                    let new = candle_core::Tensor::from_vec(values, tensor.dims(), tensor.device()).unwrap();
                    student.tensors.insert(name, new);
                }
            }
            (LoraObjective::trained(&student, &model, &adapter, false, 0.0), 1e-4)
        }
        _ => (TransferObjective::trained(&student, 0.0), 1e-2),
    };
    let objective: Box<dyn Objective> = match mode {
        "lora" => Box::new(LoraObjective::new(&model, 1.0, false, &groups)),
        _ => Box::new(TransferObjective { model: &model, output: 1000.0, weights: 0.0 }),
    };
    let settings = Optimizer { lr, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0, clip: None };
    let mut optimizer = AdamW::new(settings, groups);
    let mut losses = vec![];
    let mut step = |student: &mut Student| {
        let (loss, gradients) = objective.gradients(student, &ids, BATCH).unwrap();
        optimizer.update(&mut student.tensors, &gradients, lr).unwrap();
        losses.push(loss);
    };
    step(&mut student);
    let started = Instant::now();
    (0..steps).for_each(|_| step(&mut student));
    let speed = (steps * BATCH * SEQUENCE) as f64 / started.elapsed().as_secs_f64();
    let result = BTreeMap::from([
        ("tokens_per_s", serde_json::json!(speed)),
        ("peak_mb", serde_json::json!(common::resident_mb("VmHWM"))),
        ("losses", serde_json::json!(losses[..3])),
    ]);
    println!("{}", serde_json::to_string(&result).unwrap());
}

/// The helper's sequence of benches/pytorch/lolcats_step.py.
fn splitmix64(seed: u64, count: usize) -> Vec<u64> {
    let mix = |i: usize| {
        let x = seed.wrapping_add((i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    };
    (0..count).map(mix).collect()
}
