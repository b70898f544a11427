//! Operators along the tokens of a text: attention, recurrences in chunks, their single steps, and convolutions.

pub mod attention;
pub mod attention_entropy;
pub(crate) mod chunked;
pub mod delta_rule;
pub mod dplr;
pub mod gated_linear_attention;
pub mod linear_attention;
pub mod linear_attention_step;
pub mod mlstm;
pub mod naive;
pub mod prefix_sum;
pub(crate) mod recurrence;
pub mod recurrent_step;
pub mod short_convolution;
pub mod token_shift;
pub mod value_gated_linear_attention;
