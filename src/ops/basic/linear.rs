//! y = x W^T.

use crate::Result;
use crate::ops::cpu::{Output, Slice, matrix::Mat, matrix::MatMut};
use crate::ops::tape::{Var, record1};
use candle_core::Tensor;

/// `x` [.., in], `w` [out, in] -> [.., out]. Each gradient is made only where it is wanted: a frozen weight costs nothing.
pub fn linear(x: &Var, w: &Var) -> Result<Var> {
    let (out, inner) = w.value().dims2()?;
    let rows = x.value().elem_count() / inner.max(1);
    let mut shape = x.value().dims().to_vec();
    if shape.last() != Some(&inner) {
        return Err(candle_core::Error::Msg(format!("linear: input {shape:?}, weight [{out}, {inner}]")).into());
    }
    *shape.last_mut().expect("checked above") = out;
    let y = product(x.value(), w.value(), rows, &shape, true)?;
    let (xt, wt) = (x.value().clone(), w.value().clone());
    let (want_x, want_w) = (x.tracked(), w.tracked());
    record1(&[x, w], y, move |g| {
        let dx = if want_x { Some(product(&g, &wt, rows, xt.dims(), false)?) } else { None };
        let dw = if want_w { Some(weight_gradient(&g, &xt, rows, out, inner)?) } else { None };
        Ok(vec![dx, dw])
    })
}

/// x W^T (`transposed`) or x W over the rows of x.
fn product(x: &Tensor, w: &Tensor, rows: usize, shape: &[usize], transposed: bool) -> Result<Tensor> {
    let (out, inner) = w.dims2()?;
    let (xs, ws) = (Slice::of(x)?, Slice::of(w)?);
    let mut y = Output::unwritten(shape);
    let w = Mat::new(&ws, out, inner);
    let (w, from, to) = if transposed { (w.t(), inner, out) } else { (w, out, inner) };
    MatMut::new(y.data(), rows, to).product_parallel(1.0, Mat::new(&xs, rows, from), w, 0.0);
    y.tensor()
}

fn weight_gradient(g: &Tensor, x: &Tensor, rows: usize, out: usize, inner: usize) -> Result<Tensor> {
    let (gs, xs) = (Slice::of(g)?, Slice::of(x)?);
    let mut dw = Output::unwritten(&[out, inner]);
    let (g, x) = (Mat::new(&gs, rows, out), Mat::new(&xs, rows, inner));
    MatMut::new(dw.data(), out, inner).product_parallel(1.0, g.t(), x, 0.0);
    dw.tensor()
}
