//! Sums over a batch, head by head.

use crate::Result;
use crate::ops::cpu::Slice;
use crate::ops::cpu::simd::{dot, simd};
use candle_core::Tensor;

/// Sums of products of `x` and `y` [B, T, H, V] over everything but the heads.
pub fn head_products(x: &Tensor, y: &Tensor) -> Result<Vec<f64>> {
    let (_, _, heads, width) = x.dims4()?;
    let (xs, ys) = (Slice::of(x)?, Slice::of(y)?);
    let mut sums = vec![0f64; heads];
    for (i, (x, y)) in xs.chunks_exact(width).zip(ys.chunks_exact(width)).enumerate() {
        sums[i % heads] += f64::from(simd(|| dot(x, y)));
    }
    Ok(sums)
}

/// x - y.
pub fn minus(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    Ok((x - y)?)
}
