//! Stages of a conversion: one file each, one line in [`STAGES`].
//!
//! A stage says what its keys are, what it needs, what it costs, how it runs and what it has measured; recipe, schema, plan,
//! run and sweep read it through [`Stage`].

pub mod api;
mod attention_transfer;
mod calibrate;
mod cost;
mod evaluate;
mod lora;
mod merge;
mod training;

pub use api::{CheckContext, Measured, Needs, Registration, RunContext, Stage, StageRecipe, Work, WorkContext};
pub use attention_transfer::{AttentionTransfer, TransferObjective};
pub use calibrate::{Calibrate, LayerCalibration, Match, calibrate};
pub use cost::Cost;
pub(crate) use cost::twice;
pub use evaluate::Evaluate;
pub use lora::{Lora, LoraObjective, LoraShape};
pub use merge::Merge;
pub use training::Training;

/// All kinds of stages.
pub static STAGES: &[Registration] = &[
    calibrate::REGISTRATION,
    attention_transfer::REGISTRATION,
    lora::REGISTRATION,
    merge::REGISTRATION,
    evaluate::REGISTRATION,
];
