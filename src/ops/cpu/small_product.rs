//! Products of matrices that stay in the nearest caches: the chunks of the operators.
//!
//! A tile of [`ROWS`] rows and up to four vectors of columns is summed in registers while b's rows are read where they
//! lie: nothing is packed. Half of a causal chunk's products is multiplied by zeros, or masked afterwards; a tile
//! leaves out what lies beyond its last row ([`Triangle`]).

use pulp::{Simd, WithSimd};

/// Rows of a tile: 6 x 4 sums and the 4 vectors of b fit the 32 registers of AVX-512, 6 x 2 the 16 of AVX2.
const ROWS: usize = 6;

/// Which part of a product counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Triangle {
    /// All of it.
    None,
    /// On and below the diagonal of the result; above it anything may stand afterwards.
    Output,
    /// The left factor is lower triangular, with zeros above its diagonal.
    Left,
    /// The left factor is the transpose of such a matrix.
    LeftTransposed,
}

/// out[m, n] = alpha a[m, k] b[k, n] + beta out; strides in elements, rows of b and out dense.
pub(super) struct SmallProduct {
    pub out: *mut f32,
    pub out_stride: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: *const f32,
    pub a_row_stride: isize,
    pub a_col_stride: isize,
    pub b: *const f32,
    pub b_stride: usize,
    pub alpha: f32,
    pub beta: f32,
    pub triangle: Triangle,
}

impl SmallProduct {
    /// # Safety
    /// Pointers, sizes and strides describe valid memory; `out` is not aliased.
    pub unsafe fn run(self) {
        pulp::Arch::new().dispatch(self);
    }

    /// The products that rows i..i + m have a part in.
    #[inline(always)]
    fn depth(&self, i: usize, m: usize) -> (usize, usize) {
        match self.triangle {
            Triangle::Left => (0, (i + m).min(self.k)),
            Triangle::LeftTransposed => (i.min(self.k), self.k),
            _ => (0, self.k),
        }
    }

    /// One tile: MR rows from i on, NV vectors of columns from j on; MASKED: one vector, of `columns` columns.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "rows and vectors as the formula counts them")]
    unsafe fn tile<S: Simd, const MR: usize, const NV: usize, const MASKED: bool>(
        &self,
        simd: S,
        (i, j): (usize, usize),
        columns: usize,
    ) {
        let (from, to) = self.depth(i, MR);
        let mut sums = [[simd.splat_f32s(0.0); NV]; MR];
        let mask = simd.mask_between_m32s(0, if MASKED { columns } else { S::F32_LANES } as u32);
        // SAFETY: the caller's promise; a masked vector touches nothing beyond its columns.
        unsafe {
            let load = |p: *const f32, v: usize| match MASKED {
                true => simd.mask_load_ptr_f32s(mask, p),
                false => p.add(v * S::F32_LANES).cast::<S::f32s>().read_unaligned(),
            };
            let a = self.a.offset(i as isize * self.a_row_stride);
            for p in from..to {
                let b = self.b.add(p * self.b_stride + j);
                let mut row = [simd.splat_f32s(0.0); NV];
                for v in 0..NV {
                    row[v] = load(b, v);
                }
                let a = a.offset(p as isize * self.a_col_stride);
                for r in 0..MR {
                    let x = simd.splat_f32s(*a.offset(r as isize * self.a_row_stride));
                    for v in 0..NV {
                        sums[r][v] = simd.mul_add_e_f32s(x, row[v], sums[r][v]);
                    }
                }
            }
            let (alpha, beta) = (simd.splat_f32s(self.alpha), simd.splat_f32s(self.beta));
            for r in 0..MR {
                let out = self.out.add((i + r) * self.out_stride + j);
                for v in 0..NV {
                    let mut x = simd.mul_f32s(alpha, sums[r][v]);
                    if self.beta != 0.0 {
                        x = simd.mul_add_e_f32s(beta, load(out, v), x);
                    }
                    match MASKED {
                        true => simd.mask_store_ptr_f32s(mask, out, x),
                        false => out.add(v * S::F32_LANES).cast::<S::f32s>().write_unaligned(x),
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn rows<S: Simd, const NV: usize, const MASKED: bool>(&self, simd: S, at: (usize, usize), columns: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.m - at.0 {
                1 => self.tile::<S, 1, NV, MASKED>(simd, at, columns),
                2 => self.tile::<S, 2, NV, MASKED>(simd, at, columns),
                3 => self.tile::<S, 3, NV, MASKED>(simd, at, columns),
                4 => self.tile::<S, 4, NV, MASKED>(simd, at, columns),
                5 => self.tile::<S, 5, NV, MASKED>(simd, at, columns),
                _ => self.tile::<S, ROWS, NV, MASKED>(simd, at, columns),
            }
        }
    }
}

impl WithSimd for SmallProduct {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = S::F32_LANES;
        let most = if S::REGISTER_COUNT >= 32 { 4 } else { 2 };
        let mut j = 0;
        while j < self.n {
            // Whole vectors first; what is left of a row is a vector of its own.
            let whole = ((self.n - j) / lanes).min(most);
            let rest = (self.n - j) % lanes;
            let vectors = whole.max(1);
            for i in (0..self.m).step_by(ROWS) {
                let last = (i + ROWS).min(self.m);
                let wanted = match self.triangle {
                    Triangle::Output if last <= j => continue,
                    Triangle::Output => vectors.min((last - j).div_ceil(lanes)),
                    _ => vectors,
                };
                // SAFETY: `run`'s caller promised valid memory.
                unsafe {
                    match wanted {
                        _ if whole == 0 => self.rows::<S, 1, true>(simd, (i, j), rest),
                        1 => self.rows::<S, 1, false>(simd, (i, j), lanes),
                        3 if most == 4 => self.rows::<S, 3, false>(simd, (i, j), lanes),
                        4 if most == 4 => self.rows::<S, 4, false>(simd, (i, j), lanes),
                        _ => self.rows::<S, 2, false>(simd, (i, j), lanes),
                    }
                }
            }
            j += if whole == 0 { rest } else { whole * lanes };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::matrix::{Mat, MatMut};

    fn numbers(seed: usize, n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 1009.0 - 0.5).collect()
    }

    /// Every size around the tile's, dense, strided and transposed factors, beside the sum in f64.
    #[test]
    fn is_the_sum_of_products() {
        for (m, n, k) in [(1, 1, 1), (5, 15, 3), (6, 16, 7), (7, 17, 64), (13, 64, 2), (64, 65, 33), (20, 130, 0)] {
            for (turn_a, turn_b) in [(false, false), (true, false), (false, true)] {
                let (a, b) = (numbers(1, m.max(k) * 80), numbers(2, n.max(k) * 140));
                let view = |x, rows, cols, stride, turned| match turned {
                    true => Mat::strided(x, cols, rows, stride).t(),
                    false => Mat::strided(x, rows, cols, stride),
                };
                let at = |x: &[f32], i: usize, j: usize, stride: usize, turned| {
                    f64::from(if turned { x[j * stride + i] } else { x[i * stride + j] })
                };
                for (alpha, beta) in [(1.0, 0.0), (-1.0, 1.0), (0.5, -2.0)] {
                    let old = if beta == 0.0 { vec![f32::NAN; m * n] } else { numbers(3, m * n) };
                    let mut out = old.clone();
                    let (a_mat, b_mat) = (view(&a, m, k, 80, turn_a), view(&b, k, n, 140, turn_b));
                    MatMut::new(&mut out, m, n).product_in(Triangle::None, alpha, a_mat, b_mat, beta);
                    for i in 0..m * n {
                        let sum: f64 =
                            (0..k).map(|p| at(&a, i / n, p, 80, turn_a) * at(&b, p, i % n, 140, turn_b)).sum();
                        let kept = if beta == 0.0 { 0.0 } else { f64::from(beta * old[i]) };
                        let want = f64::from(alpha) * sum + kept;
                        assert!((f64::from(out[i]) - want).abs() < 1e-5, "{m} {n} {k} at {i}: {} not {want}", out[i]);
                    }
                }
            }
        }
    }

    /// The parts agree with the whole where they count.
    #[test]
    fn triangles_are_parts_of_the_whole() {
        for n in [1, 6, 17, 63, 64, 65] {
            let (mut lower, b) = (numbers(4, n * n), numbers(5, n * 40));
            (0..n * n).filter(|i| i % n > i / n).for_each(|i| lower[i] = 0.0);
            let (l, b) = (Mat::new(&lower, n, n), Mat::new(&b, n, 40));
            for (triangle, left) in [(Triangle::Left, l), (Triangle::LeftTransposed, l.t())] {
                let (mut whole, mut part) = (vec![0.0; n * 40], vec![0.0; n * 40]);
                MatMut::new(&mut whole, n, 40).product_in(Triangle::None, 1.0, left, b, 0.0);
                MatMut::new(&mut part, n, 40).product_in(triangle, 1.0, left, b, 0.0);
                let worst = whole.iter().zip(&part).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-5, "{triangle:?} of {n}: {worst}");
            }
            let (mut whole, mut part) = (vec![0.0; n * n], vec![f32::NAN; n * n]);
            MatMut::new(&mut whole, n, n).product_in(Triangle::None, 1.0, b, b.t(), 0.0);
            MatMut::new(&mut part, n, n).product_in(Triangle::Output, 1.0, b, b.t(), 0.0);
            for i in (0..n * n).filter(|i| i % n <= i / n) {
                assert!((whole[i] - part[i]).abs() < 1e-5, "{n} at {i}: {} not {}", part[i], whole[i]);
            }
        }
    }
}
