//! Stages of a conversion: what each minimises, and which tensors it trains.

mod attention_transfer;
mod lora;

pub use attention_transfer::AttentionTransfer;
pub use lora::Lora;
