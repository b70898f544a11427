//! Solves with unit lower triangular matrices, in place, blocked so that most of the work is matrix products.

use super::matrix::{Mat, MatMut};
use super::simd::{axpy, simd};

/// Rows that are substituted one by one.
const BLOCK: usize = 16;

/// x <- (I + L)^-1 x; of `l` [C, C] the strict lower triangle is read. `x` is [C, width].
pub fn solve(l: Mat, x: &mut [f32], width: usize) {
    let n = l.rows;
    for start in (0..n).step_by(BLOCK) {
        let end = (start + BLOCK).min(n);
        let (done, rest) = x.split_at_mut(start * width);
        let block = &mut rest[..(end - start) * width];
        if start > 0 {
            let done = Mat::new(done, start, width);
            MatMut::new(block, end - start, width).product(-1.0, l.block(start..end, 0..start), done, 1.0);
        }
        simd!(|| {
            for i in start + 1..end {
                let (before, row) = block.split_at_mut((i - start) * width);
                let row = &mut row[..width];
                for (l, x) in l.row(i)[start..i].iter().zip(before.chunks_exact(width)) {
                    axpy(row, -l, x);
                }
            }
        });
    }
}

/// x <- (I + L)^-T x: the gradient of [`solve`]'s input from that of its output.
pub fn solve_transposed(l: Mat, x: &mut [f32], width: usize) {
    let n = l.rows;
    for start in (0..n).step_by(BLOCK).rev() {
        let end = (start + BLOCK).min(n);
        let (rest, done) = x.split_at_mut(end * width);
        let block = &mut rest[start * width..];
        if end < n {
            let done = Mat::new(done, n - end, width);
            MatMut::new(block, end - start, width).product(-1.0, l.block(end..n, start..end).t(), done, 1.0);
        }
        simd!(|| {
            for i in (start + 1..end).rev() {
                let (before, row) = block.split_at_mut((i - start) * width);
                let row = &row[..width];
                for (l, x) in l.row(i)[start..i].iter().zip(before.chunks_exact_mut(width)) {
                    axpy(x, -l, row);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solves() {
        for n in [1, 15, 16, 17, 50] {
            let l: Vec<f32> = (0..n * n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 400.0).collect();
            let x: Vec<f32> = (0..n * 3).map(|i| (i * 17 % 13) as f32 - 6.0).collect();
            // (I + L) x, then its transpose.
            let entry = |i: usize, j: usize| if j < i { l[i * n + j] } else { f32::from(u8::from(i == j)) };
            let times = |transposed: bool, i: usize, c: usize| -> f32 {
                (0..n).map(|j| if transposed { entry(j, i) } else { entry(i, j) } * x[j * 3 + c]).sum()
            };
            for transposed in [false, true] {
                let mut y: Vec<f32> = (0..n * 3).map(|i| times(transposed, i / 3, i % 3)).collect();
                let solve = if transposed { solve_transposed } else { solve };
                solve(Mat::new(&l, n, n), &mut y, 3);
                let worst = x.iter().zip(&y).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-3, "{n} {transposed}: {worst}");
            }
        }
    }
}
