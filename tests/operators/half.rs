//! Inputs of bf16: every basic operator computes in f32 and gives outputs and gradients back in bf16, losses and states in
//! f32.

use super::*;
use candle_core::DType;
use ops::unary::{Unary, unary};
use ops::{Tape, per_head_linear, polynomial, rope, row_max, softmax, stabilise, statistics};
use ops::{adamw, broadcast, elementwise, lerp, linear, lm_head, moe, norm, normalize, paired_softmax, shape};

/// Of numbers with 8 bits.
const ROUNDING: f64 = 1e-2;

type Run<'a> = &'a dyn Fn(&[Var]) -> subquad::Result<Vec<Var>>;

/// Values and gradients of `run` on `inputs`.
fn values_of(inputs: &[Tensor], run: Run) -> (Vec<Tensor>, Vec<Option<Tensor>>) {
    let tape = Tape::new();
    let vars: Vec<Var> = inputs.iter().map(|x| tape.leaf(x.clone())).collect();
    let outputs = run(&vars).unwrap();
    let seed =
        |(i, y): (usize, &Var)| random(50 + i as u64, y.value().dims(), 1.0).to_dtype(y.value().dtype()).unwrap();
    let seeds: Vec<_> = outputs.iter().enumerate().map(|(i, y)| (y, seed((i, y)))).collect();
    let mut gradients = tape.backward(seeds).unwrap();
    let found = vars.iter().map(|x| gradients.take(x)).collect();
    (outputs.iter().map(|y| y.value().clone()).collect(), found)
}

/// `run` on inputs of bf16 against the same numbers in f32. Outputs from `f32_from` on are f32.
fn holds(what: &str, shapes: &[&[usize]], f32_from: usize, run: Run) {
    let inputs = shapes.iter().enumerate().map(|(i, shape)| random(1 + i as u64, shape, 1.0).abs().unwrap());
    let inputs: Vec<Tensor> = inputs.map(|x| (x + 0.25).unwrap().to_dtype(DType::BF16).unwrap()).collect();
    let exact: Vec<Tensor> = inputs.iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
    let ((outputs, gradients), (want, want_gradients)) = (values_of(&inputs, run), values_of(&exact, run));
    for (i, (got, want)) in outputs.iter().zip(&want).enumerate() {
        assert_eq!(got.dtype(), if i < f32_from { DType::BF16 } else { DType::F32 }, "{what}: output {i}");
        let d = difference(got, want);
        assert!(d < ROUNDING, "{what}: output {i} differs by {d:.1e}");
    }
    for (i, (got, want)) in gradients.iter().zip(&want_gradients).enumerate() {
        let (got, want) = (got.as_ref().unwrap(), want.as_ref().unwrap());
        assert_eq!(got.dtype(), DType::BF16, "{what}: gradient {i}");
        let d = difference(got, want);
        assert!(d < ROUNDING, "{what}: gradient {i} differs by {d:.1e}");
    }
}

/// The same for an operator with one output.
fn one(what: &str, shapes: &[&[usize]], run: impl Fn(&[Var]) -> subquad::Result<Var>) {
    holds(what, shapes, usize::MAX, &|x| Ok(vec![run(x)?]));
}

const X: &[usize] = &[2, 5, 4, 6];

#[test]
fn elementwise_in_bf16() {
    one("add", &[X, X], |x| elementwise::add(&x[0], &x[1]));
    one("add scaled", &[X, X], |x| elementwise::add_scaled(&x[0], 0.5, &x[1]));
    one("swiglu", &[X, X], |x| elementwise::swiglu(&x[0], &x[1]));
    one("product", &[X, &[4, 1]], |x| broadcast::mul(&x[0], &x[1]));
    one("sum", &[X, &[6]], |x| broadcast::add(&x[0], &x[1]));
    one("affine", &[X, &[4, 6], &[6]], |x| broadcast::affine(&x[0], Some(&x[1]), Some(&x[2])));
    one("scale", &[X], |x| broadcast::scale(&x[0], 0.5, 1.0));
    one("row dot", &[X, X], |x| broadcast::row_dot(&x[0], &x[1]));
    one("lerp", &[X, X, &[4]], |x| lerp::lerp(&x[0], &x[1], &x[2]));
    let functions = [
        Unary::Sigmoid,
        Unary::LogSigmoid,
        Unary::Softplus,
        Unary::Silu,
        Unary::Gelu,
        Unary::GeluTanh,
        Unary::Relu,
        Unary::ReluSquared,
        Unary::EluPlusOne,
        Unary::Exp,
        Unary::OneMinusExp,
        Unary::Ln,
        Unary::Tanh,
        Unary::Square,
        Unary::Reciprocal,
        Unary::Clamp { min: 0.5, max: 1.0 },
    ];
    for f in functions {
        one(&format!("{f:?}"), &[X], |x| unary(&x[0], f));
    }
}

#[test]
fn rows_in_bf16() {
    let weight = random(9, &[6], 1.0).to_dtype(DType::BF16).unwrap();
    one("rms norm", &[X], |x| norm::rms_norm(&x[0], &weight, 1e-5));
    one("rms norm plus one", &[X], |x| norm::rms_norm_plus_one(&x[0], &weight, 1e-5));
    one("rms norm over two dims", &[X, &[4, 6]], |x| norm::rms_norm_over(&x[0], 2, Some(&x[1]), 1e-5));
    one("layer norm", &[X, &[4, 6], &[6]], |x| norm::layer_norm(&x[0], 1, Some(&x[1]), Some(&x[2]), 1e-5));
    one("l2 norm", &[X], |x| norm::l2_norm(&x[0], 1e-6));
    one("softmax", &[X], |x| softmax::softmax(&x[0], Some(0.1)));
    one("row max", &[X], |x| row_max::row_max(&x[0]));
    one("taylor", &[X], |x| polynomial::taylor(&x[0]));
    one("quadratic", &[X], |x| polynomial::quadratic(&x[0]));
    one("quotient", &[X, &[2, 5, 4]], |x| normalize::normalize(&x[0], &x[1], 1e-6));
    one("joint quotient", &[X, &[2, 5, 4], X, &[2, 5, 4], &[4]], |x| {
        normalize::joint_normalize((&x[0], &x[1]), (&x[2], &x[3]), &x[4])
    });
    let angles = rope::Rotary::new(6, 100.0).angles(3, 5);
    one("rope", &[X], |x| rope::rope(&x[0], &angles));
}

#[test]
fn products_in_bf16() {
    one("linear", &[X, &[7, 6]], |x| linear::linear(&x[0], &x[1]));
    one("linear map per head", &[&[2, 5, 2, 6], &[4, 3, 6]], |x| per_head_linear::per_head_linear(&x[0], &x[1]));
    one("two softmaxes", &[&[2, 5, 2, 6], &[4, 6, 3]], |x| paired_softmax::two_softmaxes(&x[0], &x[1]));
    let choose = |x: &Var| moe::route(x, 2, true).unwrap();
    one("expert weights", &[&[9, 4]], |x| Ok(choose(&x[0]).1));
    one("tokens of experts", &[&[9, 6]], |x| moe::gather(&x[0], &Arc::new(vec![(1, 0), (1, 1), (7, 0)])));
    one("sum of experts", &[&[9, 2], &[2, 6], &[3, 6]], |x| {
        let (a, b) = (Arc::new(vec![(1, 0), (4, 1)]), Arc::new(vec![(1, 1), (2, 0), (8, 0)]));
        moe::combine(&[(x[1].clone(), a), (x[2].clone(), b)], &x[0], 6)
    });
}

/// Moves of elements change no bit.
#[test]
fn shapes_in_bf16() {
    one("reshape", &[X], |x| x[0].reshape(&[10, 24]));
    one("concat", &[X, &[2, 5, 4, 3]], |x| shape::concat_last(&[&x[0], &x[1]]));
    one("narrow", &[X], |x| shape::narrow_last(&x[0], 2, 3));
    one("repeat heads", &[X], |x| shape::repeat_heads(&x[0], 8));
    one("pick micro-step", &[&[2, 6, 3]], |x| shape::pick_micro_step(&x[0], 3, 1));
    one("place micro-step", &[&[2, 6, 3]], |x| shape::place_micro_step(&x[0], 3, 1));
    let x = random(1, X, 1.0).to_dtype(DType::BF16).unwrap();
    let moved = shape::repeat_heads(&x.clone().into(), 8).unwrap().reshape(&[2, 5, 4, 2, 6]).unwrap();
    assert_eq!(common::largest(&moved.value().narrow(3, 1, 1).unwrap().squeeze(3).unwrap(), &x), 0.0);
}

#[test]
fn losses_and_states_of_bf16_are_f32() {
    let (targets, weight) = ([3, lm_head::IGNORE, 0, 6, 2], random(9, &[7, 6], 1.0).to_dtype(DType::BF16).unwrap());
    let head = lm_head::Head { weight, cap: Some(1.5) };
    holds("cross-entropy", &[&[1, 5, 6]], 0, &|x| Ok(vec![lm_head::cross_entropy(&x[0], &head, &targets)?]));
    let target = random(8, X, 1.0).to_dtype(DType::BF16).unwrap();
    holds("mean squared error", &[X], 0, &|x| Ok(vec![elementwise::mean_squared_error(&x[0], &target)?]));
    let documents = Documents::new(7, vec![vec![1..4, 4..7], vec![0..6]]).unwrap();
    holds("stabiliser", &[&[2, 7, 3, 1], &[2, 7, 3, 1], &[2, 3]], 2, &|x| {
        let s = stabilise::stabilise(&broadcast::scale(&x[0], -1.0, 0.0)?, &x[1], &x[2], &documents)?;
        Ok(vec![s.gate, s.weight, s.maximum, s.last])
    });
}

/// Functions without gradients.
#[test]
fn functions_of_bf16() {
    let half = |seed, shape: &[usize]| random(seed, shape, 1.0).to_dtype(DType::BF16).unwrap();
    let exact = |x: &Tensor| x.to_dtype(DType::F32).unwrap();
    let (x, y) = (half(1, X), half(2, X));
    assert_eq!(statistics::square_sum(&x).unwrap(), statistics::square_sum(&exact(&x)).unwrap());
    let products = statistics::head_products(&x, &y).unwrap();
    assert_eq!(products, statistics::head_products(&exact(&x), &exact(&y)).unwrap());
    let update = adamw::Update { lr: 0.1, betas: [0.9, 0.99], eps: 1e-8, weight_decay: 0.1, step: 3, scale: 0.5 };
    let (p, m, v) = (random(3, X, 1.0), random(4, X, 1.0), random(5, X, 1.0).abs().unwrap());
    let updated = adamw::adamw(&p, &x, &m, &v, update).unwrap();
    for (got, want) in updated.iter().zip(&adamw::adamw(&p, &exact(&x), &m, &v, update).unwrap()) {
        assert_eq!((got.dtype(), common::largest(got, want)), (DType::F32, 0.0));
    }
    let (hidden, other, weight) = (half(6, &[1, 5, 6]), half(7, &[1, 5, 6]), half(8, &[7, 6]));
    let head = |weight: Tensor| lm_head::Head { weight, cap: Some(2.0) };
    let (short, long) = (head(weight.clone()), head(exact(&weight)));
    let targets = [3, lm_head::IGNORE, 0, 6, 2];
    assert_eq!(
        lm_head::compare(&[(&hidden, &short), (&other, &short)], &targets).unwrap(),
        lm_head::compare(&[(&exact(&hidden), &long), (&exact(&other), &long)], &targets).unwrap()
    );
    let logits = lm_head::logits(&hidden, &short).unwrap();
    assert_eq!(logits.dtype(), DType::BF16);
    assert!(difference(&logits, &lm_head::logits(&exact(&hidden), &long).unwrap()) < ROUNDING);
    let rows = lm_head::embed(&weight, &[3, 0, 6, 6], 2).unwrap();
    assert_eq!((rows.dtype(), rows.dims()), (DType::F32, &[2, 2, 6][..]));
    assert_eq!(common::largest(&rows.get(1).unwrap().get(0).unwrap(), &weight.get(6).unwrap()), 0.0);
}
