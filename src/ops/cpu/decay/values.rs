//! Decay along the value axis: what tokens wrote, mixed and decayed channel by channel of the value.
//!
//! ```text
//! out_i = sum_{j <= i} a_ij e^(G_i - G_j) * v_j
//! ```
//!
//! with a gate per value channel, over the blocks of the key side: a block's rows are e^(G - n) times a product of its
//! part of a with e^(n - G) * v, all exponents <= 0 or within the span of a block. The gradient of a is the key side's
//! own product, [`Decay::product`] of the gradient of out with v.

use super::super::matrix::{Mat, MatMut, Triangle};
use super::super::simd::simd;
use super::{Block, Decay, Kind, Read, mask};

impl Decay {
    /// Adds the mixed values to `out` [C, V]; of `a` [C, C] the lower triangle is read, the rest is zeroed.
    pub fn mix(&mut self, a: &mut [f32], v: Mat, out: MatMut) {
        self.spread(false, a, v, out);
    }

    /// Adds to `dv` [C, V] what the gradient `d` of [`Decay::mix`]'s output gives; `a` as there.
    pub fn mix_backward(&mut self, a: &mut [f32], d: Mat, dv: &mut [f32]) {
        self.spread(true, a, d, MatMut::new(dv, d.rows, d.cols));
    }

    fn spread(&mut self, backward: bool, a: &mut [f32], from: Mat, mut to: MatMut) {
        let (n, w) = (self.tokens, from.cols);
        let turned = |a| if backward { Mat::t(a) } else { a };
        if self.kind != Kind::Vector {
            self.weigh(Read::After, a);
            let triangle = if backward { Triangle::LeftTransposed } else { Triangle::Left };
            return to.product_in(triangle, 1.0, turned(Mat::new(a, n, n)), from, 1.0);
        }
        mask(Read::After, MatMut::new(a, n, n));
        let a = Mat::new(a, n, n);
        for Block { rows, columns, factors } in &self.blocks {
            let (row_factors, column_factors) = self.factors[*factors..].split_at(rows.len() * w);
            let (sources, targets) = if backward { (rows, columns) } else { (columns, rows) };
            let (source_factors, target_factors) =
                if backward { (row_factors, column_factors) } else { (column_factors, row_factors) };
            self.x.resize(sources.len() * w, 0.0);
            self.product.resize(rows.len().max(columns.len()) * w, 0.0);
            simd!(|| {
                let scaled = self.x.chunks_exact_mut(w).zip(source_factors.chunks_exact(w));
                for ((x, factors), i) in scaled.zip(sources.clone()) {
                    x.iter_mut().zip(from.row(i)).zip(factors).for_each(|((x, from), f)| *x = from * f);
                }
            });
            let product = &mut self.product[..targets.len() * w];
            let a = turned(a.block(rows.clone(), columns.clone()));
            let triangle = match (rows == columns, backward) {
                (false, _) => Triangle::None,
                (true, false) => Triangle::Left,
                (true, true) => Triangle::LeftTransposed,
            };
            let source = Mat::new(&self.x, sources.len(), w);
            MatMut::new(product, targets.len(), w).product_in(triangle, 1.0, a, source, 0.0);
            simd!(|| {
                let mixed = product.chunks_exact(w).zip(target_factors.chunks_exact(w));
                for ((product, factors), i) in mixed.zip(targets.clone()) {
                    to.row(i).iter_mut().zip(product).zip(factors).for_each(|((to, p), f)| *to += p * f);
                }
            });
        }
    }

    /// out_i e^(G_i) in place.
    pub fn scale_rows(&self, out: &mut MatMut) {
        simd!(|| {
            for (i, factors) in self.start[..self.tokens * self.width].chunks_exact(self.width).enumerate() {
                out.row(i).iter_mut().zip(factors).for_each(|(o, f)| *o *= f);
            }
        });
    }

    /// S e^(G_C) along the value axis: what the chunk leaves of the state [K, V] before it.
    pub fn decay_columns(&self, state: &mut [f32]) {
        let last = &self.start[(self.tokens - 1) * self.width..][..self.width];
        simd!(|| {
            for row in state.chunks_exact_mut(self.width) {
                row.iter_mut().zip(last).for_each(|(s, f)| *s *= f);
            }
        });
    }
}

/// Columns of S times columns of dS: the gradient of the last G of every value channel through the state [K, V].
pub fn column_terms(running: &mut [f64], state: &[f32], gradient: &[f32]) {
    let width = running.len();
    for (s, d) in state.chunks_exact(width).zip(gradient.chunks_exact(width)) {
        running.iter_mut().zip(s).zip(d).for_each(|((r, s), d)| *r += f64::from(s * d));
    }
}
