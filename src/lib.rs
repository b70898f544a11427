pub mod arch;
pub mod checkpoint;
pub mod error;
pub mod mixer;

pub use error::{Error, Result};
