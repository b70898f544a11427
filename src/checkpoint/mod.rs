//! Models on disk: a folder in the Hugging Face layout, opened by its headers alone, read one tensor at a time,
//! and written so that an interruption leaves nothing half done.
//!
//! What is read here was made by others: every length, offset, name and shape is checked at this door, and nothing
//! behind it checks again.

mod atomic;
mod builtin;
mod device;
mod digest;
mod files;
mod header;
mod hub_id;
mod index;
mod links;
mod location;
mod numbers;
mod open;
mod own;
mod tensors;
mod words;
mod writer;

pub use atomic::write_atomically;
pub use builtin::{BUILTINS, Builtin};
pub use device::device;
pub use files::{Files, Head};
pub use hub_id::{HubId, is_hub_id};
pub use location::Location;
pub use open::{Checkpoint, TensorInfo};
pub use tensors::{load_tensors, save_tensors, tensors_digest, values};
pub use writer::Writer;

pub(crate) use digest::{file_digest, file_digests, hex};
pub(crate) use links::within;
pub(crate) use numbers::place_in;
#[cfg(feature = "hub")]
pub(crate) use own::create_anew;
pub(crate) use own::{open_or_create, partial};
pub(crate) use words::{nearest, shown};

/// The weights of a checkpoint in one file.
pub const WEIGHTS: &str = "model.safetensors";
/// The list of shards of a checkpoint in several files.
pub const INDEX: &str = "model.safetensors.index.json";
/// The description of a model.
pub const CONFIG: &str = "config.json";
/// Extensions of files that are read as texts: plain ones, and JSON lines.
pub const TEXTS: [&str; 5] = ["txt", "text", "md", "jsonl", "ndjson"];
