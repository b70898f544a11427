//! Operators with hand-written gradients: the only door to tensors' arithmetic.
//!
//! Each file holds one operator: its formula, shapes, forward and backward. The core operators of attention have the
//! plain recurrence beside them in [`mod@reference`], written in candle's differentiable operations; the shared suite in
//! `tests/operators` compares the two. Shape letters are those of the crate's front page.

pub mod adamw;
pub mod attention;
pub mod attention_entropy;
pub mod blend;
pub mod broadcast;
pub mod cpu;
pub mod delta_rule;
pub mod documents;
pub mod dplr;
pub mod elementwise;
pub mod experts;
pub mod feature_map;
pub mod gated_linear_attention;
pub mod head;
pub mod head_linear;
pub mod linear;
pub mod linear_attention;
pub mod linear_attention_step;
pub mod map;
pub mod mlstm;
pub mod norm;
mod operator;
pub mod polynomial;
pub mod prefix_sum;
pub mod quotient;
mod recurrence;
pub mod recurrent_step;
pub mod reference;
pub mod rope;
pub mod row_max;
pub mod shape;
pub mod short_convolution;
pub mod sight;
pub mod softmax;
pub mod stabilise;
pub mod statistics;
pub mod tape;
pub mod token_shift;
pub mod value_gated_linear_attention;

pub use documents::Documents;
pub use sight::{Past, Sight, Span};
pub use tape::{Gradients, Tape, Var};
