//! Operators along the text over bf16 inputs: computed in f32, outputs and gradients in the inputs' type, states in f32.

use super::*;
use candle_core::DType;
use ops::attention::{attention, attention_step};
use ops::attention_entropy::attention_entropy;
use ops::delta_rule::delta_rule;
use ops::dplr::dplr;
use ops::gated_linear_attention::gated_linear_attention;
use ops::linear_attention::linear_attention;
use ops::linear_attention_step::{Entering, linear_attention_step};
use ops::mlstm::{Inputs, Memory, mlstm, mlstm_step};
use ops::prefix_sum::prefix_sum;
use ops::recurrent_step::{Token, recurrent_step};
use ops::short_convolution::short_convolution;
use ops::token_shift::token_shift;
use ops::value_gated_linear_attention::{value_gated_linear_attention, value_gated_step};

/// Half a unit in the last place of bf16 is 2^-9 of a number at most.
const ROUNDING: f64 = 4e-3;

const B: usize = 2;
const T: usize = 70;
const H: usize = 4;
const N: usize = 2;
const G: usize = 1;
const K: usize = 8;
const V: usize = 6;

fn half(x: &Tensor) -> Tensor {
    x.to_dtype(DType::BF16).unwrap()
}

/// Runs an operator on the inputs in bf16, the last `states` of them in f32, and on the same numbers in f32. Outputs from
/// `f32_from` on are f32 in both.
fn agrees(
    what: &str,
    inputs: &[Tensor],
    states: usize,
    f32_from: usize,
    tolerance: f64,
    run: impl Fn(&[Var]) -> subquad::Result<Vec<Var>>,
) {
    let halves: Vec<Tensor> =
        inputs.iter().enumerate().map(|(i, x)| if i + states < inputs.len() { half(x) } else { x.clone() }).collect();
    let both = [halves.clone(), halves.iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect()].map(|inputs| {
        let tape = ops::Tape::new();
        let leaves: Vec<Var> = inputs.into_iter().map(|x| tape.leaf(x)).collect();
        let outputs = run(&leaves).unwrap();
        let seeds = outputs.iter().enumerate().map(|(i, x)| {
            let up = half(&random(50 + i as u64, x.value().dims(), 1.0));
            (x, up.to_dtype(x.value().dtype()).unwrap())
        });
        let mut gradients = tape.backward(seeds.collect()).unwrap();
        let gradients: Vec<_> = leaves.iter().map(|x| gradients.take(x)).collect();
        (outputs.into_iter().map(|x| x.value().clone()).collect::<Vec<_>>(), gradients)
    });
    let [(got, got_gradients), (want, want_gradients)] = both;
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let dtype = if i < f32_from { DType::BF16 } else { DType::F32 };
        assert_eq!(got.dtype(), dtype, "{what}: output {i}");
        let d = difference(got, want);
        assert!(d < tolerance, "{what}: output {i} differs by {d:.1e}");
    }
    for (i, (got, want)) in got_gradients.iter().zip(&want_gradients).enumerate() {
        assert_eq!(got.is_some(), want.is_some(), "{what}: gradient {i}");
        let (Some(got), Some(want)) = (got, want) else { continue };
        assert_eq!(got.dtype(), halves[i].dtype(), "{what}: gradient {i}");
        let d = difference(got, want);
        assert!(d < tolerance, "{what}: gradient {i} differs by {d:.1e}");
    }
}

fn pair((a, b): (Var, Var)) -> Vec<Var> {
    vec![a, b]
}

/// q, k, v of T tokens.
fn qkv() -> Vec<Tensor> {
    vec![random(1, &[B, T, H, K], 1.0), random(2, &[B, T, G, K], 0.5), random(3, &[B, T, G, V], 1.0)]
}

fn gate(seed: u64, width: usize) -> Tensor {
    random(seed, &[B, T, N, width], 0.5).abs().unwrap().neg().unwrap()
}

fn state() -> Tensor {
    random(4, &[B, N, K, V], 1.0)
}

#[test]
fn recurrences() {
    for documents in layouts(B, T) {
        let with = |more: Vec<Tensor>| [qkv(), more, vec![state()]].concat();
        agrees("gated", &with(vec![gate(5, K), random(6, &[H, K], 1.0)]), 1, 1, ROUNDING, |x| {
            let bonus = Some(&x[4]);
            Ok(pair(gated_linear_attention(&x[0], &x[1], &x[2], Some(&x[3]), bonus, Some(&x[5]), &documents)?))
        });
        agrees("values gated", &with(vec![gate(5, V)]), 1, 1, ROUNDING, |x| {
            Ok(pair(value_gated_linear_attention(&x[0], &x[1], &x[2], &x[3], Some(&x[4]), &documents)?))
        });
        agrees("delta", &with(vec![gate(5, 1), gate(6, 1).neg().unwrap()]), 1, 1, ROUNDING, |x| {
            Ok(pair(delta_rule(&x[0], &x[1], &x[2], &x[4], Some(&x[3]), Some(&x[5]), &documents)?))
        });
        let (a, b) = (random(6, &[B, T, N, K], 0.3), random(7, &[B, T, N, K], 0.3));
        agrees("dplr", &with(vec![gate(5, K), a, b]), 1, 1, ROUNDING, |x| {
            Ok(pair(dplr((&x[0], &x[1], &x[2]), (&x[4], &x[5]), Some(&x[3]), Some(&x[6]), &documents)?))
        });
        let memory = vec![random(8, &[B, N, K, V + 1], 1.0), random(9, &[B, N], 1.0)];
        let all = [qkv(), vec![gate(5, 1), random(6, &[B, T, N, 1], 1.0)], memory].concat();
        // Gates are f32 as the memory is. Between its operators numbers are bf16 again.
        agrees("mlstm", &all, 4, 1, 8.0 * ROUNDING, |x| {
            let inputs = Inputs { q: &x[0], k: &x[1], v: &x[2], forget: &x[3], input: &x[4] };
            let (h, after) = mlstm(inputs, &Memory { sums: x[5].clone(), maximum: x[6].clone() }, 1e-6, &documents)?;
            Ok(vec![h, after.sums])
        });
    }
}

#[test]
fn attentions() {
    let mask = AttentionMask { span: Span::Sliding { size: 16 }, sinks: 2 };
    for documents in layouts(B, T) {
        for past in pasts(B, mask) {
            let keys = T + past.columns();
            let (k, v) = (random(2, &[B, keys, G, K], 1.0), random(3, &[B, keys, G, V], 1.0));
            agrees("attention", &[random(1, &[B, T, H, K], 1.0), k, v.clone()], 0, 1, ROUNDING, |x| {
                Ok(pair(attention(&x[0], &x[1], &x[2], mask, &documents, &past, 0.4)?))
            });
            let positive = |seed, tokens| random(seed, &[B, tokens, H, 5], 1.0).abs().unwrap();
            let before = [random(7, &[B, H, 5, V], 1.0), random(8, &[B, H, 5], 1.0).abs().unwrap()];
            let all = [vec![positive(5, T), positive(6, keys), v], before.to_vec()].concat();
            agrees("linear attention", &all, 2, 1, ROUNDING, |x| {
                let before = Some((&x[3], &x[4]));
                let o = linear_attention(&x[0], &x[1], &x[2], Some(mask), &documents, &past, before)?;
                Ok(vec![o.num, o.den, o.state, o.normaliser])
            });
        }
        let (q, k) = (half(&random(1, &[B, T, H, K], 1.0)), half(&random(2, &[B, T, G, K], 1.0)));
        let features = |seed| (random(seed, &[B, T, H, 5], 1.0).abs().unwrap() + 0.1).unwrap();
        let gamma = (random(5, &[H], 1.0).abs().unwrap() + 0.1).unwrap();
        agrees("attention entropy", &[features(3), features(4), gamma], 0, 0, ROUNDING, |x| {
            let (q, k) = (q.to_dtype(x[0].value().dtype())?, k.to_dtype(x[0].value().dtype())?);
            Ok(vec![attention_entropy(&q, &k, &x[0], &x[1], Some((16, &x[2])), &documents, 0.5)?])
        });
    }
}

#[test]
fn sums_shifts_and_convolutions() {
    for documents in layouts(B, T) {
        let (x, before) = (random(1, &[B, T, N, K], 1.0), random(2, &[B, N, K], 1.0));
        agrees("prefix sum", &[x.clone(), before], 1, 1, ROUNDING, |x| {
            Ok(pair(prefix_sum(&x[0], Some(&x[1]), &documents)?))
        });
        agrees("token shift", &[x, random(2, &[B, 1, N, K], 1.0)], 0, 2, ROUNDING, |x| {
            Ok(pair(token_shift(&x[0], Some(&x[1]), &documents)?))
        });
        let (x, weight, before) = (random(1, &[B, T, K], 1.0), random(2, &[K, 4], 1.0), random(3, &[B, 3, K], 1.0));
        agrees("short convolution", &[x, weight, before], 0, 2, ROUNDING, |x| {
            Ok(pair(short_convolution(&x[0], &x[1], None, true, Some(&x[2]), &documents)?))
        });
    }
}

/// o of the inputs in bf16 is that of the same numbers in f32, rounded, and the state after is the same.
fn steps_agree(what: &str, inputs: &[Tensor], run: impl Fn(&[Tensor]) -> subquad::Result<Vec<Tensor>>) {
    let halves: Vec<Tensor> = inputs.iter().map(half).collect();
    let wide: Vec<Tensor> = halves.iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
    let (got, want) = (run(&halves).unwrap(), run(&wide).unwrap());
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        assert_eq!(got.dtype(), if i == 0 { DType::BF16 } else { DType::F32 }, "{what}: output {i}");
        assert!(difference(got, want) < if i == 0 { ROUNDING } else { 1e-6 }, "{what}: output {i}");
    }
}

#[test]
fn steps() {
    let token = |x: &Tensor| x.narrow(1, 0, 1).unwrap();
    let documents = Documents::whole(B, 1);
    let mut inputs: Vec<Tensor> = qkv().iter().map(token).collect();
    inputs.extend([token(&gate(5, K)), token(&random(6, &[B, T, N, K], 0.3)), token(&random(7, &[B, T, N, K], 0.3))]);
    steps_agree("recurrence", &inputs, |x| {
        let transition = Some((&x[4], &x[5]));
        let token = Token { q: &x[0], k: &x[1], v: &x[2], gate: Some(&x[3]), beta: None, transition, bonus: None };
        let (o, after) = recurrent_step(token, &state())?;
        Ok(vec![o, after])
    });
    inputs[3] = token(&gate(5, V));
    steps_agree("values gated", &inputs[..4], |x| {
        let (o, after) = value_gated_step((&x[0], &x[1], &x[2]), &x[3], &state())?;
        Ok(vec![o, after])
    });
    let (mask, past) = (AttentionMask::sliding(9), KvLayout::whole(B, 8));
    let (k, v) = (random(2, &[B, 9, G, K], 1.0), random(3, &[B, 9, G, V], 1.0));
    steps_agree("attention", &[inputs[0].clone(), k, v.clone()], |x| {
        let (num, den) = attention_step(&x[0], &x[1], &x[2], mask, &documents, &past, 0.4)?;
        Ok(vec![num, den])
    });
    let features = |seed, n| random(seed, &[B, n, H, 5], 1.0).abs().unwrap();
    let (s, z) = (random(7, &[B, H, 5, V], 1.0), random(8, &[B, H, 5], 1.0));
    steps_agree("linear attention", &[features(5, 1), features(6, 9), v], |x| {
        let entering = Entering { b: &x[1], v: &x[2], rows: &[2..5, 0..0] };
        let (num, den, s, z) = linear_attention_step(&x[0], Some(entering), &documents, &s, &z)?;
        Ok(vec![num, den, s, z])
    });
    let memory = Memory::zero(B, N, K, V, &Device::Cpu).unwrap();
    let all = [qkv(), vec![gate(5, 1), random(6, &[B, T, N, 1], 1.0)]].concat();
    let types = [DType::BF16, DType::BF16, DType::BF16, DType::F32, DType::F32];
    let x: Vec<Var> = all.iter().zip(types).map(|(x, dtype)| token(x).to_dtype(dtype).unwrap().into()).collect();
    let (h, after) =
        mlstm_step(Inputs { q: &x[0], k: &x[1], v: &x[2], forget: &x[3], input: &x[4] }, &memory, 1e-6).unwrap();
    let sums = after.sums.value().dtype();
    assert_eq!((h.dtype(), sums), (DType::BF16, DType::F32));
}

/// What is carried of the keys is a copy, in any type.
#[test]
fn keys_are_carried_as_they_are() {
    let mask = AttentionMask { span: Span::Sliding { size: 7 }, sinks: 3 };
    for documents in layouts(B, T) {
        for past in pasts(B, mask) {
            let keys = half(&random(1, &[B, T + past.columns(), G, K], 1.0));
            let after = past.after(&documents, mask);
            let kept = past.carry(&keys, &documents, &after).unwrap();
            let wide = past.carry(&keys.to_dtype(DType::F32).unwrap(), &documents, &after).unwrap();
            assert_eq!(kept.dtype(), DType::BF16);
            assert_eq!(common::largest(&kept, &wide), 0.0);
        }
    }
}
