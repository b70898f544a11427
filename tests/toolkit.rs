//! The small operators that mixers are composed of, against their formulas in candle's autograd: values, gradients of
//! all inputs, saturation, documents and padding.

mod common;

use candle_core::{D, Device, Tensor};
use common::{compare, random};
use subquad::ops::map::{Map, map};
use subquad::ops::{Tape, Var, broadcast};

const TOLERANCE: f64 = 3e-6;

/// Value and slope of a map in f32 at these points.
fn at(f: Map, points: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let tape = Tape::new();
    let x = tape.leaf(Tensor::new(points, &Device::Cpu).unwrap());
    let y = map(&x, f).unwrap();
    let slope = tape.backward(vec![(&y, Tensor::ones(points.len(), y.value().dtype(), &Device::Cpu).unwrap())]);
    (y.value().to_vec1().unwrap(), slope.unwrap().take(&x).unwrap().to_vec1().unwrap())
}

#[test]
fn maps() {
    type Reference = fn(&Tensor) -> candle_core::Result<Tensor>;
    let sigmoid: Reference = |x| (x.neg()?.exp()? + 1.0)?.recip();
    let cases: [(Map, Reference); 14] = [
        (Map::Sigmoid, sigmoid),
        (Map::LogSigmoid, |x| (x.neg()?.exp()? + 1.0)?.log()?.neg()),
        (Map::Softplus, |x| (x.exp()? + 1.0)?.log()),
        (Map::Silu, |x| x.silu()),
        (Map::Relu, |x| x.relu()),
        (Map::ReluSquared, |x| x.relu()?.sqr()),
        (Map::EluPlusOne, |x| x.elu(1.0)? + 1.0),
        (Map::Exp, |x| x.exp()),
        (Map::OneMinusExp, |x| x.exp()?.affine(-1.0, 1.0)),
        (Map::Ln, |x| x.log()),
        (Map::Tanh, |x| x.tanh()),
        (Map::Square, |x| x.sqr()),
        (Map::Reciprocal, |x| x.recip()),
        (Map::Clamp { min: -0.5, max: 1.5 }, |x| x.clamp(-0.5, 1.5)),
    ];
    for (f, reference) in cases {
        for (shape, size) in [(&[3, 5, 2, 7][..], 0.1), (&[2, 9000], 6.0), (&[1], 3.0)] {
            let x = random(1, shape, size);
            let x = match f {
                Map::Ln | Map::Reciprocal => (x.abs().unwrap() + 0.01).unwrap(),
                _ => x,
            };
            let what = format!("{f:?} of {shape:?} up to {size}");
            compare(&what, &[x], |x| Ok(vec![map(&x[0], f)?]), |x| Ok(vec![reference(&x[0])?]), TOLERANCE);
        }
    }
}

#[test]
fn maps_saturate_exactly() {
    let far = [-1e30, -1e4, -200.0, 200.0, 1e4, 1e30];
    let linear = |side: f32| far.map(|x| if x * side > 0.0 { x } else { 0.0 });
    let step = |side: f32| far.map(|x| if x * side > 0.0 { 1.0 } else { 0.0 });
    for (f, value, slope) in [
        (Map::Sigmoid, step(1.0), [0.0; 6]),
        (Map::LogSigmoid, linear(-1.0), step(-1.0)),
        (Map::Softplus, linear(1.0), step(1.0)),
        (Map::Silu, linear(1.0), step(1.0)),
        (Map::Relu, linear(1.0), step(1.0)),
        (Map::EluPlusOne, linear(1.0).map(|x| if x > 0.0 { x + 1.0 } else { x }), step(1.0)),
        (Map::Tanh, far.map(f32::signum), [0.0; 6]),
        (Map::Clamp { min: -1.0, max: 2.0 }, far.map(|x| x.clamp(-1.0, 2.0)), [0.0; 6]),
    ] {
        assert_eq!(at(f, &far), (value.to_vec(), slope.to_vec()), "{f:?}");
        assert!(at(f, &[f32::NAN]).0[0].is_nan(), "{f:?}");
    }
    for f in [Map::Exp, Map::OneMinusExp] {
        let (value, slope) = at(f, &[-1e30, -100.0, 0.0]);
        let shut = if f == Map::Exp { 0.0 } else { 1.0 };
        assert_eq!((&value[..], slope[0]), (&[shut, shut, 1.0 - shut][..], 0.0), "{f:?}");
    }
    // Where the formula as it is written cancels to nothing.
    let (value, _) = at(Map::OneMinusExp, &[-1e-6]);
    assert!((value[0] / 1e-6 - 1.0).abs() < 1e-5, "{value:?}");
}

#[test]
fn broadcast_over_x() {
    let shapes: &[&[usize]] =
        &[&[5, 3], &[5, 1], &[3], &[1], &[1, 3], &[], &[7, 1, 1], &[2, 7, 5, 1], &[2, 7, 5, 3], &[1, 5, 1]];
    for small in shapes {
        let inputs = [random(1, &[2, 7, 5, 3], 2.0), random(2, small, 2.0), random(3, small, 2.0)];
        let call = |x: &[Var]| Ok(vec![broadcast::affine(&x[0], Some(&x[1]), Some(&x[2]))?]);
        let slow = |x: &[Tensor]| Ok(vec![x[0].broadcast_mul(&x[1])?.broadcast_add(&x[2])?]);
        compare(&format!("affine {small:?}"), &inputs, call, slow, TOLERANCE);
    }
    // Many rows, so that gradients are sums of many blocks; wide rows, so that tasks end inside them.
    for (x, small) in [
        (&[3, 700, 6][..], &[6][..]),
        (&[3, 700, 6], &[1]),
        (&[3, 700, 6], &[700, 1]),
        (&[2, 3, 20_000], &[20_000]),
        (&[2, 3, 20_000], &[3, 1]),
        (&[1, 1, 4], &[1, 1]),
    ] {
        let inputs = [random(1, x, 2.0), random(2, small, 2.0)];
        let what = format!("{small:?} over {x:?}");
        let slow = |x: &[Tensor]| Ok(vec![x[0].broadcast_mul(&x[1])?, x[0].broadcast_add(&x[1])?]);
        compare(
            &what,
            &inputs,
            |x| Ok(vec![broadcast::mul(&x[0], &x[1])?, broadcast::add(&x[0], &x[1])?]),
            slow,
            TOLERANCE,
        );
    }
    let x: Var = random(1, &[2, 3, 4, 5], 1.0).into();
    for wrong in [&[2, 1, 4, 1][..], &[3, 5], &[2, 3, 4, 5, 1], &[4, 5, 1]] {
        assert!(broadcast::mul(&x, &random(2, wrong, 1.0).into()).is_err(), "{wrong:?}");
    }
    assert!(!broadcast::affine(&x, None, None).unwrap().tracked());
}

#[test]
fn scale_and_row_dot() {
    for shape in [&[2, 7, 5, 3][..], &[3, 9000], &[1, 1], &[600, 130]] {
        let inputs = [random(1, shape, 2.0), random(2, shape, 2.0)];
        compare(
            &format!("scale {shape:?}"),
            &inputs[..1],
            |x| Ok(vec![broadcast::scale(&x[0], -2.5, 1.0)?]),
            |x| Ok(vec![x[0].affine(-2.5, 1.0)?]),
            TOLERANCE,
        );
        compare(
            &format!("row dot {shape:?}"),
            &inputs,
            |x| Ok(vec![broadcast::row_dot(&x[0], &x[1])?]),
            |x| Ok(vec![(&x[0] * &x[1])?.sum_keepdim(D::Minus1)?]),
            TOLERANCE,
        );
    }
}
