pub mod arch;
pub mod checkpoint;
pub mod error;
pub mod evaluate {
    pub mod report;
}
pub mod export;
pub mod mixer;
pub mod model;
pub mod ops;
pub mod progress;
pub mod text;

pub use error::{Error, Result};
