//! Reads configuration files: TOML to typed values, with every error at once and its place, and the same description
//! as a JSON Schema.
//!
//! Text becomes a tree in which every value knows its span ([`spanned`]), `--set` arguments change the tree
//! ([`overrides`]), and one function per table asks a [`Table`] for its keys by [`ValueType`]. This module knows no
//! key: what a file holds is said by the function handed to [`read`] and [`describe`].

mod amount;
mod diagnostics;
mod form;
mod overrides;
mod render;
mod schema;
mod span;
mod spanned;
mod table;
mod value_type;

pub use amount::Amount;
pub use diagnostics::{Diagnostics, backticked};
pub use form::Form;
pub use render::render;
pub use schema::{extend, owners_of};
pub use span::Span;
pub use spanned::{Spanned, Value};
pub use table::{Table, describe, read, read_at};
pub use value_type::{Choice, Flag, Integer, List, Number, Text, ValueType};

/// The tree of `text` with `--set` arguments applied; `None` when `text` is not TOML, which is then the only error.
/// `example` shows a whole `--set` argument.
pub fn parse(text: &str, sets: &[String], example: &str, diagnostics: &mut Diagnostics) -> Option<Spanned> {
    let mut root = Spanned::parse(text, diagnostics)?;
    overrides::apply(&mut root, sets, example, diagnostics);
    Some(root)
}
