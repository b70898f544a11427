//! The largest element of each row, the last dim. Its gradient goes to the first element that attains it.

use crate::Result;
use crate::ops::cpu::simd::max;
use crate::ops::cpu::{Output, Slice};
use crate::ops::operator::{Operator, apply1};
use crate::ops::tape::Var;
use candle_core::{D, Tensor};
use rayon::prelude::*;

/// Elements of one task, roughly.
const BLOCK: usize = 1 << 13;

/// `x` [.., K] -> [.., 1].
pub fn row_max(x: &Var) -> Result<Var> {
    apply1(RowMax, &[x])
}

struct RowMax;

/// Elements of a row, rows of a task.
fn sizes(x: &Tensor) -> (usize, usize) {
    let width = x.dims().last().copied().unwrap_or(1).max(1);
    (width, (BLOCK / width).max(1))
}

impl Operator for RowMax {
    /// The output.
    type Kept = Tensor;

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let x = &inputs[0];
        // candle's `max` gives the gradient to every element that attains it.
        let first = x.detach().argmax_keepdim(D::Minus1)?;
        Ok(vec![x.gather(&first, D::Minus1)?])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, Tensor)> {
        let (width, rows) = sizes(&inputs[0]);
        let mut short = inputs[0].dims().to_vec();
        short.pop();
        short.push(1);
        let y = {
            let xs = Slice::of(&inputs[0])?;
            let mut y = Output::unwritten(&short);
            y.data().par_chunks_mut(rows).zip(xs.par_chunks(rows * width)).for_each(|(y, x)| {
                y.iter_mut().zip(x.chunks_exact(width)).for_each(|(y, x)| *y = max(x));
            });
            y.tensor()?
        };
        Ok((vec![y.clone()], y))
    }

    fn backward_cpu(
        &self,
        inputs: &[Tensor],
        largest: Tensor,
        _: &[bool],
        up: &[Tensor],
    ) -> Result<Vec<Option<Tensor>>> {
        let (width, rows) = sizes(&inputs[0]);
        let (xs, ys, gs) = (Slice::of(&inputs[0])?, Slice::of(&largest)?, Slice::of(&up[0])?);
        let mut dx = Output::zeros(inputs[0].dims());
        let inputs = xs.par_chunks(width).zip(ys.par_iter()).zip(gs.par_iter());
        dx.data().par_chunks_mut(width).zip(inputs).with_min_len(rows).for_each(|(dx, ((x, y), g))| {
            let first = x.iter().position(|x| x == y).unwrap_or(0);
            dx[first] = *g;
        });
        Ok(vec![Some(dx.tensor()?)])
    }
}
