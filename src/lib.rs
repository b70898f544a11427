//! subquad turns a pretrained softmax transformer into a linear-time one: it swaps attention for a mixer with a state
//! of fixed size, distils each mixer against the attention that it replaces, recovers quality with low-rank updates,
//! and writes a checkpoint.
//!
//! # The way of a conversion
//! A [`recipe`] describes a conversion; [`plan`] computes its cost from headers alone; [`run`] executes it and resumes where it
//! was stopped.
//!
//! ```text
//! checkpoint, arch    headers -> Spec: what the teacher is, as plain data
//! model               its weights, frozen and shared; a student adds only its mixers' own tensors
//! stage               attention transfer: each layer on the teacher's own inputs, no gradient crosses layers
//!                     LoRA: next-token labels, end to end, one layer's graph at a time
//! evaluate            the student, its teacher, and the controls that switch a branch off
//! export              merged weights, tokenizer, recipe; opened again and compared with what is in memory
//! ```
//!
//! # The house
//! Lowest first; a module uses only what stands above it in this list (`tests/layers.rs` holds the order):
//!
//! - [`error`]: the one error type: what, where, and what to do. [`progress`]: progress and cancellation.
//! - [`checkpoint`]: models on disk, read by their headers, written whole or not at all. [`hub`]: models and texts from the
//!   Hugging Face Hub and to it. [`ops`]: operators with
//!   hand-written gradients on the CPU, the recurrences that define them, and the tape that runs them backward.
//! - `config`: TOML to typed data, all errors at once with their places, `--set`, JSON Schema; it knows no key.
//! - [`mixer`]: mechanisms that replace softmax; one file each and one line in [`mixer::MIXERS`]. [`text`]: documents,
//!   tokens, training windows.
//! - [`arch`]: families of teachers; one file each and one line in [`arch::FAMILIES`]. [`model`]: the one decoder for
//!   every [`arch::Spec`], with taps on each layer, sessions for generation, and adapters.
//! - [`train`]: AdamW, schedules, the layer-by-layer backward pass, the loop.
//! - [`stage`], [`evaluate`], [`export`]: what a conversion is made of.
//! - [`recipe`]: the tables of a recipe, read by `config` to typed data and described as a JSON Schema.
//! - [`plan`], [`run`], [`sweep`], [`cli`]: what will be done, doing it, with each mixer in turn, saying it.
//!
//! # Shapes
//! These letters mean the same everywhere, in names, docs and errors:
//!
//! | letter | meaning | letter | meaning |
//! |---|---|---|---|
//! | `B` | batch | `K` | key width of a head |
//! | `T` | tokens | `V` | value width of a head; `K` in the teachers that we know |
//! | `H` | query heads | `F` | features of a head |
//! | `G` | key-value heads; `H / G` query heads share one | `D` | model width |
//! | `C` | chunk | `S`, `z` | state `[F, V]` and normaliser `[F]` of a head |
//!
//! Tensors are token-major, `[B, T, H, K]`: a projection's output is used as it comes and nothing is transposed.
//! Weights are `[out, in]`. Everything is computed in f32.
//!
//! # A first program
//! ```
//! use subquad::arch::Spec;
//! use subquad::checkpoint::{Checkpoint, Location};
//! use subquad::model::{Model, Sampler, Session, View};
//! use subquad::text::Tokenizer;
//!
//! let checkpoint = Checkpoint::open(&Location::resolve("builtin:stories260K", None)?)?;
//! let spec = Spec::of(&checkpoint)?;
//! let model = Model::load(&checkpoint, &spec)?;
//! let tokenizer = Tokenizer::open(checkpoint.files(), spec.vocab, None)?;
//!
//! let mut session = Session::new(View::teacher(&model));
//! let mut sampler = Sampler::new(0.0, 1.0, 0);
//! let mut ids = tokenizer.encode("Once upon a time, there was a little girl")?;
//! let mut logits = session.feed(&ids)?;
//! for _ in 0..8 {
//!     ids.push(sampler.next(&logits)?);
//!     logits = session.feed(&ids[ids.len() - 1..])?;
//! }
//! assert!(tokenizer.decode(&ids)?.contains("named Lily"));
//! # Ok::<(), subquad::Error>(())
//! ```
//! `examples/` goes on from here, page by page.

pub mod arch;
pub mod checkpoint;
pub mod cli;
mod config;
pub mod error;
pub mod evaluate;
pub mod export;
pub mod hub;
pub mod mixer;
pub mod model;
pub mod ops;
pub mod plan;
pub mod progress;
pub mod recipe;
pub mod run;
pub mod stage;
pub mod sweep;
pub mod text;
pub mod train;

pub use error::{Error, Result};

/// The program of README.md compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
