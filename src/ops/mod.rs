//! Operators with gradients: the only door to tensors' arithmetic.
//!
//! Each operator has a signature with its checks, a formula in candle's device-neutral operations that any device can run,
//! and hand-written kernels of the CPU, forward and backward; the seam between them is `autograd/operator.rs`. The core
//! operators of attention have the plain recurrence beside them in [`mod@naive`]; the shared suite in `tests/operators`
//! compares all three. Shape letters are those of the crate's front page.

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
