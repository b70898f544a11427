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
use crate::ops::operator::{Operator, apply1};
use crate::ops::tape::Var;
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

    /// Shape of the features of `x`.
    fn dims(self, x: &Tensor) -> Vec<usize> {
        let mut dims = x.dims().to_vec();
        dims.pop();
        dims.push(self.features());
        dims
    }

    fn apply(self, x: &Var) -> Result<Var> {
        apply1(self, &[x])
    }

    /// The pairs i < j, row by row.
    fn pairs(self) -> (Vec<u32>, Vec<u32>) {
        let width = self.width as u32;
        (0..width).flat_map(|i| (i + 1..width).map(move |j| (i, j))).unzip()
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

impl Operator for Polynomial {
    type Kept = ();

    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let x = inputs[0].reshape(((), self.width))?;
        let mut parts = vec![];
        if let Some(linear) = self.linear {
            parts.extend([x.narrow(1, 0, 1)?.ones_like()?, (&x * f64::from(linear))?]);
        }
        parts.push((x.sqr()? * f64::from(self.square))?);
        if self.width > 1 {
            let (i, j) = self.pairs();
            let pick = |columns: Vec<u32>| x.index_select(&Tensor::new(columns, x.device())?, 1);
            parts.push(((pick(i)? * pick(j)?)? * f64::from(self.cross))?);
        }
        Ok(vec![Tensor::cat(&parts, 1)?.reshape(self.dims(&inputs[0]))?])
    }

    fn forward_cpu(&self, inputs: &[Tensor], _: bool) -> Result<(Vec<Tensor>, ())> {
        let xs = Slice::of(&inputs[0])?;
        let mut y = Output::unwritten(&self.dims(&inputs[0]));
        let rows = y.data().par_chunks_mut(ROWS * self.features()).zip(xs.par_chunks(ROWS * self.width));
        rows.for_each(|(y, x)| {
            simd(|| {
                let rows = y.chunks_exact_mut(self.features()).zip(x.chunks_exact(self.width));
                rows.for_each(|(y, x)| self.row(x, y));
            });
        });
        Ok((vec![y.tensor()?], ()))
    }

    fn backward_cpu(&self, inputs: &[Tensor], _: (), _: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        let (xs, gs) = (Slice::of(&inputs[0])?, Slice::of(&up[0])?);
        let mut dx = Output::unwritten(inputs[0].dims());
        let inputs = xs.par_chunks(ROWS * self.width).zip(gs.par_chunks(ROWS * self.features()));
        dx.data().par_chunks_mut(ROWS * self.width).zip(inputs).for_each(|(dx, (x, g))| {
            simd(|| {
                let inputs = x.chunks_exact(self.width).zip(g.chunks_exact(self.features()));
                let rows = dx.chunks_exact_mut(self.width).zip(inputs);
                rows.for_each(|(dx, (x, g))| self.row_backward(x, g, dx));
            });
        });
        Ok(vec![Some(dx.tensor()?)])
    }
}
