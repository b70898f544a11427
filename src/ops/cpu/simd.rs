//! Row functions that vectorise: written as plain loops over lanes, compiled for the machine's widest instructions.

/// A loop with its data. What it calls must be `#[inline(always)]`, `call` itself included.
pub use pulp::NullaryFnOnce as Kernel;

/// Runs a loop compiled for the widest instruction set of this machine. A closure is compiled so only while it is
/// short, since the compiler may leave a long one outside, at the narrowest set; long loops are a [`Kernel`].
#[inline(always)]
pub fn simd<K: Kernel>(kernel: K) -> K::Output {
    pulp::Arch::new().dispatch(kernel)
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

/// What `simd!` expands to.
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

/// e^x that ends in an exact zero: 0 below -87.3, where [`exp`] stays at the smallest normal number.
#[inline(always)]
pub fn exp_to_zero(x: f32) -> f32 {
    // A factor, not a choice: the compiler would follow a choice of 0 into what is computed from it, and branch.
    exp(x) * if x < -87.336_54 { 0.0 } else { 1.0 }
}

/// 1 / (1 + e^-x), small values to full relative accuracy, exactly 0 and 1 where it saturates.
#[inline(always)]
pub fn logistic(x: f32) -> f32 {
    let e = exp_to_zero(-x.abs());
    (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
}

/// Natural logarithm of normal x > 0 to 2 units in the last place; -inf at 0, NaN below and for NaN.
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    let y = ln_normal(x);
    if x > 0.0 {
        y
    } else if x == 0.0 {
        f32::NEG_INFINITY
    } else {
        f32::NAN
    }
}

/// The same for nothing but normal x > 0. (Cephes' polynomial.)
#[inline(always)]
fn ln_normal(x: f32) -> f32 {
    // x = 2^n m with m in sqrt(1/2)..sqrt(2); the number below has the bits of sqrt(1/2).
    let shifted = x.to_bits().wrapping_sub(0x3f35_04f3) as i32;
    let n = (shifted >> 23) as f32;
    let r = f32::from_bits((shifted & 0x007f_ffff) as u32 + 0x3f35_04f3) - 1.0;
    let mut p = 7.037_683_6e-2;
    p = p * r - 1.151_461e-1;
    p = p * r + 1.167_699_9e-1;
    p = p * r - 1.242_014_1e-1;
    p = p * r + 1.424_932_3e-1;
    p = p * r - 1.666_805_7e-1;
    p = p * r + 2.000_071_5e-1;
    p = p * r - 2.499_999_4e-1;
    p = p * r + 3.333_333e-1;
    let square = r * r;
    p * r * square + n * -2.121_944_4e-4 - 0.5 * square + r + n * 0.693_359_4
}

/// ln(1 + x) for 0 <= x <= 1, exact to rounding however small x is.
#[inline(always)]
pub fn ln_1p(x: f32) -> f32 {
    let u = 1.0 + x;
    // What rounding took from u, to first order.
    ln_normal(u) + (x - (u - 1.0)) / u
}

/// tanh x, small values to full relative accuracy, exactly 1 and -1 where it saturates. (Cephes' polynomial.)
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let a = x.abs();
    let z = x * x;
    let mut p = -5.704_988_7e-3;
    p = p * z + 2.063_909e-2;
    p = p * z - 5.373_971_6e-2;
    p = p * z + 1.333_144_2e-1;
    p = p * z - 3.333_328e-1;
    let far = (1.0 - 2.0 / (exp(2.0 * a) + 1.0)).copysign(x);
    let near = p * z * x + x;
    if a < 0.625 { near } else { far }
}

/// The error function, to 4e-7 of its size. (Cephes' polynomials.)
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    const NEAR: [f32; 7] = [
        7.853_861_4e-5,
        -8.010_194e-4,
        5.188_327_7e-3,
        -2.685_381e-2,
        1.128_358_5e-1,
        -3.761_262_6e-1,
        std::f32::consts::FRAC_2_SQRT_PI,
    ];
    // Of erfc, for 1 to 2, and beyond.
    const MIDDLE: [f32; 9] = [
        2.326_82e-2,
        -1.387_039_4e-1,
        3.687_424_7e-1,
        -5.824_733e-1,
        6.210_004_6e-1,
        -4.944_515_3e-1,
        3.404_88e-1,
        -2.741_127e-1,
        5.638_259_4e-1,
    ];
    const FAR: [f32; 8] = [
        -1.047_766_4e1,
        1.297_72e1,
        -7.495_519,
        2.921_019,
        -1.015_265_3,
        4.218_463_4e-1,
        -2.820_767_5e-1,
        5.641_895e-1,
    ];
    let a = x.abs();
    let (square, inverse) = (a * a, 1.0 / if a < 1.0 { 1.0 } else { a });
    let q = inverse * inverse;
    let near = polynomial(&NEAR, square) * x;
    let tail = inverse * exp_to_zero(-square) * if a < 2.0 { polynomial(&MIDDLE, q) } else { polynomial(&FAR, q) };
    if a < 1.0 { near } else { (1.0 - tail).copysign(x) }
}

/// Horner's rule, the highest power first.
#[inline(always)]
fn polynomial<const N: usize>(coefficients: &[f32; N], x: f32) -> f32 {
    coefficients.iter().fold(0.0, |sum, c| sum * x + c)
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
    fn the_other_functions_are_accurate() {
        // Name, function, the same in f64, and the range of arguments.
        type Case = (&'static str, fn(f32) -> f32, fn(f64) -> f64, f32, f32);
        let cases: [Case; 4] = [
            ("ln", ln, f64::ln, 1e-30, 50.0),
            ("ln_1p", ln_1p, f64::ln_1p, 1e-30, 1.0),
            ("tanh", tanh, f64::tanh, 1e-6, 12.0),
            ("logistic", logistic, |x| 1.0 / (1.0 + (-x).exp()), -80.0, 80.0),
        ];
        for (name, f, exact, from, to) in cases {
            for i in 0..100_000 {
                let even = from + (to - from) * i as f32 / 100_000.0;
                let near = from * (to / from).powf(i as f32 / 100_000.0);
                for x in [even, if from > 0.0 { near } else { -even }] {
                    let want = exact(f64::from(x));
                    let error = (f64::from(f(x)) - want).abs() / want.abs().max(1e-30);
                    assert!(error < 4e-7, "{name}({x}): {error:.1e}");
                }
            }
            assert!(f(f32::NAN).is_nan(), "{name}");
        }
        assert_eq!([tanh(-1e30), tanh(40.0), logistic(-1e30), logistic(1e4)], [-1.0, 1.0, 0.0, 1.0]);
        assert_eq!((ln(1.0), ln(0.0), ln_1p(0.0), exp_to_zero(-90.0)), (0.0, f32::NEG_INFINITY, 0.0, 0.0));
        assert!(ln(-1.0).is_nan() && exp_to_zero(f32::NAN).is_nan());
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
