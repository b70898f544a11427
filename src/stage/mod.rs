//! Stages of a conversion: what each minimises, and which tensors it trains.

mod attention_transfer;
mod calibrate;
mod lora;

pub use attention_transfer::AttentionTransfer;
pub use calibrate::{LayerCalibration, Match, calibrate};
pub use lora::Lora;
