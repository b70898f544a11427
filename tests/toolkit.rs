//! The small operators that mixers are composed of, against their formulas in candle's autograd: values, gradients of
//! all inputs, saturation, documents and padding.

mod common;

use candle_core::{D, Device, Tensor};
use common::{compare, random};
use std::sync::Arc;
use subquad::ops::per_head_linear::per_head_linear;
use subquad::ops::prefix_sum::prefix_sum;
use subquad::ops::row_max::row_max;
use subquad::ops::softmax::softmax;
use subquad::ops::token_shift::{lerp, token_shift};
use subquad::ops::unary::{Unary, unary};
use subquad::ops::{Documents, Tape, Var, broadcast, naive, norm, polynomial, shape};

const TOLERANCE: f64 = 3e-6;

/// Value and slope of a map in f32 at these points.
fn at(f: Unary, points: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let tape = Tape::new();
    let x = tape.leaf(Tensor::new(points, &Device::Cpu).unwrap());
    let y = unary(&x, f).unwrap();
    let slope = tape.backward(vec![(&y, Tensor::ones(points.len(), y.value().dtype(), &Device::Cpu).unwrap())]);
    (y.value().to_vec1().unwrap(), slope.unwrap().take(&x).unwrap().to_vec1().unwrap())
}

#[test]
fn maps() {
    type Reference = fn(&Tensor) -> candle_core::Result<Tensor>;
    let sigmoid: Reference = |x| (x.neg()?.exp()? + 1.0)?.recip();
    let cases: [(Unary, Reference); 16] = [
        (Unary::Sigmoid, sigmoid),
        (Unary::LogSigmoid, |x| (x.neg()?.exp()? + 1.0)?.log()?.neg()),
        (Unary::Softplus, |x| (x.exp()? + 1.0)?.log()),
        (Unary::Silu, |x| x.silu()),
        (Unary::Gelu, |x| x.gelu_erf()),
        (Unary::GeluTanh, |x| x.gelu()),
        (Unary::Relu, |x| x.relu()),
        (Unary::ReluSquared, |x| x.relu()?.sqr()),
        (Unary::EluPlusOne, |x| x.elu(1.0)? + 1.0),
        (Unary::Exp, |x| x.exp()),
        (Unary::OneMinusExp, |x| x.exp()?.affine(-1.0, 1.0)),
        (Unary::Ln, |x| x.log()),
        (Unary::Tanh, |x| x.tanh()),
        (Unary::Square, |x| x.sqr()),
        (Unary::Reciprocal, |x| x.recip()),
        (Unary::Clamp { min: -0.5, max: 1.5 }, |x| x.clamp(-0.5, 1.5)),
    ];
    for (f, reference) in cases {
        for (shape, size) in [(&[3, 5, 2, 7][..], 0.1), (&[2, 9000], 6.0), (&[1], 3.0)] {
            let x = random(1, shape, size);
            let x = match f {
                Unary::Ln | Unary::Reciprocal => (x.abs().unwrap() + 0.01).unwrap(),
                _ => x,
            };
            let what = format!("{f:?} of {shape:?} up to {size}");
            compare(&what, &[x], |x| Ok(vec![unary(&x[0], f)?]), |x| Ok(vec![reference(&x[0])?]), TOLERANCE);
        }
    }
}

#[test]
fn maps_saturate_exactly() {
    let far = [-1e30, -1e4, -200.0, 200.0, 1e4, 1e30];
    let linear = |side: f32| far.map(|x| if x * side > 0.0 { x } else { 0.0 });
    let step = |side: f32| far.map(|x| if x * side > 0.0 { 1.0 } else { 0.0 });
    for (f, value, slope) in [
        (Unary::Sigmoid, step(1.0), [0.0; 6]),
        (Unary::LogSigmoid, linear(-1.0), step(-1.0)),
        (Unary::Softplus, linear(1.0), step(1.0)),
        (Unary::Silu, linear(1.0), step(1.0)),
        (Unary::Gelu, linear(1.0), step(1.0)),
        (Unary::GeluTanh, linear(1.0), step(1.0)),
        (Unary::Relu, linear(1.0), step(1.0)),
        (Unary::EluPlusOne, linear(1.0).map(|x| if x > 0.0 { x + 1.0 } else { x }), step(1.0)),
        (Unary::Tanh, far.map(f32::signum), [0.0; 6]),
        (Unary::Clamp { min: -1.0, max: 2.0 }, far.map(|x| x.clamp(-1.0, 2.0)), [0.0; 6]),
    ] {
        assert_eq!(at(f, &far), (value.to_vec(), slope.to_vec()), "{f:?}");
        assert!(at(f, &[f32::NAN]).0[0].is_nan(), "{f:?}");
    }
    for f in [Unary::Exp, Unary::OneMinusExp] {
        let (value, slope) = at(f, &[-1e30, -100.0, 0.0]);
        let shut = if f == Unary::Exp { 0.0 } else { 1.0 };
        assert_eq!((&value[..], slope[0]), (&[shut, shut, 1.0 - shut][..], 0.0), "{f:?}");
    }
    // Where the formula as it is written cancels to nothing.
    let (value, _) = at(Unary::OneMinusExp, &[-1e-6]);
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

#[test]
fn softmaxes() {
    for (shape, size) in [(&[2, 7, 3, 5][..], 3.0), (&[1, 300, 2, 64], 5.0), (&[3, 1], 2.0), (&[2, 5000], 20.0)] {
        let x = [random(1, shape, size)];
        let slow = |x: &[Tensor]| candle_nn::ops::softmax(&x[0], D::Minus1);
        let call = |floor| move |x: &[Var]| Ok(vec![softmax(&x[0], floor)?]);
        compare(&format!("softmax {shape:?}"), &x, call(None), |x| Ok(vec![slow(x)?]), 1e-5);
        compare(&format!("clamped {shape:?}"), &x, call(Some(0.1)), |x| Ok(vec![slow(x)?.maximum(0.1)?]), 1e-5);
    }
    let tape = Tape::new();
    let x = tape.leaf(Tensor::new(&[[-1e30f32, 1e4, 0.0], [300.0, 300.0, -300.0]], &Device::Cpu).unwrap());
    let y = softmax(&x, None).unwrap();
    let g = tape.backward(vec![(&y, random(1, &[2, 3], 1.0))]).unwrap().take(&x).unwrap();
    let close = |x: &Tensor, want: &[f32]| {
        let x: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
        assert!(x.iter().zip(want).all(|(x, want)| (x - want).abs() < 1e-30), "{x:?}");
    };
    close(y.value(), &[0.0, 1.0, 0.0, 0.5, 0.5, 0.0]);
    close(&g.narrow(0, 0, 1).unwrap(), &[0.0; 3]);
}

#[test]
fn row_maxima() {
    for shape in [&[2, 7, 3, 5][..], &[1, 300, 2, 64], &[3, 1], &[2, 9000]] {
        let slow = |x: &[Tensor]| Ok(vec![x[0].max_keepdim(D::Minus1)?]);
        compare(&format!("{shape:?}"), &[random(1, shape, 3.0)], |x| Ok(vec![row_max(&x[0])?]), slow, TOLERANCE);
    }
    let tape = Tape::new();
    let x = tape.leaf(Tensor::new(&[[1f32, 2.0, 2.0]], &Device::Cpu).unwrap());
    let up = Tensor::new(&[[3f32]], &Device::Cpu).unwrap();
    let g = tape.backward(vec![(&row_max(&x).unwrap(), up)]).unwrap().take(&x).unwrap();
    assert_eq!(g.to_vec2::<f32>().unwrap(), [[0.0, 3.0, 0.0]], "the first of equals");
}

#[test]
fn linear_maps_per_head() {
    for (tokens, kv_heads, group, width, out) in [(5, 2, 1, 3, 4), (130, 2, 3, 8, 5), (1, 1, 2, 4, 16)] {
        let heads = kv_heads * group;
        let x = random(1, &[2, tokens, kv_heads, width], 1.0);
        let w = random(2, &[heads, out, width], 1.0);
        compare(
            &format!("{tokens} tokens, {heads} heads of {kv_heads}, {width} to {out}"),
            &[x, w],
            |x| Ok(vec![per_head_linear(&x[0], &x[1])?]),
            |x| {
                let by_head = naive::repeat_heads(&x[0], heads)?.transpose(1, 2)?.contiguous()?;
                let maps = x[1].transpose(1, 2)?.unsqueeze(0)?.contiguous()?;
                Ok(vec![by_head.broadcast_matmul(&maps)?.transpose(1, 2)?])
            },
            TOLERANCE,
        );
    }
    let x = Var::from(random(1, &[1, 2, 2, 3], 1.0));
    assert!(per_head_linear(&x, &random(2, &[3, 4, 3], 1.0).into()).is_err());
    assert!(per_head_linear(&x, &random(2, &[2, 4, 2], 1.0).into()).is_err());
}

/// (x - mean) / sqrt(mean square + eps) over the last `dims` dims, flattened for it.
fn normalised(x: &Tensor, dims: usize, centred: bool, eps: f64) -> candle_core::Result<Tensor> {
    let lead = x.rank() - dims;
    let flat = x.flatten_from(lead)?;
    let flat = if centred { flat.broadcast_sub(&flat.mean_keepdim(D::Minus1)?)? } else { flat };
    let size = (flat.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    flat.broadcast_div(&size)?.reshape(x.shape())
}

#[test]
fn norms() {
    for shape in [[2, 7, 3, 5], [1, 300, 2, 64], [1, 1, 1, 40]] {
        let (h, v) = (shape[2], shape[3]);
        for (dims, size, eps) in [(1, 3.0, 1e-5), (2, 3.0, 1e-5), (1, 1e-4, 1e-6), (2, 1e4, 1e-5)] {
            for small in [&[h, v][..], &[v], &[1]] {
                let inputs = [random(1, &shape, size), random(2, small, 2.0), random(3, small, 1.0)];
                let what = format!("{shape:?} over {dims}, {small:?}, up to {size}");
                compare(
                    &format!("rms norm {what}"),
                    &inputs[..2],
                    |x| Ok(vec![norm::rms_norm_over(&x[0], dims, Some(&x[1]), eps)?]),
                    |x| Ok(vec![normalised(&x[0], dims, false, eps)?.broadcast_mul(&x[1])?]),
                    1e-5,
                );
                compare(
                    &format!("layer norm {what}"),
                    &inputs,
                    |x| Ok(vec![norm::layer_norm(&x[0], dims, Some(&x[1]), Some(&x[2]), eps)?]),
                    |x| {
                        let y = normalised(&x[0], dims, true, eps)?;
                        Ok(vec![y.broadcast_mul(&x[1])?.broadcast_add(&x[2])?])
                    },
                    1e-5,
                );
            }
        }
        for (size, eps) in [(3.0, 1e-6), (1e-3, 1e-6), (1e-3, 1e-24), (1e6, 1e-6)] {
            compare(
                &format!("l2 norm {shape:?} up to {size}"),
                &[random(1, &shape, size)],
                |x| Ok(vec![norm::l2_norm(&x[0], eps)?]),
                |x| Ok(vec![x[0].broadcast_div(&(x[0].sqr()?.sum_keepdim(3)? + eps)?.sqrt()?)?]),
                1e-5,
            );
        }
    }
    let zero: Var = Tensor::zeros((2, 3), candle_core::DType::F32, &Device::Cpu).unwrap().into();
    for y in [norm::l2_norm(&zero, 1e-24), norm::layer_norm(&zero, 1, None, None, 1e-5)] {
        assert_eq!(y.unwrap().value().to_vec2::<f32>().unwrap(), vec![vec![0.0; 3]; 2]);
    }
    assert!(norm::rms_norm_over(&zero, 3, None, 1e-5).is_err() && norm::rms_norm_over(&zero, 0, None, 1e-5).is_err());
}

#[test]
fn shapes() {
    for (b, t, g, k) in [(2, 5, 3, 4), (1, 1, 1, 1), (1, 130, 2, 7)] {
        let inputs =
            [random(1, &[b, t, g, k], 1.0), random(2, &[b, t, g, 2 * k + 1], 1.0), random(3, &[b, t, g, 1], 1.0)];
        compare(
            "concat",
            &inputs,
            |x| Ok(vec![shape::concat_last(&[&x[0], &x[1], &x[0], &x[2]])?]),
            |x| Ok(vec![Tensor::cat(&[&x[0], &x[1], &x[0], &x[2]], 3)?]),
            TOLERANCE,
        );
        compare(
            "narrow",
            &inputs[1..2],
            |x| Ok(vec![shape::narrow_last(&x[0], k, k + 1)?, shape::narrow_last(&x[0], 0, k)?]),
            |x| Ok(vec![x[0].narrow(3, k, k + 1)?, x[0].narrow(3, 0, k)?]),
            TOLERANCE,
        );
        for group in [1, 2, 5] {
            compare(
                "repeat heads",
                &inputs[..1],
                |x| Ok(vec![shape::repeat_heads(&x[0], g * group)?]),
                |x| Ok(vec![naive::repeat_heads(&x[0], g * group)?]),
                TOLERANCE,
            );
        }
        for (n, at) in [(1, 0), (3, 0), (3, 2), (2, 1)] {
            let steps = |x: &Tensor| x.reshape((b, t, n, g, k));
            compare(
                &format!("micro-step {at} of {n}"),
                &[random(1, &[b, t * n, g, k], 1.0), random(2, &[b, t, g, k], 1.0)],
                |x| Ok(vec![shape::pick_micro_step(&x[0], n, at)?, shape::place_micro_step(&x[1], n, at)?]),
                |x| {
                    let (zero, one) = (x[1].zeros_like()?, &x[1]);
                    let all: Vec<&Tensor> = (0..n).map(|i| if i == at { one } else { &zero }).collect();
                    let placed = Tensor::stack(&all, 2)?.reshape((b, t * n, g, k))?;
                    Ok(vec![steps(&x[0])?.narrow(2, at, 1)?.squeeze(2)?, placed])
                },
                TOLERANCE,
            );
        }
    }
    let x: Var = random(1, &[2, 5, 3, 4], 1.0).into();
    assert!(
        shape::concat_last(&[&x, &random(2, &[2, 5, 2, 4], 1.0).into()]).is_err() && shape::concat_last(&[]).is_err()
    );
    assert!(shape::narrow_last(&x, 2, 3).is_err() && shape::repeat_heads(&x, 4).is_err());
    assert!(shape::pick_micro_step(&x, 2, 0).is_err() && shape::place_micro_step(&x, 2, 2).is_err());
}

/// Rows whole; with several documents and padding; one that is all padding.
fn layouts(tokens: usize) -> [Arc<Documents>; 3] {
    let (a, b) = (tokens / 3 + 1, tokens / 2 + 1);
    #[allow(clippy::single_range_in_vec_init, reason = "one document, not its tokens")]
    let one = vec![2..tokens - 1];
    let mixed = Documents::new(tokens, vec![vec![1..a, a..a + 1, b..tokens], one.clone()]).unwrap();
    [Documents::whole(2, tokens), mixed, Documents::new(tokens, vec![vec![], one]).unwrap()]
}

/// Token by token: `next` of the carried value and the token gives the output and the new carried value.
fn by_token(
    x: &Tensor,
    before: &Tensor,
    documents: &Documents,
    next: impl Fn(&Tensor, &Tensor) -> candle_core::Result<(Tensor, Tensor)>,
) -> candle_core::Result<Vec<Tensor>> {
    let (mut outputs, mut carried) = (vec![], vec![]);
    for b in 0..x.dim(0)? {
        let mut kept = before.narrow(0, b, 1)?;
        // Padding is zero, as a product so that every input has a gradient in the reference.
        let mut rows = vec![(&kept * 0.0)?; x.dim(1)?];
        for (i, document) in documents.row(b).iter().enumerate() {
            if i > 0 {
                kept = kept.zeros_like()?;
            }
            for t in document.clone() {
                (rows[t], kept) = next(&kept, &x.narrow(0, b, 1)?.narrow(1, t, 1)?)?;
            }
        }
        outputs.push(Tensor::cat(&rows, 1)?);
        carried.push(kept);
    }
    Ok(vec![Tensor::cat(&outputs, 0)?, Tensor::cat(&carried, 0)?])
}

#[test]
fn token_shifts_and_prefix_sums() {
    for tokens in [9, 70] {
        for documents in layouts(tokens) {
            for rest in [&[3][..], &[2, 70]] {
                let dims = |start: &[usize]| [start, rest].concat();
                let inputs = [random(1, &dims(&[2, tokens]), 2.0), random(2, &dims(&[2, 1]), 2.0)];
                let what = format!("{rest:?} of {documents:?}");
                compare(
                    &format!("token shift {what}"),
                    &inputs,
                    |x| token_shift(&x[0], Some(&x[1]), &documents).map(|(y, last)| vec![y, last]),
                    |x| by_token(&x[0], &x[1], &documents, |kept, x| Ok((kept.clone(), x.clone()))),
                    TOLERANCE,
                );
                compare(
                    &format!("prefix sum {what}"),
                    &inputs,
                    |x| {
                        let before = x[1].reshape(&dims(&[2]))?;
                        let (y, after) = prefix_sum(&x[0], Some(&before), &documents)?;
                        Ok(vec![y, after.reshape(&dims(&[2, 1]))?])
                    },
                    |x| by_token(&x[0], &x[1], &documents, |kept, x| Ok(((kept + x)?, (kept + x)?))),
                    TOLERANCE,
                );
            }
        }
    }
    // Cut anywhere it is the same, and without anything before it begins with zero.
    let x = random(1, &[2, 11, 4], 1.0);
    let part = |from: usize, n: usize| Var::from(x.narrow(1, from, n).unwrap().contiguous().unwrap());
    let whole = |n| Documents::whole(2, n);
    let join = |a: &Var, b: &Var| Tensor::cat(&[a.value(), b.value()], 1).unwrap();
    let (shifted, _) = token_shift(&part(0, 11), None, &whole(11)).unwrap();
    let (sums, _) = prefix_sum(&part(0, 11), None, &whole(11)).unwrap();
    for cut in [1, 4, 10] {
        let (a, last) = token_shift(&part(0, cut), None, &whole(cut)).unwrap();
        let (b, _) = token_shift(&part(cut, 11 - cut), Some(&last), &whole(11 - cut)).unwrap();
        assert_eq!(common::largest(&join(&a, &b), shifted.value()), 0.0);
        let (a, sum) = prefix_sum(&part(0, cut), None, &whole(cut)).unwrap();
        let (b, _) = prefix_sum(&part(cut, 11 - cut), Some(&sum), &whole(11 - cut)).unwrap();
        assert!(common::largest(&join(&a, &b), sums.value()) < 1e-6);
    }
}

#[test]
fn lerps() {
    for small in [&[6][..], &[1], &[2, 5, 6]] {
        compare(
            &format!("lerp {small:?}"),
            &[random(1, &[2, 5, 6], 1.0), random(2, &[2, 5, 6], 1.0), random(3, small, 1.0)],
            |x| Ok(vec![lerp(&x[0], &x[1], &x[2])?]),
            |x| Ok(vec![(&x[0] + (&x[1] - &x[0])?.broadcast_mul(&x[2])?)?]),
            TOLERANCE,
        );
    }
}

#[test]
fn polynomials() {
    for (shape, f) in [(&[2, 5, 3, 4][..], 4), (&[1, 70, 2, 16], 16), (&[3, 1], 1), (&[1, 33, 1, 7], 7)] {
        let x = [random(1, shape, 3.0)];
        let products = |x: &Tensor, square: f64, cross: f64| -> candle_core::Result<Vec<Tensor>> {
            let element = |i: usize| x.narrow(D::Minus1, i, 1);
            let mut all = vec![(x.sqr()? * square)?];
            for i in 0..f {
                for j in i + 1..f {
                    all.push(((element(i)? * element(j)?)? * cross)?);
                }
            }
            Ok(all)
        };
        let w = f as f64;
        compare(
            &format!("quadratic {shape:?}"),
            &x,
            |x| Ok(vec![polynomial::quadratic(&x[0])?]),
            |x| Ok(vec![Tensor::cat(&products(&x[0], w.powf(-0.5), (2.0 / w).sqrt())?, D::Minus1)?]),
            TOLERANCE,
        );
        compare(
            &format!("taylor {shape:?}"),
            &x,
            |x| Ok(vec![polynomial::taylor(&x[0])?]),
            |x| {
                let one = ((x[0].narrow(D::Minus1, 0, 1)? * 0.0)? + 1.0)?;
                let mut all = vec![one, (&x[0] * w.powf(-0.25))?];
                all.extend(products(&x[0], (2.0 * w).powf(-0.5), w.powf(-0.5))?);
                Ok(vec![Tensor::cat(&all, D::Minus1)?])
            },
            TOLERANCE,
        );
        // What they are for.
        let (q, k): (Var, Var) = (x[0].clone().into(), random(2, shape, 3.0).into());
        let dot = |q: &Var, k: &Var| broadcast::row_dot(q, k).unwrap();
        let s = (dot(&q, &k).value() / w.sqrt()).unwrap();
        let taylor = dot(&polynomial::taylor(&q).unwrap(), &polynomial::taylor(&k).unwrap());
        let quadratic = dot(&polynomial::quadratic(&q).unwrap(), &polynomial::quadratic(&k).unwrap());
        let square = s.sqr().unwrap();
        assert!(common::difference(quadratic.value(), &square) < 1e-5);
        assert!(common::difference(taylor.value(), &(((square / 2.0).unwrap() + s).unwrap() + 1.0).unwrap()) < 1e-5);
    }
}
