//! The one decoder. A [`Model`] holds a teacher's frozen weights; a [`Student`] adds only its mixers' own tensors and
//! low-rank adapters; a [`View`] runs the former, with or without the latter, so that teacher and student share memory.

mod adapter;
mod forward;
mod frequencies;
mod mlp;
mod pieces;
mod positions;
mod sample;
mod session;
mod student;
mod weights;

pub use crate::arch::Target;
pub use adapter::Adapter;
pub use forward::{Flow, LayerVars, Tap, View};
pub(crate) use pieces::join;
pub use positions::Positions;
pub use sample::Sampler;
pub use session::Session;
pub use student::{Conversion, Student, softmax};
pub use weights::{Layer, Model};
