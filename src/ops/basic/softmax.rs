//! y = softmax(x) over the last dim, optionally kept above a floor (feature maps clamp their softmax at 1e-12).

use crate::Result;
use crate::ops::cpu::simd::{Kernel, dot, exp_minus, max, simd};
use crate::ops::cpu::{Output, Slice};
use crate::ops::formulas;
use crate::ops::operator::{Operator, apply1};
use crate::ops::tape::Var;
use crate::ops::unary::{Unary, unary};
use candle_core::Tensor;
use rayon::prelude::*;

/// Elements of one task, roughly.
const BLOCK: usize = 1 << 12;

/// `x` [.., K] -> [.., K]. What `floor` raised passes no gradient.
pub fn softmax(x: &Var, floor: Option<f32>) -> Result<Var> {
    let y = apply1(Softmax, &[x])?;
    floor.map_or_else(|| Ok(y.clone()), |min| unary(&y, Unary::Clamp { min, max: f32::INFINITY }))
}

struct Softmax;

/// Elements of a row and of a task.
fn sizes(x: &Tensor) -> (usize, usize) {
    let width = x.dims().last().copied().unwrap_or(1).max(1);
    (width, width * (BLOCK / width).max(1))
}

impl Operator for Softmax {
    /// Of the forward pass, the output alone.
    type Kept = Tensor;
    const BACKWARD_READS_INPUTS: bool = false;

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![formulas::softmax(&inputs[0])?])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, Tensor)> {
        let (width, task) = sizes(&inputs[0]);
        let xs = Slice::of(&inputs[0])?;
        let mut y = Output::unwritten(inputs[0].dims());
        y.data().par_chunks_mut(task).zip(xs.par_chunks(task)).for_each(|(y, x)| {
            y.copy_from_slice(x);
            simd(Rows { y, width });
        });
        let y = y.tensor()?;
        Ok((vec![y.clone()], y))
    }

    fn backward_cpu(&self, _: &[Tensor], y: Tensor, _: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        let (width, task) = sizes(&y);
        let (ys, gs) = (Slice::of(&y)?, Slice::of(&up[0])?);
        let mut dx = Output::unwritten(y.dims());
        let tasks = dx.data().par_chunks_mut(task).zip(ys.par_chunks(task)).zip(gs.par_chunks(task));
        tasks.for_each(|((dx, y), g)| {
            simd(|| {
                for ((dx, y), g) in dx.chunks_exact_mut(width).zip(y.chunks_exact(width)).zip(g.chunks_exact(width)) {
                    let along = dot(y, g);
                    for i in 0..width {
                        dx[i] = y[i] * (g[i] - along);
                    }
                }
            });
        });
        Ok(vec![Some(dx.tensor()?)])
    }
}

/// Rows that become their softmax.
struct Rows<'a> {
    y: &'a mut [f32],
    width: usize,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for row in self.y.chunks_exact_mut(self.width) {
            let m = max(row);
            let scale = 1.0 / exp_minus(row, m);
            for p in row {
                *p *= scale;
            }
        }
    }
}
