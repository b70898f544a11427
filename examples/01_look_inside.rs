//! Page 1: look inside a teacher.
//!
//!     cargo run --release --example 01_look_inside
//!
//! A Llama of 6.5 million parameters is embedded in the library. We open it, read what it is, ask it for the next word,
//! let it write, and see what its memory of the text costs: that memory is why we are here.

use std::io::Write;

use subquad::Result;
use subquad::arch::Spec;
use subquad::checkpoint::{Checkpoint, Location};
use subquad::model::{Model, Sampler, Session, View};
use subquad::text::Tokenizer;

const PROMPT: &str = "The old man walked slowly down to the";
const WRITTEN: usize = 48;

fn main() -> Result<()> {
    // A location is a folder in the Hugging Face layout, or `builtin:NAME`. Opening it reads headers, no weights.
    let location = Location::resolve("builtin:books-llama-7m", None)?;
    let checkpoint = Checkpoint::open(&location)?;
    println!("{}: {} tensors, {} bytes\n", location, checkpoint.tensors().len(), checkpoint.total_bytes());
    for tensor in checkpoint.tensors().iter().take(4) {
        println!("  {:<44} {:?} {:?}", tensor.name, tensor.dtype, tensor.shape);
    }

    // What `config.json` means, as plain data. The letters are those of the crate's front page.
    let spec = Spec::of(&checkpoint)?;
    println!("\nfamily {}, {} parameters", spec.family, spec.parameters());
    println!("  {} layers of width D = {}", spec.layers, spec.width);
    println!(
        "  H = {} query heads on G = {} key-value heads of width K = {}",
        spec.heads, spec.kv_heads, spec.head_width
    );
    println!("  a vocabulary of {} tokens; trained on texts of {} tokens", spec.vocab, spec.context);

    // The weights, read once and frozen. A view says how they are run: here as the teacher that they are.
    let model = Model::load(&checkpoint, &spec)?;
    let teacher = View::teacher(&model);
    let tokenizer = Tokenizer::open(checkpoint.files(), spec.vocab, spec.eos.first().copied())?;

    // Logits of all positions at once: [B, T, vocab]. The last row scores the words that may come next.
    let ids = tokenizer.encode(PROMPT)?;
    let logits = teacher.logits(&ids, 1)?;
    println!("\n{PROMPT:?} is {} tokens; logits {:?}; most likely next:", ids.len(), logits.dims());
    let last = logits.get(0)?.get(ids.len() - 1)?.to_vec1::<f32>()?;
    let highest = last.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f32 = last.iter().map(|x| (x - highest).exp()).sum();
    let mut order: Vec<u32> = (0..spec.vocab as u32).collect();
    order.sort_by(|&i, &j| last[j as usize].total_cmp(&last[i as usize]));
    for &id in &order[..5] {
        println!("  {:>5.1} %  {:?}", 100.0 * (last[id as usize] - highest).exp() / total, tokenizer.decode(&[id])?);
    }

    // A session takes tokens one after the other and keeps each layer's state. For softmax attention the state is every
    // key and value so far, so it grows with the text, and so does the time for a token.
    let mut session = Session::new(teacher);
    let mut sampler = Sampler::new(0.8, 0.9, 12);
    let mut decoder = tokenizer.decoder();
    let mut logits = session.feed(&ids)?;
    println!("\nIt writes:\n");
    print!("  {PROMPT}");
    for _ in 0..WRITTEN {
        let next = sampler.next(&logits)?;
        print!("{}", decoder.push(next)?.replace('\n', "\n  "));
        std::io::stdout().flush().ok();
        logits = session.feed(&[next])?;
    }
    println!("{}\n", decoder.finish()?);
    println!("State after {} tokens: {} KiB, with room to grow.", session.position(), session.state_bytes() / 1024);
    let row = 2 * spec.layers * spec.kv_heads * spec.head_width * size_of::<f32>();
    println!("Every further token adds {} KiB: {} MiB at 100,000 tokens.", row / 1024, row * 100_000 / (1 << 20));
    println!("Page 2 replaces it by a state of fixed size: cargo run --release --example 02_softmax_to_linear");
    Ok(())
}
