//! The shared suite: every fast operator against its definition, outputs and the gradients of all inputs.

mod common;

use candle_core::{D, Device, Tensor};
use common::{compare, difference, random};
use subquad::ops::{self, Var, reference};

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

#[test]
fn feature_map() {
    for &(b, t, h, g, k, f) in SHAPES {
        compare(
            &format!("two softmaxes {:?}", (b, t, h, g, k, f)),
            &[random(1, &[b, t, g, k], 2.0), random(2, &[h, k, f], 1.0)],
            |x| Ok(vec![ops::feature_map::two_softmaxes(&x[0], &x[1])?]),
            |x| Ok(vec![reference::two_softmaxes(&x[0], &x[1])?]),
            TOLERANCE,
        );
    }
}

#[test]
fn attention() {
    for &(b, t, h, g, k, v) in SHAPES {
        for (window, past) in
            [(None, 0), (Some(1), 0), (Some(16), 0), (Some(64), 0), (Some(500), 0), (None, 3), (Some(7), 6)]
        {
            let inputs = [
                random(1, &[b, t, h, k], 2.0),
                random(2, &[b, t + past, g, k], 2.0),
                random(3, &[b, t + past, g, v], 1.0),
            ];
            let scale = 1.0 / (k as f64).sqrt();
            compare(
                &format!("attention {:?} window {window:?} past {past}", (b, t, h, g, k, v)),
                &inputs,
                |x| {
                    let (num, den) = ops::attention::attention(&x[0], &x[1], &x[2], window, scale as f32)?;
                    Ok(vec![num, den])
                },
                |x| Ok(reference::attention(&x[0], &x[1], &x[2], window, scale)?.to_vec()),
                TOLERANCE,
            );
        }
    }
}

#[test]
fn attention_with_large_logits_is_finite() {
    let (q, k) = (random(1, &[1, 70, 2, 8], 300.0), random(2, &[1, 70, 1, 8], 300.0));
    let v = random(3, &[1, 70, 1, 8], 1.0);
    let tape = ops::Tape::new();
    let q = tape.leaf(q);
    let (num, den) = ops::attention::attention(&q, &k.into(), &v.into(), Some(16), 1.0).unwrap();
    let o = ops::quotient::quotient(&num, &den, 0.0).unwrap();
    let grad = tape.backward(vec![(&o, random(4, &[1, 70, 2, 8], 1.0))]).unwrap().take(&q).unwrap();
    assert!(difference(&grad, &grad) == 0.0 && difference(o.value(), o.value()) == 0.0);
}

#[test]
fn attention_step() {
    let (q, k, v) = (random(1, &[2, 1, 4, 8], 2.0), random(2, &[2, 37, 2, 8], 2.0), random(3, &[2, 37, 2, 6], 1.0));
    let (num, den) = ops::attention::attention_step(&q, &k, &v, 0.3).unwrap();
    let [want_num, want_den] = reference::attention(&q, &k, &v, None, 0.3).unwrap();
    assert!(difference(&num, &want_num) < TOLERANCE && difference(&den, &want_den) < TOLERANCE);
}

#[test]
fn linear_attention() {
    for &(b, t, h, g, f, v) in SHAPES {
        for lag in [0, 1, 5, 64, 100] {
            let positive = |seed, shape: &[usize]| random(seed, shape, 1.0).abs().unwrap();
            let inputs = [
                positive(1, &[b, t, h, f]),
                positive(2, &[b, t, h, f]),
                random(3, &[b, t, g, v], 1.0),
                random(4, &[b, h, f, v], 1.0),
                positive(5, &[b, h, f]),
            ];
            if t <= lag {
                continue; // no key enters: nothing to differentiate, covered by the state test below
            }
            compare(
                &format!("linear attention {:?} lag {lag}", (b, t, h, g, f, v)),
                &inputs,
                |x| {
                    let o = ops::linear_attention::linear_attention(&x[0], &x[1], &x[2], lag, Some((&x[3], &x[4])))?;
                    Ok(vec![o.num, o.den, o.state, o.normaliser])
                },
                |x| Ok(reference::linear_attention(&x[0], &x[1], &x[2], lag, &x[3], &x[4])?.to_vec()),
                TOLERANCE,
            );
        }
    }
}

#[test]
fn linear_attention_state_cut_anywhere_and_step() {
    let (b, t, h, g, f, v) = (2, 150, 4, 2, 8, 6);
    let a: Var = random(1, &[b, t, h, f], 1.0).into();
    let k: Var = random(2, &[b, t, h, f], 1.0).into();
    let x: Var = random(3, &[b, t, g, v], 1.0).into();
    let whole = ops::linear_attention::linear_attention(&a, &k, &x, 0, None).unwrap();
    let part = |y: &Var, from: usize, n: usize| Var::constant(y.value().narrow(1, from, n).unwrap());
    for cut in [1, 63, 64, 65, 149] {
        let first =
            ops::linear_attention::linear_attention(&part(&a, 0, cut), &part(&k, 0, cut), &part(&x, 0, cut), 0, None)
                .unwrap();
        let n = t - cut;
        let second = ops::linear_attention::linear_attention(
            &part(&a, cut, n),
            &part(&k, cut, n),
            &part(&x, cut, n),
            0,
            Some((&first.state, &first.normaliser)),
        )
        .unwrap();
        let num = Tensor::cat(&[first.num.value(), second.num.value()], 1).unwrap();
        assert!(difference(&num, whole.num.value()) < TOLERANCE, "cut at {cut}");
        assert!(difference(second.state.value(), whole.state.value()) < TOLERANCE, "cut at {cut}");
    }
    let (mut s, mut z) = (whole.state.value().zeros_like().unwrap(), whole.normaliser.value().zeros_like().unwrap());
    let mut nums = vec![];
    for i in 0..t {
        let at = |y: &Var| part(y, i, 1).value().clone();
        let (num, _, s1, z1) =
            ops::linear_attention::linear_attention_step(&at(&a), Some((&at(&k), &at(&x))), &s, &z).unwrap();
        nums.push(num);
        (s, z) = (s1, z1);
    }
    assert!(difference(&Tensor::cat(&nums, 1).unwrap(), whole.num.value()) < TOLERANCE);
    assert!(difference(&z, whole.normaliser.value()) < TOLERANCE);
}

#[test]
fn operators_are_causal() {
    let (b, t, h, k) = (1, 100, 2, 8);
    let run = |x: &Tensor| {
        let x: Var = x.abs().unwrap().into();
        let l = ops::linear_attention::linear_attention(&x, &x, &x, 3, None).unwrap();
        let (num, _) = ops::attention::attention(&x, &x, &x, Some(9), 1.0).unwrap();
        Tensor::cat(&[l.num.value(), num.value()], D::Minus1).unwrap()
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
        |x| Ok(vec![ops::quotient::quotient(&x[0], &x[1], 1e-12)?]),
        |x| Ok(vec![x[0].broadcast_div(&x[1].unsqueeze(3)?)?]),
        TOLERANCE,
    );
    compare(
        "joint quotient",
        &[num(1), den(2), num(3), den(4), random(5, &[h], 2.0)],
        |x| Ok(vec![ops::quotient::joint_quotient((&x[0], &x[1]), (&x[2], &x[3]), &x[4])?]),
        |x| Ok(vec![reference::joint_quotient(&x[0], &x[1], &x[2], &x[3], &x[4])?]),
        TOLERANCE,
    );
}

/// Cross-entropy of attention weights against the same formula on whole matrices.
#[test]
fn attention_entropy() {
    for (b, t, h, g, k, f, w) in [
        (2, 70, 2, 1, 8, 6, Some(16)),
        (1, 130, 2, 2, 8, 4, Some(64)),
        (1, 9, 1, 1, 4, 3, None),
        (1, 5, 2, 1, 4, 3, Some(64)),
    ] {
        let (q, keys) = (random(1, &[b, t, h, k], 2.0), random(2, &[b, t, g, k], 2.0));
        let positive = |seed| (random(seed, &[b, t, h, f], 1.0).abs().unwrap() + 0.01).unwrap();
        let mut inputs = vec![positive(3), positive(4)];
        if w.is_some() {
            inputs.push(random(5, &[h], 1.0));
        }
        let slow = |x: &[Tensor]| {
            let heads_first = |y: &Tensor| y.to_dtype(candle_core::DType::F64)?.transpose(1, 2)?.contiguous();
            let (q, keys) = (heads_first(&q)?, heads_first(&reference::repeat_heads(&keys, h)?)?);
            let scores = (q.matmul(&keys.t()?)? * 0.5)?;
            let mask = |keep: &dyn Fn(usize, usize) -> bool| {
                let m: Vec<f64> = (0..t)
                    .flat_map(|i| (0..t).map(move |j| (i, j)))
                    .map(|(i, j)| f64::from(u8::from(keep(i, j))))
                    .collect();
                Tensor::from_vec(m, (1, 1, t, t), &Device::Cpu)
            };
            let minus = |m: &Tensor| (m - 1.0)? * 1e30;
            let causal = mask(&|i, j| j <= i)?;
            let p = candle_nn::ops::softmax(&scores.broadcast_add(&minus(&causal)?)?, D::Minus1)?;
            let (a, c) = (heads_first(&x[0])?, heads_first(&x[1])?);
            let length = w.unwrap_or(0);
            let phi = a.matmul(&c.t()?)?.broadcast_mul(&mask(&|i, j| j + length <= i)?)?;
            let total = match w {
                None => phi,
                Some(_) => {
                    let window = mask(&|i, j| j <= i && j + length > i)?;
                    let s = scores.broadcast_add(&minus(&window)?)?;
                    let e = s.broadcast_sub(&s.max_keepdim(D::Minus1)?)?.exp()?;
                    (phi + e.broadcast_mul(&candle_nn::ops::sigmoid(&x[2])?.reshape((1, h, 1, 1))?)?)?
                }
            };
            let weights = total.broadcast_div(&total.sum_keepdim(D::Minus1)?)?.maximum(1e-12)?;
            let loss = (p * weights.log()?)?.neg()?.broadcast_mul(&causal)?.sum(D::Minus1)?.mean_all()?;
            Ok(vec![loss])
        };
        let fast = |x: &[Var]| {
            let window = w.map(|w| (w, &x[2]));
            Ok(vec![ops::attention_entropy::attention_entropy(&q, &keys, &x[0], &x[1], window, 0.5)?])
        };
        compare(&format!("attention entropy {t} {w:?}"), &inputs, fast, slow, 1e-4);
    }
}

#[test]
fn head_losses() {
    let (b, t, d, vocab) = (2, 33, 12, 50);
    let head = random(1, &[vocab, d], 1.0);
    let ids: Vec<u32> = (0..b * t).map(|i| (i * 7 % vocab) as u32).collect();
    let targets = ops::head::next_tokens(&ids, t);
    let counted: Vec<usize> = (0..b * t).filter(|i| targets[*i] != ops::head::IGNORE).collect();
    let log_probabilities = |h: &Tensor| -> candle_core::Result<Tensor> {
        let logits = h.reshape((b * t, d))?.matmul(&head.to_dtype(h.dtype())?.t()?)?;
        candle_nn::ops::log_softmax(&logits, D::Minus1)
    };
    compare(
        "cross-entropy",
        &[random(2, &[b, t, d], 1.0)],
        |x| Ok(vec![ops::head::cross_entropy(&x[0], &head, &targets)?]),
        |x| {
            let rows: Vec<u32> = counted.iter().map(|&i| i as u32).collect();
            let columns: Vec<u32> = counted.iter().map(|&i| targets[i]).collect();
            let n = rows.len();
            let picked = log_probabilities(&x[0])?.index_select(&Tensor::from_vec(rows, n, &Device::Cpu)?, 0)?;
            let picked = picked.gather(&Tensor::from_vec(columns, (n, 1), &Device::Cpu)?, 1)?;
            Ok(vec![picked.mean_all()?.neg()?])
        },
        TOLERANCE,
    );
    let (teacher, student) = (random(2, &[b, t, d], 1.0), random(3, &[b, t, d], 1.0));
    let sums = ops::head::compare(&[(&teacher, &head), (&student, &head)], &targets).unwrap();
    let rows = |h: &Tensor| log_probabilities(h).unwrap().to_vec2::<f32>().unwrap();
    let (p, q) = (rows(&teacher), rows(&student));
    let (mut nll, mut kl, mut agree) = (0.0, 0.0, 0);
    let arg = |x: &[f32]| (0..x.len()).max_by(|&i, &j| x[i].total_cmp(&x[j])).unwrap();
    for &i in &counted {
        nll -= f64::from(q[i][targets[i] as usize]);
        kl += (0..vocab).map(|j| f64::from(p[i][j].exp() * (p[i][j] - q[i][j]))).sum::<f64>();
        agree += u64::from(arg(&p[i]) == arg(&q[i]));
    }
    assert!((sums[1].nll - nll).abs() < 1e-3 && (sums[1].kl - kl).abs() < 1e-3, "{sums:?} {nll} {kl}");
    assert_eq!((sums[1].agree, sums[1].tokens, sums[0].agree), (agree, counted.len() as u64, counted.len() as u64));
}
