//! Generation: tokens per second and state bytes against the tokens that came before. A converted model's must be flat
//! from 256 to 16,384 tokens of context; its teacher's are not.
//!
//! ```text
//! cargo bench --bench decode
//! ```

mod common;

use common::models;

use std::time::Instant;
use subquad::model::{Session, View};

const CONTEXTS: [usize; 4] = [256, 1024, 4096, 16384];
/// Tokens timed at each context.
const TOKENS: usize = 64;

fn main() {
    if let Some(kind) = common::argument("--measure") {
        return measure(&kind);
    }
    if std::env::args().any(|a| a == "--test") {
        return;
    }
    println!("books-llama-7m, batch 1, f32, greedy; median of {TOKENS} tokens at each context");
    println!("{:<24} {:>8} {:>12} {:>16} {:>14}", "model", "context", "tokens/s", "state bytes", "resident MB");
    for kind in ["hedgehog", "hedgehog + window 64", "teacher (softmax)"] {
        println!("{}", common::child(&["--measure", kind]));
    }
}

fn measure(kind: &str) {
    subquad::ops::cpu::allocator::keep_freed_memory();
    let model = models::teacher("books-llama-7m");
    let student = models::student(&model, kind.contains("window").then_some(64), &[]);
    let view = if kind.starts_with("teacher") { View::teacher(&model) } else { View::student(&model, &student) };
    let mut session = Session::new(view);
    let id = |i: usize| (i * 7919 % model.spec.vocab) as u32;
    for context in CONTEXTS {
        let prompt: Vec<u32> = (session.position()..context).map(id).collect();
        session.feed(&prompt).unwrap();
        let mut times: Vec<f64> = (0..TOKENS)
            .map(|i| {
                let started = Instant::now();
                session.feed(&[id(i)]).unwrap();
                started.elapsed().as_secs_f64()
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let (speed, bytes) = (1.0 / times[TOKENS / 2], session.state_bytes());
        println!("{kind:<24} {context:>8} {speed:>12.0} {bytes:>16} {:>14.1}", common::resident_mb("VmRSS"));
    }
}
