//! Operators with hand-written gradients: the only door to tensors' arithmetic.
//!
//! Each file holds one operator: its formula, shapes, forward and backward. The core operators of attention have the
//! plain recurrence beside them in [`mod@reference`], written in candle's differentiable operations; the shared suite in
//! `tests/operators` compares the two. Shape letters are those of the crate's front page.

mod autograd;
mod basic;
pub mod cpu;
mod layout;
mod sequence;

pub use autograd::tape;
pub(crate) use autograd::{formulas, operator};
pub use basic::*;
pub use layout::{attention_mask, documents};
pub use sequence::*;

pub use attention_mask::{AttentionMask, KvLayout, Span};
pub use documents::Documents;
pub use tape::{Gradients, Tape, Var};
