//! Merging: the low-rank updates become part of the weights.

use super::api::{Measured, Needs, Registration, RunContext, Stage, StageRecipe, Work, WorkContext};
use super::cost::{Cost, twice};
use crate::Result;
use crate::model::{Model, Student};
use serde_json::{Value, json};

pub(super) const REGISTRATION: Registration = Registration {
    kind: "merge",
    about: "the low-rank updates become part of the weights",
    read: |_, _| StageRecipe::new(Merge),
};

/// Folds the adapter of the LoRA stage before it into the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merge;

impl Stage for Merge {
    fn kind(&self) -> &'static str {
        REGISTRATION.kind
    }

    fn settings(&self) -> Result<Value> {
        Ok(json!({}))
    }

    fn needs(&self) -> Needs<'_> {
        Needs { merges: true, ..Needs::default() }
    }

    fn work(&self, context: &WorkContext) -> Work {
        let memory = twice(&context.sizes(context.sequence));
        Work { cost: Cost { per_token: 0.0, memory }, ..Work::default() }
    }

    fn prepare(&self, model: &mut Model, student: &mut Student, _: u64) -> Result<()> {
        student.merge(model)
    }

    fn run(&self, _: &mut RunContext) -> Result<Measured> {
        Ok(Measured::Nothing)
    }
}
