//! Sums over a tensor, in f64, without gradients.

use crate::Result;
use crate::ops::cpu::Slice;
use crate::ops::cpu::simd::{dot, simd};
use crate::ops::operator::{as_f32, on_device};
use candle_core::{D, Tensor};

/// Sums of products of `x` and `y` [B, T, H, V] over everything but the heads.
pub fn head_products(x: &Tensor, y: &Tensor) -> Result<Vec<f64>> {
    let (_, _, heads, width) = x.dims4()?;
    let (x, y) = (&as_f32(x)?, &as_f32(y)?);
    let kernel = || {
        let (xs, ys) = (Slice::of(x)?, Slice::of(y)?);
        let rows = xs.chunks_exact(width).zip(ys.chunks_exact(width));
        Ok(rows.map(|(x, y)| simd(|| dot(x, y))).collect())
    };
    let formula = || on_host(&(x * y)?.sum(D::Minus1)?);
    let mut sums = vec![0f64; heads];
    for (i, row) in on_device(x, kernel, formula)?.into_iter().enumerate() {
        sums[i % heads] += f64::from(row);
    }
    Ok(sums)
}

/// Sum of squares in f64; not finite when any element is not.
pub fn square_sum(x: &Tensor) -> Result<f64> {
    let x = &as_f32(x)?;
    let kernel = || Ok(Slice::of(x)?.iter().map(|&v| f64::from(v) * f64::from(v)).sum());
    on_device(x, kernel, || square_sum_by_formula(x))
}

/// Squares of f32 may overflow, so that elements are taken in units of the largest; rows are summed on the device, their
/// sums here.
fn square_sum_by_formula(x: &Tensor) -> Result<f64> {
    if x.elem_count() == 0 {
        return Ok(0.0);
    }
    let x = if x.rank() == 0 { x.reshape(1)? } else { x.clone() };
    let largest = f64::from(x.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?);
    let unit = if largest > 0.0 { largest } else { 1.0 };
    let rows = on_host(&(x / unit)?.sqr()?.sum(D::Minus1)?)?;
    Ok(rows.into_iter().map(f64::from).sum::<f64>() * unit * unit)
}

fn on_host(x: &Tensor) -> Result<Vec<f32>> {
    Ok(x.flatten_all()?.to_vec1()?)
}

/// x - y.
pub fn minus(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    Ok((x - y)?)
}
