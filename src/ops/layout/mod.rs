//! The layout of a batch: documents within rows, keys that a query sees, keys before a call.

pub mod attention_mask;
pub mod documents;
pub(crate) mod gather;
