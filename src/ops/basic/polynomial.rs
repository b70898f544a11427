//! Features whose dot product is a polynomial of q.k: products of a head's elements.
//!
//! ```text
//! taylor     [1, x_i / f^(1/4), x_i^2 / sqrt(2f), x_i x_j / sqrt(f)]     1 + s + s^2/2, s = q.k / sqrt(f)
//! quadratic  [x_i^2 / sqrt(f), x_i x_j sqrt(2/f)]                        (q.k)^2 / f
//! ```
//!
//! i < j, row by row: Based (arXiv 2402.18668) and ReBased (arXiv 2402.10644, which has a LayerNorm before it).

use crate::Result;
use crate::ops::cpu::simd::{axpy, dot, simd};
use crate::ops::cpu::{Output, Slice};
use crate::ops::tape::{Var, record1};
use candle_core::Tensor;
use rayon::prelude::*;

/// Rows of one task.
const ROWS: usize = 16;

/// Factors of the parts.
#[derive(Debug, Clone, Copy)]
struct Polynomial {
    /// f, the width of x.
    width: usize,
    /// Factor of x_i, with a constant 1 before it.
    linear: Option<f32>,
    square: f32,
    cross: f32,
}

/// `x` [.., f] -> second-order Taylor features [.., 1 + f + f (f + 1) / 2].
pub fn taylor(x: &Var) -> Result<Var> {
    let width = width(x);
    let f = width as f64;
    let [linear, square, cross] = [f.powf(-0.25), (2.0 * f).powf(-0.5), f.powf(-0.5)].map(|x| x as f32);
    Polynomial { width, linear: Some(linear), square, cross }.apply(x)
}

/// `x` [.., f] -> quadratic features [.., f (f + 1) / 2].
pub fn quadratic(x: &Var) -> Result<Var> {
    let width = width(x);
    let f = width as f64;
    let [square, cross] = [f.powf(-0.5), (2.0 / f).sqrt()].map(|x| x as f32);
    Polynomial { width, linear: None, square, cross }.apply(x)
}

fn width(x: &Var) -> usize {
    x.value().dims().last().copied().unwrap_or(1).max(1)
}

impl Polynomial {
    fn features(self) -> usize {
        self.linear.map_or(0, |_| 1 + self.width) + self.width * (self.width + 1) / 2
    }

    fn apply(self, x: &Var) -> Result<Var> {
        let mut dims = x.value().dims().to_vec();
        dims.pop();
        dims.push(self.features());
        let y = {
            let xs = Slice::of(x.value())?;
            let mut y = Output::unwritten(&dims);
            let rows = y.data().par_chunks_mut(ROWS * self.features()).zip(xs.par_chunks(ROWS * self.width));
            rows.for_each(|(y, x)| {
                simd(|| {
                    let rows = y.chunks_exact_mut(self.features()).zip(x.chunks_exact(self.width));
                    rows.for_each(|(y, x)| self.row(x, y));
                });
            });
            y.tensor()?
        };
        let value = x.value().clone();
        record1(&[x], y, move |g| Ok(vec![Some(self.backward(&value, &g)?)]))
    }

    fn backward(self, x: &Tensor, g: &Tensor) -> Result<Tensor> {
        let (xs, gs) = (Slice::of(x)?, Slice::of(g)?);
        let mut dx = Output::unwritten(x.dims());
        let inputs = xs.par_chunks(ROWS * self.width).zip(gs.par_chunks(ROWS * self.features()));
        dx.data().par_chunks_mut(ROWS * self.width).zip(inputs).for_each(|(dx, (x, g))| {
            simd(|| {
                let inputs = x.chunks_exact(self.width).zip(g.chunks_exact(self.features()));
                let rows = dx.chunks_exact_mut(self.width).zip(inputs);
                rows.for_each(|(dx, (x, g))| self.row_backward(x, g, dx));
            });
        });
        dx.tensor()
    }

    #[inline(always)]
    fn row(self, x: &[f32], y: &mut [f32]) {
        let mut y = y;
        if let Some(linear) = self.linear {
            let (head, rest) = y.split_at_mut(1 + self.width);
            head[0] = 1.0;
            head[1..].iter_mut().zip(x).for_each(|(y, x)| *y = linear * x);
            y = rest;
        }
        let (squares, mut cross) = y.split_at_mut(self.width);
        squares.iter_mut().zip(x).for_each(|(y, x)| *y = self.square * x * x);
        for (i, a) in x.iter().enumerate() {
            let (row, rest) = cross.split_at_mut(x.len() - i - 1);
            row.iter_mut().zip(&x[i + 1..]).for_each(|(y, b)| *y = self.cross * a * b);
            cross = rest;
        }
    }

    #[inline(always)]
    fn row_backward(self, x: &[f32], g: &[f32], dx: &mut [f32]) {
        let mut g = g;
        dx.fill(0.0);
        if let Some(linear) = self.linear {
            axpy(dx, linear, &g[1..1 + self.width]);
            g = &g[1 + self.width..];
        }
        let (squares, mut cross) = g.split_at(self.width);
        for i in 0..self.width {
            dx[i] += 2.0 * self.square * squares[i] * x[i];
        }
        for i in 0..self.width {
            let (row, rest) = cross.split_at(self.width - i - 1);
            dx[i] += self.cross * dot(row, &x[i + 1..]);
            axpy(&mut dx[i + 1..], self.cross * x[i], row);
            cross = rest;
        }
    }
}
