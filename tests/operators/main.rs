//! The shared suite: every fast operator against its definition, outputs and the gradients of all inputs.

mod attention;
mod bf16;
#[path = "../common/mod.rs"]
mod common;
mod half;
mod linear_attention;
mod losses;
mod short_convolution;
mod stabiliser;
mod streams;

use candle_core::{D, Device, Tensor};
use common::{compare, difference, random};
use std::sync::Arc;
use subquad::ops::{self, AttentionMask, Documents, KvLayout, Span, Var, naive};

const TOLERANCE: f64 = 2e-5;

/// Batch, tokens, heads, kv heads, key width, value width.
const SHAPES: &[(usize, usize, usize, usize, usize, usize)] = &[
    (1, 1, 1, 1, 4, 4),
    (2, 5, 2, 1, 8, 6),
    (1, 63, 4, 2, 16, 16),
    (2, 65, 2, 2, 8, 8),
    (1, 130, 4, 1, 8, 12),
    (1, 200, 2, 1, 64, 64),
];

/// Ways to lay documents in rows: whole; padding of different length before; several documents, padding between and after
/// them, and rows without any.
#[allow(clippy::single_range_in_vec_init, reason = "one document, not its tokens")]
fn layouts(batch: usize, tokens: usize) -> Vec<Arc<Documents>> {
    let mut all = vec![Documents::whole(batch, tokens)];
    let mut add = |rows: [Vec<std::ops::Range<usize>>; 2]| {
        all.push(Documents::new(tokens, (0..batch).map(|i| rows[i % 2].clone()).collect()).unwrap());
    };
    if tokens > 4 {
        let (a, b) = (tokens / 3 + 1, tokens / 2 + 1);
        add([vec![1..tokens], vec![b..tokens]]);
        add([vec![1..a, a..b, b + 1..tokens], vec![0..tokens - 2]]);
        add([vec![0..2, 3..tokens - 1], vec![]]);
    }
    all
}

/// What queries see: spans, with and without sinks.
const SIGHTS: &[AttentionMask] = &[
    AttentionMask::ALL,
    AttentionMask { span: Span::Sliding { size: 1 }, sinks: 0 },
    AttentionMask { span: Span::Sliding { size: 16 }, sinks: 0 },
    AttentionMask { span: Span::Sliding { size: 64 }, sinks: 0 },
    AttentionMask { span: Span::Sliding { size: 500 }, sinks: 1 },
    AttentionMask { span: Span::Sliding { size: 7 }, sinks: 3 },
    AttentionMask { span: Span::Block { size: 16, previous: false }, sinks: 0 },
    AttentionMask { span: Span::Block { size: 64, previous: true }, sinks: 0 },
    AttentionMask { span: Span::Block { size: 5, previous: true }, sinks: 4 },
];

/// Nothing before the call, and rows of different lengths of which a state kept what `mask` asks for.
fn pasts(batch: usize, mask: AttentionMask) -> [KvLayout; 2] {
    let seen: Vec<usize> = (0..batch).map(|row| [9, 2][row % 2]).collect();
    let window_tokens = mask.keeps().unwrap_or(9).min(9 - mask.sinks);
    [KvLayout::none(batch), KvLayout { sink_tokens: mask.sinks, window_tokens, seen }]
}

/// The outputs with every input in their graph (a factor of 0 would take it out again): no gradient is one of zero.
fn connected(mut outputs: Vec<Tensor>, inputs: &[Tensor]) -> candle_core::Result<Vec<Tensor>> {
    for x in inputs {
        outputs[0] = outputs[0].broadcast_add(&(x.sum_all()? * 1e-30)?)?;
    }
    Ok(outputs)
}

#[test]
fn linear() {
    compare(
        "linear",
        &[random(1, &[2, 7, 12], 1.0), random(2, &[5, 12], 1.0)],
        |x| Ok(vec![ops::linear::linear(&x[0], &x[1])?]),
        |x| Ok(vec![x[0].broadcast_matmul(&x[1].t()?.unsqueeze(0)?)?]),
        TOLERANCE,
    );
}

#[test]
fn elementwise() {
    let inputs = [random(1, &[3, 9, 11], 6.0), random(2, &[3, 9, 11], 2.0)];
    compare(
        "add",
        &inputs,
        |x| Ok(vec![ops::elementwise::add(&x[0], &x[1])?]),
        |x| Ok(vec![(&x[0] + &x[1])?]),
        TOLERANCE,
    );
    compare(
        "add_scaled",
        &inputs,
        |x| Ok(vec![ops::elementwise::add_scaled(&x[0], 0.25, &x[1])?]),
        |x| Ok(vec![(&x[0] + (&x[1] * 0.25)?)?]),
        TOLERANCE,
    );
    compare(
        "swiglu",
        &inputs,
        |x| Ok(vec![ops::elementwise::swiglu(&x[0], &x[1])?]),
        |x| Ok(vec![(x[0].silu()? * &x[1])?]),
        TOLERANCE,
    );
    let target = inputs[1].clone();
    compare(
        "mean squared error",
        &inputs[..1],
        |x| Ok(vec![ops::elementwise::mean_squared_error(&x[0], &target)?]),
        |x| Ok(vec![(&x[0] - target.to_dtype(x[0].dtype())?)?.sqr()?.mean_all()?]),
        TOLERANCE,
    );
}

#[test]
fn rms_norm() {
    let w = random(2, &[20], 1.0);
    compare(
        "rms norm",
        &[random(1, &[2, 70, 20], 3.0)],
        |x| Ok(vec![ops::norm::rms_norm(&x[0], &w, 1e-5)?]),
        |x| Ok(vec![candle_nn::ops::rms_norm_slow(&x[0], &w.to_dtype(x[0].dtype())?, 1e-5)?]),
        TOLERANCE,
    );
}

#[test]
fn rope() {
    let (t, k) = (9, 8);
    let rotary = ops::rope::Rotary::new(k, 10000.0);
    let angles = rotary.angles(3, t);
    compare(
        "rope",
        &[random(1, &[2, t, 3, k], 1.0)],
        |x| Ok(vec![ops::rope::rope(&x[0], &angles)?]),
        |x| {
            let angle = |p: usize, i: usize| (3 + p) as f64 / 10000f64.powf(2.0 * i as f64 / k as f64);
            let all: Vec<f64> = (0..t).flat_map(|p| (0..k / 2).map(move |i| angle(p, i))).collect();
            let all = Tensor::from_vec(all, (t, k / 2), &Device::Cpu)?;
            let y = x[0].transpose(1, 2)?.contiguous()?;
            Ok(vec![candle_nn::rotary_emb::rope_slow(&y, &all.cos()?, &all.sin()?)?.transpose(1, 2)?])
        },
        TOLERANCE,
    );
}

/// On a part of the head, with a scale, at positions that differ between rows.
#[test]
#[allow(clippy::single_range_in_vec_init, reason = "one document, not its tokens")]
fn partial_rope() {
    let (t, k, turned) = (7, 10, 6);
    let inverse = |i: usize| 1.0 / 100f64.powf(i as f64 / 3.0);
    let rotary = ops::rope::Rotary::of((0..3).map(inverse), 1.25);
    let documents = Documents::new(t, vec![vec![2..7], vec![0..3, 3..7]]).unwrap();
    let angles = rotary.angles_in(&documents, &[0, 4]);
    let positions = [0, 0, 0, 1, 2, 3, 4, 4, 5, 6, 0, 1, 2, 3];
    compare(
        "partial rope",
        &[random(1, &[2, t, 3, k], 1.0)],
        |x| Ok(vec![ops::rope::rope(&x[0], &angles)?]),
        |x| {
            let all: Vec<f64> = positions.iter().flat_map(|p| (0..3).map(|i| f64::from(*p) * inverse(i))).collect();
            let all = Tensor::from_vec(all, (2, t, 1, 3), &Device::Cpu)?;
            let (cos, sin) = ((all.cos()? * 1.25)?, (all.sin()? * 1.25)?);
            let (a, b) = (x[0].narrow(3, 0, 3)?, x[0].narrow(3, 3, 3)?);
            let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
            let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
            Ok(vec![Tensor::cat(&[&first, &second, &x[0].narrow(3, turned, k - turned)?], 3)?])
        },
        TOLERANCE,
    );
}

/// Two of four experts, each a matrix; the choice is made by hand.
#[test]
fn experts() {
    use ops::moe::{combine, gather, route};
    let (n, d, count, k) = (9, 6, 4, 2);
    let inputs = [random(1, &[n, d], 1.0), random(2, &[count, d], 2.0), random(3, &[count, d, d], 1.0)];
    let logits = inputs[0].matmul(&inputs[1].t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
    let chosen = |row: usize, e: usize| logits[row].iter().filter(|l| **l > logits[row][e]).count() < k;
    let mask: Vec<f64> = (0..n * count).map(|i| f64::from(u8::from(chosen(i / count, i % count)))).collect();
    for normalised in [true, false] {
        compare(
            &format!("experts {normalised}"),
            &inputs,
            |x| {
                let (chosen, shares) = route(&ops::linear::linear(&x[0], &x[1])?, k, normalised)?;
                let flat = x[2].reshape(&[count, d * d])?;
                let mut outputs = vec![];
                for (e, tokens) in chosen.into_iter().enumerate() {
                    let only = ops::moe::gather(&flat, &Arc::new(vec![(e, 0)]))?.reshape(&[d, d])?;
                    outputs.push((ops::linear::linear(&gather(&x[0], &tokens)?, &only)?, tokens));
                }
                Ok(vec![combine(&outputs, &shares, d)?])
            },
            |x| {
                let mask = Tensor::from_vec(mask.clone(), (n, count), &Device::Cpu)?;
                let p = candle_nn::ops::softmax(&x[0].matmul(&x[1].t()?)?, D::Minus1)?.mul(&mask)?;
                let p = if normalised { p.broadcast_div(&p.sum_keepdim(1)?)? } else { p };
                let of = |e: usize| x[0].matmul(&x[2].get(e)?.t()?)?.broadcast_mul(&p.narrow(1, e, 1)?);
                let all = (0..count).map(of).collect::<candle_core::Result<Vec<_>>>()?;
                Ok(vec![Tensor::stack(&all, 0)?.sum(0)?])
            },
            TOLERANCE,
        );
    }
}

#[test]
fn feature_map() {
    for &(b, t, h, g, k, f) in SHAPES {
        compare(
            &format!("two softmaxes {:?}", (b, t, h, g, k, f)),
            &[random(1, &[b, t, g, k], 2.0), random(2, &[h, k, f], 1.0)],
            |x| Ok(vec![ops::paired_softmax::two_softmaxes(&x[0], &x[1])?]),
            |x| Ok(vec![naive::two_softmaxes(&x[0], &x[1])?]),
            TOLERANCE,
        );
    }
}

#[test]
fn operators_are_causal() {
    let (b, t, h, k) = (1, 100, 2, 8);
    let run = |x: &Tensor| {
        let x: Var = x.abs().unwrap().into();
        let (documents, past) = (Documents::whole(b, t), KvLayout::none(b));
        let beside = Some(AttentionMask::sliding(3));
        let l = ops::linear_attention::linear_attention(&x, &x, &x, beside, &documents, &past, None).unwrap();
        let (num, _) =
            ops::attention::attention(&x, &x, &x, AttentionMask::sliding(9), &documents, &past, 1.0).unwrap();
        let (flat, weight) = (x.reshape(&[b, t, h * k]).unwrap(), random(3, &[h * k, 4], 1.0).into());
        let (y, _) = ops::short_convolution::short_convolution(&flat, &weight, None, true, None, &documents).unwrap();
        let y = y.reshape(&[b, t, h, k]).unwrap();
        Tensor::cat(&[l.num.value(), num.value(), y.value()], D::Minus1).unwrap()
    };
    let x = random(1, &[b, t, h, k], 1.0);
    let changed = Tensor::cat(&[x.narrow(1, 0, 70).unwrap(), random(2, &[b, 30, h, k], 1.0)], 1).unwrap();
    let (before, after) = (run(&x), run(&changed));
    let first = |y: &Tensor| y.narrow(1, 0, 70).unwrap();
    assert_eq!(common::largest(&first(&before), &first(&after)), 0.0);
    assert!(common::largest(&before, &after) > 0.0);
}

#[test]
fn quotients() {
    let (b, t, h, v) = (2, 70, 3, 5);
    let num = |seed| random(seed, &[b, t, h, v], 1.0);
    let den = |seed| (random(seed, &[b, t, h], 1.0).abs().unwrap() + 0.1).unwrap();
    compare(
        "quotient",
        &[num(1), den(2)],
        |x| Ok(vec![ops::normalize::normalize(&x[0], &x[1], 1e-12)?]),
        |x| Ok(vec![x[0].broadcast_div(&x[1].unsqueeze(3)?)?]),
        TOLERANCE,
    );
    compare(
        "joint quotient",
        &[num(1), den(2), num(3), den(4), (random(5, &[h], 2.0).abs().unwrap() + 0.1).unwrap()],
        |x| Ok(vec![ops::normalize::joint_normalize((&x[0], &x[1]), (&x[2], &x[3]), &x[4])?]),
        |x| Ok(vec![naive::joint_normalize(&x[0], &x[1], &x[2], &x[3], &x[4])?]),
        TOLERANCE,
    );
}

/// Padding has neither numerator nor denominator: its output is zero and it has no gradient.
#[test]
fn quotients_of_padding() {
    let zero = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
    let tape = ops::Tape::new();
    let [nw, nl] = [0; 2].map(|_| tape.leaf(zero(&[1, 2, 1, 3])));
    let [dw, dl] = [0; 2].map(|_| tape.leaf(zero(&[1, 2, 1])));
    let gamma = tape.leaf(random(2, &[1], 1.0));
    let single = ops::normalize::normalize(&nw, &dw, 0.0).unwrap();
    let joint = ops::normalize::joint_normalize((&nw, &dw), (&nl, &dl), &gamma).unwrap();
    let up = random(1, &[1, 2, 1, 3], 1.0);
    let mut grads = tape.backward(vec![(&single, up.clone()), (&joint, up)]).unwrap();
    for x in [&single, &joint] {
        assert_eq!(common::largest(x.value(), &zero(&[1, 2, 1, 3])), 0.0);
    }
    for x in [&nw, &nl, &dw, &dl, &gamma] {
        assert_eq!(common::largest(&grads.take(x).unwrap(), &x.value().zeros_like().unwrap()), 0.0);
    }
}
