//! Copies of transposed matrices, in squares that registers hold.

use super::simd::simd;

/// Side of a square: a vector of AVX-512.
const SIDE: usize = 16;

/// Writes the transpose of a matrix [R, C], whose rows `row` gives, to `to` [C, R].
pub(super) fn transpose<'a>(rows: usize, cols: usize, row: impl Fn(usize) -> &'a [f32], to: &mut [f32]) {
    assert_eq!(to.len(), rows * cols);
    let (whole_rows, whole_cols) = (rows - rows % SIDE, cols - cols % SIDE);
    #[cfg(target_arch = "x86_64")]
    let done = std::is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    let done = false;
    for i in (0..whole_rows).step_by(SIDE) {
        for j in (0..whole_cols).step_by(SIDE) {
            let lines = std::array::from_fn(|r| row(i + r)[j..].first_chunk::<SIDE>().expect("a whole square"));
            let to = &mut to[j * rows + i..];
            #[cfg(target_arch = "x86_64")]
            if done {
                // SAFETY: the instructions are there.
                unsafe { turn_square_avx512(&lines, to, rows) };
            }
            if !done {
                turn_square(&lines, to, rows);
            }
        }
    }
    // What is left at both edges.
    for i in 0..rows {
        let from = row(i);
        let left = if i < whole_rows { whole_cols } else { 0 };
        for j in left..cols {
            to[j * rows + i] = from[j];
        }
    }
}

/// Writes column r of `to` (rows `stride` apart) from line r.
fn turn_square(lines: &[&[f32; SIDE]; SIDE], to: &mut [f32], stride: usize) {
    simd!(|| {
        for (c, to) in to.chunks_mut(stride).take(SIDE).enumerate() {
            for (to, line) in to.iter_mut().zip(lines) {
                *to = line[c];
            }
        }
    });
}

/// The same: blocks beside the diagonal change places, first those of side 8, then 4, 2, 1.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[allow(clippy::needless_range_loop, reason = "rows as the formula counts them")]
unsafe fn turn_square_avx512(lines: &[&[f32; SIDE]; SIDE], to: &mut [f32], stride: usize) {
    use std::arch::x86_64::{
        __m512i, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_permutex2var_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };
    /// Which elements of two rows, `side` apart, the upper one takes, and which the lower one.
    const fn pairs(side: usize) -> [[i32; SIDE]; 2] {
        let mut both = [[0; SIDE]; 2];
        let mut c = 0;
        while c < SIDE {
            let other = (c & side) != 0;
            both[0][c] = if other { SIDE + c - side } else { c } as i32;
            both[1][c] = if other { SIDE + c } else { c + side } as i32;
            c += 1;
        }
        both
    }
    const PAIRS: [[[i32; SIDE]; 2]; 4] = [pairs(8), pairs(4), pairs(2), pairs(1)];
    assert!(to.len() >= (SIDE - 1) * stride + SIDE);
    // SAFETY: whole rows of both squares, checked above and by their type.
    unsafe {
        // No closures here: they would be functions of their own, compiled without the instructions.
        let mut rows = [_mm512_setzero_ps(); SIDE];
        for r in 0..SIDE {
            rows[r] = _mm512_loadu_ps(lines[r].as_ptr());
        }
        for step in 0..PAIRS.len() {
            let side = SIDE >> (step + 1);
            let upper = _mm512_loadu_si512(PAIRS[step][0].as_ptr().cast::<__m512i>());
            let lower = _mm512_loadu_si512(PAIRS[step][1].as_ptr().cast::<__m512i>());
            for r in 0..SIDE {
                if r & side == 0 {
                    let (x, y) = (rows[r], rows[r + side]);
                    rows[r] = _mm512_permutex2var_ps(x, upper, y);
                    rows[r + side] = _mm512_permutex2var_ps(x, lower, y);
                }
            }
        }
        for (r, row) in rows.into_iter().enumerate() {
            _mm512_storeu_ps(to.as_mut_ptr().add(r * stride), row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_every_size() {
        for (rows, cols, stride) in [(1, 1, 1), (16, 16, 16), (64, 64, 256), (33, 50, 60), (15, 17, 17), (80, 31, 40)] {
            let from: Vec<f32> = (0..rows * stride).map(|i| i as f32).collect();
            let mut to = vec![f32::NAN; rows * cols];
            transpose(rows, cols, |i| &from[i * stride..][..cols], &mut to);
            for (i, x) in to.iter().enumerate() {
                assert_eq!(*x, from[i % rows * stride + i / rows], "{rows} x {cols}, element {i}");
            }
        }
    }

    #[test]
    fn both_ways_agree() {
        let from: Vec<f32> = (0..SIDE * SIDE).map(|i| i as f32).collect();
        let lines = std::array::from_fn(|r| from[r * SIDE..].first_chunk().expect("a row"));
        let mut plain = vec![0.0; SIDE * SIDE];
        turn_square(&lines, &mut plain, SIDE);
        let mut all = vec![0.0; SIDE * SIDE];
        transpose(SIDE, SIDE, |i| &from[i * SIDE..][..SIDE], &mut all);
        assert_eq!(plain, all);
    }
}
