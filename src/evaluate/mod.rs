//! Perplexity of a model beside its teacher and its controls.

pub mod report;

pub use report::{Control, Report, Score};
