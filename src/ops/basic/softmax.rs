//! y = softmax(x) over the last dim, optionally kept above a floor (feature maps clamp their softmax at 1e-12).

use crate::Result;
use crate::ops::cpu::simd::{Kernel, dot, exp_minus, max, simd};
use crate::ops::cpu::{Output, Slice};
use crate::ops::tape::{Var, record1};
use crate::ops::unary::{Unary, unary};
use rayon::prelude::*;

/// Elements of one task, roughly.
const BLOCK: usize = 1 << 12;

/// `x` [.., K] -> [.., K]. What `floor` raised passes no gradient.
pub fn softmax(x: &Var, floor: Option<f32>) -> Result<Var> {
    let y = unclamped(x)?;
    floor.map_or_else(|| Ok(y.clone()), |min| unary(&y, Unary::Clamp { min, max: f32::INFINITY }))
}

fn unclamped(x: &Var) -> Result<Var> {
    let dims = x.value().dims();
    let width = dims.last().copied().unwrap_or(1).max(1);
    let task = width * (BLOCK / width).max(1);
    let y = {
        let xs = Slice::of(x.value())?;
        let mut y = Output::unwritten(dims);
        y.data().par_chunks_mut(task).zip(xs.par_chunks(task)).for_each(|(y, x)| {
            y.copy_from_slice(x);
            simd(Rows { y, width });
        });
        y.tensor()?
    };
    let value = y.clone();
    record1(&[x], y, move |g| {
        let (ys, gs) = (Slice::of(&value)?, Slice::of(&g)?);
        let mut dx = Output::unwritten(value.dims());
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
    })
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
