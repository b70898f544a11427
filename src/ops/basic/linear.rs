//! y = x W^T.

use crate::Result;
use crate::ops::cpu::{Output, Slice, matrix::Mat, matrix::MatMut};
use crate::ops::operator::{Operator, apply1, misfit};
use crate::ops::tape::Var;
use candle_core::Tensor;

/// `x` [.., in], `w` [out, in] -> [.., out]. Each gradient is made only where it is wanted: a frozen weight costs nothing.
pub fn linear(x: &Var, w: &Var) -> Result<Var> {
    let (out, inner) = w.value().dims2()?;
    let shape = x.value().dims();
    if shape.last() != Some(&inner) {
        return misfit(format!("linear: input {shape:?}, weight [{out}, {inner}]"));
    }
    apply1(Linear, &[x, w])
}

struct Linear;

/// The dims of x with `last` instead of its last one.
fn with_last(x: &Tensor, last: usize) -> Vec<usize> {
    let mut dims = x.dims().to_vec();
    dims.pop();
    dims.push(last);
    dims
}

impl Operator for Linear {
    type Kept = ();

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let (x, w) = (&inputs[0], &inputs[1]);
        let (out, inner) = w.dims2()?;
        let y = x.reshape((x.elem_count() / inner.max(1), inner))?.matmul(&w.t()?)?;
        Ok(vec![y.reshape(with_last(x, out))?])
    }

    /// candle's graph would make the gradient of a frozen weight too.
    fn formula_gradients(&self, inputs: &[Tensor], wanted: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        let (x, w) = (&inputs[0], &inputs[1]);
        let (out, inner) = w.dims2()?;
        let rows = |x: &Tensor, width: usize| x.reshape((x.elem_count() / width.max(1), width));
        let (g, x_rows) = (rows(&up[0], out)?, rows(x, inner)?);
        let dx = if wanted[0] { Some(g.matmul(w)?.reshape(x.shape())?) } else { None };
        let dw = if wanted[1] { Some(g.t()?.matmul(&x_rows)?) } else { None };
        Ok(vec![dx, dw])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, ())> {
        let (x, w) = (&inputs[0], &inputs[1]);
        Ok((vec![product(x, w, &with_last(x, w.dim(0)?), true)?], ()))
    }

    fn backward_cpu(&self, inputs: &[Tensor], _: (), wanted: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        let (x, w, g) = (&inputs[0], &inputs[1], &up[0]);
        let dx = if wanted[0] { Some(product(g, w, x.dims(), false)?) } else { None };
        let dw = if wanted[1] { Some(weight_gradient(g, x, w.dims2()?)?) } else { None };
        Ok(vec![dx, dw])
    }
}

/// x W^T (`transposed`) or x W over the rows of x.
fn product(x: &Tensor, w: &Tensor, shape: &[usize], transposed: bool) -> Result<Tensor> {
    let (out, inner) = w.dims2()?;
    let rows = x.elem_count() / if transposed { inner } else { out }.max(1);
    let (xs, ws) = (Slice::of(x)?, Slice::of(w)?);
    let mut y = Output::unwritten(shape);
    let w = Mat::new(&ws, out, inner);
    let (w, from, to) = if transposed { (w.t(), inner, out) } else { (w, out, inner) };
    MatMut::new(y.data(), rows, to).product_parallel(1.0, Mat::new(&xs, rows, from), w, 0.0);
    y.tensor()
}

fn weight_gradient(g: &Tensor, x: &Tensor, (out, inner): (usize, usize)) -> Result<Tensor> {
    let rows = x.elem_count() / inner.max(1);
    let (gs, xs) = (Slice::of(g)?, Slice::of(x)?);
    let mut dw = Output::unwritten(&[out, inner]);
    let (g, x) = (Mat::new(&gs, rows, out), Mat::new(&xs, rows, inner));
    MatMut::new(dw.data(), out, inner).product_parallel(1.0, g.t(), x, 0.0);
    dw.tensor()
}
