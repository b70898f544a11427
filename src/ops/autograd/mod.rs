//! The tape that runs operators backward, and the seam that chooses their kernels by device.

pub(crate) mod formulas;
pub(crate) mod operator;
pub mod tape;
