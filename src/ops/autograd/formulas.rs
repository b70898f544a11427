//! Pieces of operators' formulas, in candle's differentiable operations.

use crate::Result;
use candle_core::{D, DType, Tensor};

/// x with `value` where `mask` is set; what is replaced passes no gradient.
pub(crate) fn replace(x: &Tensor, mask: &Tensor, value: f64) -> Result<Tensor> {
    Ok(mask.where_cond(&x.zeros_like()?.affine(1.0, value)?, x)?)
}

/// Softmax over the last dim. candle's fused one has no gradient.
pub(crate) fn softmax(x: &Tensor) -> Result<Tensor> {
    // The sum does not depend on the maximum, which therefore needs no gradient.
    let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    Ok(e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?)
}

/// ln of the softmax over the last dim.
pub(crate) fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let x = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    Ok(x.broadcast_sub(&x.exp()?.sum_keepdim(D::Minus1)?.log()?)?)
}

/// 1 / (1 + e^-x).
pub(crate) fn sigmoid(x: &Tensor) -> Result<Tensor> {
    Ok(candle_nn::ops::sigmoid(x)?)
}

/// x sigmoid(x). The gradient of candle's own, s (1 - y) + y, has no digits left where y is large.
pub(crate) fn silu(x: &Tensor) -> Result<Tensor> {
    Ok((x * sigmoid(x)?)?)
}

/// `x` in f64, where the device has it: Metal has not.
pub(crate) fn wide(x: &Tensor) -> Result<Tensor> {
    Ok(if x.device().is_metal() { x.clone() } else { x.to_dtype(DType::F64)? })
}

/// 1 / x, and 0 without a gradient where x is 0.
pub(crate) fn inverse(x: &Tensor) -> Result<Tensor> {
    let zero = x.eq(0.0)?;
    replace(&replace(x, &zero, 1.0)?.recip()?, &zero, 0.0)
}
