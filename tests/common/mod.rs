//! What the test files share.
#![allow(dead_code)]

pub mod models;

use candle_core::{DType, Device, Tensor, Var as CandleVar};
use rand::{RngExt, SeedableRng};
use subquad::Result;
use subquad::ops::{Tape, Var};

/// Seeded uniform numbers in -scale..scale.
pub fn random(seed: u64, shape: &[usize], scale: f32) -> Tensor {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let n: usize = shape.iter().product();
    let data: Vec<f32> = (0..n).map(|_| (rng.random::<f32>() * 2.0 - 1.0) * scale).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

/// |x - y| / |y| in root mean squares, |y| counted as at least 1e-3; NaN and infinities count as infinite.
pub fn difference(x: &Tensor, y: &Tensor) -> f64 {
    assert_eq!(x.dims(), y.dims());
    let flat = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let (x, y) = (flat(x), flat(y));
    let square = |d: f64| d * d;
    let error: f64 = x.iter().zip(&y).map(|(a, b)| square(a - b)).sum();
    let size = y.iter().map(|b| square(*b)).sum::<f64>().max(1e-6 * y.len() as f64);
    if error.is_finite() { (error / size).sqrt() } else { f64::INFINITY }
}

/// Largest absolute difference.
pub fn largest(x: &Tensor, y: &Tensor) -> f32 {
    assert_eq!(x.dims(), y.dims());
    let d = (x.to_dtype(DType::F32).unwrap() - y.to_dtype(DType::F32).unwrap()).unwrap();
    d.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

/// Runs `fast` on tracked f32 inputs and `slow` on the same in f64 under candle's autograd, with the same random
/// gradients from above, and compares every output and every input's gradient.
pub fn compare(
    what: &str,
    inputs: &[Tensor],
    fast: impl Fn(&[Var]) -> Result<Vec<Var>>,
    slow: impl Fn(&[Tensor]) -> candle_core::Result<Vec<Tensor>>,
    tolerance: f64,
) {
    subquad::ops::cpu::poison_unwritten();
    let tape = Tape::new();
    let vars: Vec<Var> = inputs.iter().map(|x| tape.leaf(x.clone())).collect();
    let outputs = fast(&vars).unwrap();
    let doubles: Vec<CandleVar> =
        inputs.iter().map(|x| CandleVar::from_tensor(&x.to_dtype(DType::F64).unwrap()).unwrap()).collect();
    let tensors: Vec<Tensor> = doubles.iter().map(|v| v.as_tensor().clone()).collect();
    let expected = slow(&tensors).unwrap();
    assert_eq!(outputs.len(), expected.len());
    let mut seeds = vec![];
    let mut total: Option<Tensor> = None;
    for (i, (got, want)) in outputs.iter().zip(&expected).enumerate() {
        let d = difference(got.value(), want);
        assert!(d < tolerance, "{what}: output {i} differs by {d:.1e}");
        let up = random(1000 + i as u64, want.dims(), 1.0);
        let part = (want * up.to_dtype(DType::F64).unwrap()).unwrap().sum_all().unwrap();
        total = Some(total.map_or(part.clone(), |t| (t + part).unwrap()));
        seeds.push((got, up));
    }
    let store = total.unwrap().backward().unwrap();
    let mut gradients = tape.backward(seeds).unwrap();
    for (i, (var, double)) in vars.iter().zip(&doubles).enumerate() {
        let want = store.get(double.as_tensor()).unwrap_or_else(|| panic!("{what}: reference has no gradient {i}"));
        let got = gradients.take(var).unwrap_or_else(|| panic!("{what}: no gradient of input {i}"));
        let d = difference(&got, want);
        assert!(d < tolerance, "{what}: gradient of input {i} differs by {d:.1e}");
    }
}
