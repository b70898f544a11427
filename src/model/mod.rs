//! The one decoder. A [`Model`] holds a teacher's frozen weights; a [`Student`] adds only its mixers' own tensors and
//! low-rank adapters; a [`View`] runs the former, with or without the latter, so that teacher and student share memory.

mod adapter;
mod forward;
mod frequencies;
mod fused_weights;
mod mlp;
mod positions;
mod sample;
mod session;
mod student;
mod weights;

pub use crate::arch::Target;
pub use adapter::Adapter;
pub use forward::{Flow, LayerHook, LayerVars, View};
pub(crate) use fused_weights::join;
pub use positions::Positions;
pub use sample::Sampler;
pub use session::Session;
pub use student::{Conversion, Student, softmax};
pub use weights::{Layer, Model};
