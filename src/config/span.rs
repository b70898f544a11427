//! The place where something was written.

use std::ops::Range;

/// The place where a value was written.
#[derive(Debug, Clone, PartialEq)]
pub enum Span {
    /// Bytes of the text.
    Text(Range<usize>),
    /// The `--set` argument, as typed.
    Set(String),
    /// Nowhere: something that is missing altogether.
    Nowhere,
}
