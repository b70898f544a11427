//! The program as a user meets it: whole commands, with status, stdout and stderr, and what is left on disk.
//!
//! What they print is kept in `tests/cli/snapshots`; `SUBQUAD_BLESS=1 cargo test --release --test cli` writes it again.

mod adapters;
mod commands;
mod conversion;
mod damaged;
mod refused;
mod stopped;
mod sweep;
mod teachers;
mod transcript;
