//! The device that checkpoints are read to.

use candle_core::Device;

/// The device that tensors are read to. What is made without a tensor beside it is made there too.
pub fn device() -> Device {
    Device::Cpu
}
