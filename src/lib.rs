pub mod arch;
pub mod checkpoint;
pub mod error;
pub mod evaluate;
pub mod mixer;
pub mod model;
pub mod ops;
pub mod progress;
pub mod recipe;
pub mod run;
pub mod stage;
pub mod text;
pub mod train;

pub use error::{Error, Result};
