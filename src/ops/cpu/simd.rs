//! Row functions that vectorise: written as plain loops over lanes, compiled for the machine's widest instructions.

/// Runs a loop compiled for the widest instruction set of this machine.
#[inline(always)]
pub fn simd<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// The same of a closure that is inlined whatever its length; a long one otherwise stays a function of its own, compiled
/// for the oldest machine. Imported with the function's name.
macro_rules! vectorised {
    (|| $body:expr $(,)?) => {
        $crate::ops::cpu::simd::run(
            #[inline(always)]
            || $body,
        )
    };
}
pub(crate) use vectorised as simd;

/// What [`simd!`] expands to.
#[inline(always)]
pub fn run<R>(f: impl FnMut() -> R) -> R {
    pulp::Arch::new().dispatch(Inlined(f))
}

/// Called as `FnMut`: the shim between a closure and `FnOnce` would not be inlined.
struct Inlined<F>(F);

impl<R, F: FnMut() -> R> pulp::NullaryFnOnce for Inlined<F> {
    type Output = R;

    #[inline(always)]
    fn call(mut self) -> R {
        (self.0)()
    }
}

const LANES: usize = 16;

/// e^x to 2 units in the last place; below -87.3 it stays at 1.2e-38, above 88.3 at 2.4e38, NaN passes through.
/// (Cephes' polynomial; branch-free, so loops over it vectorise, which libm's does not.)
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12582912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits
    let x = x.clamp(-87.336_54, 88.376_26);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5.000_000_3e-1;
    let y = p * r * r + r + 1.0;
    y * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Sum of a row.
#[inline(always)]
pub fn sum(x: &[f32]) -> f32 {
    fold(x, 0.0, |a, b| a + b)
}

/// Largest element; NaN if any element is NaN; -inf of an empty row.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    fold(x, f32::NEG_INFINITY, |a, b| if a > b || a.is_nan() { a } else { b })
}

/// Sum of products.
#[inline(always)]
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    assert_eq!(x.len(), y.len());
    let mut lanes = [0.0; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let tail: f32 = xs.remainder().iter().zip(ys.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in xs.zip(ys) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    lanes.iter().sum::<f32>() + tail
}

/// Sum of products of three rows.
#[inline(always)]
pub fn triple(x: &[f32], y: &[f32], z: &[f32]) -> f32 {
    x.iter().zip(y).zip(z).map(|((x, y), z)| x * y * z).sum()
}

/// y += alpha x.
#[inline(always)]
pub fn axpy(y: &mut [f32], alpha: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += alpha * x;
    }
}

#[inline(always)]
fn fold(x: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let chunks = x.chunks_exact(LANES);
    let tail = chunks.remainder().iter().fold(start, |a, b| f(a, *b));
    for c in chunks {
        for i in 0..LANES {
            lanes[i] = f(lanes[i], c[i]);
        }
    }
    f(lanes.into_iter().fold(start, &f), tail)
}

/// x -> e^(x - m), returns the sum. `m` is the caller's maximum.
#[inline(always)]
pub fn exp_minus(x: &mut [f32], m: f32) -> f32 {
    for v in x.iter_mut() {
        *v = exp(*v - m);
    }
    sum(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_and_keeps_nan() {
        let mut worst = 0.0f64;
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0;
            worst = worst.max((exp(x) as f64 / (x as f64).exp() - 1.0).abs());
        }
        assert!(worst < 3e-7, "{worst}");
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 1.3e-38 && exp(1e30).is_finite());
    }

    #[test]
    fn reductions_cover_tails() {
        let x: Vec<f32> = (0..37).map(|i| i as f32 - 20.0).collect();
        assert_eq!((sum(&x), max(&x)), (x.iter().sum(), 16.0));
        assert_eq!(dot(&x, &x), x.iter().map(|v| v * v).sum::<f32>());
        let mut bad = x.clone();
        bad[5] = f32::NAN;
        assert!(max(&bad).is_nan());
    }
}
