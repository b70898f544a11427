//! Softmax attention: what queries see, documents, padding, and keys before the call.

use super::*;
use ops::attention::{Scores, attention, attention_step};

#[test]
fn every_sight_over_every_layout() {
    for &(b, t, h, g, k, v) in SHAPES {
        for &mask in SIGHTS {
            for documents in layouts(b, t) {
                for past in pasts(b, mask) {
                    let keys = t + past.columns();
                    let inputs = [
                        random(1, &[b, t, h, k], 2.0),
                        random(2, &[b, keys, g, k], 2.0),
                        random(3, &[b, keys, g, v], 1.0),
                    ];
                    let scale = 1.0 / (k as f64).sqrt();
                    compare(
                        &format!("attention {:?} {mask:?} {documents:?} {past:?}", (b, t, h, g, k, v)),
                        &inputs,
                        |x| {
                            let (num, den) = attention(&x[0], &x[1], &x[2], mask, &documents, &past, scale as f32)?;
                            Ok(vec![num, den])
                        },
                        |x| {
                            let qkv = [&x[0], &x[1], &x[2]];
                            let outputs = naive::attention(qkv, mask, &documents, &past, scale)?;
                            connected(outputs.to_vec(), x)
                        },
                        TOLERANCE,
                    );
                }
            }
        }
    }
}

#[test]
fn capped_scores() {
    let scores = Scores { scale: 0.5, cap: Some(1.5) };
    for &(b, t, h, g, k, v) in &SHAPES[1..4] {
        for &mask in SIGHTS {
            for documents in layouts(b, t) {
                let past = KvLayout::none(b);
                let inputs =
                    [random(1, &[b, t, h, k], 2.0), random(2, &[b, t, g, k], 2.0), random(3, &[b, t, g, v], 1.0)];
                compare(
                    &format!("capped attention {mask:?} {documents:?}"),
                    &inputs,
                    |x| {
                        let (num, den) = attention(&x[0], &x[1], &x[2], mask, &documents, &past, scores)?;
                        Ok(vec![num, den])
                    },
                    |x| {
                        let qkv = [&x[0], &x[1], &x[2]];
                        let outputs = naive::capped_attention(qkv, mask, &documents, &past, 0.5, Some(1.5))?;
                        connected(outputs.to_vec(), x)
                    },
                    TOLERANCE,
                );
            }
        }
    }
    let (q, k, v) = (random(1, &[1, 1, 2, 8], 2.0), random(2, &[1, 9, 1, 8], 2.0), random(3, &[1, 9, 1, 8], 1.0));
    let (documents, past) = (Documents::whole(1, 1), KvLayout::whole(1, 8));
    let got = attention_step(&q, &k, &v, AttentionMask::ALL, &documents, &past, scores).unwrap();
    let want = naive::capped_attention([&q, &k, &v], AttentionMask::ALL, &documents, &past, 0.5, Some(1.5)).unwrap();
    assert!(difference(&got.0, &want[0]) < TOLERANCE && difference(&got.1, &want[1]) < TOLERANCE);
}

#[test]
fn large_logits_are_finite() {
    let (q, k) = (random(1, &[1, 70, 2, 8], 300.0), random(2, &[1, 70, 1, 8], 300.0));
    let v = random(3, &[1, 70, 1, 8], 1.0);
    let tape = ops::Tape::new();
    let q = tape.leaf(q);
    let mask = AttentionMask { span: Span::Sliding { size: 16 }, sinks: 2 };
    let documents = Documents::new(70, vec![vec![3..20, 20..70]]).unwrap();
    let (num, den) = attention(&q, &k.into(), &v.into(), mask, &documents, &KvLayout::none(1), 1.0).unwrap();
    let o = ops::normalize::normalize(&num, &den, 0.0).unwrap();
    let grad = tape.backward(vec![(&o, random(4, &[1, 70, 2, 8], 1.0))]).unwrap().take(&q).unwrap();
    assert!(difference(&grad, &grad) == 0.0 && difference(o.value(), o.value()) == 0.0);
}

#[test]
fn step() {
    let documents = Documents::new(1, [0, 1, 0, 0].map(|empty| vec![0..1; 1 - empty]).to_vec()).unwrap();
    for &mask in SIGHTS {
        let window_tokens = mask.keeps().unwrap_or(36).min(36);
        let past = KvLayout { sink_tokens: mask.sinks, window_tokens, seen: vec![36, 20, 3, 0] };
        let keys = past.columns() + 1;
        let q = random(1, &[4, 1, 4, 8], 2.0);
        let (k, v) = (random(2, &[4, keys, 2, 8], 2.0), random(3, &[4, keys, 2, 6], 1.0));
        let (num, den) = attention_step(&q, &k, &v, mask, &documents, &past, 0.3).unwrap();
        let [want_num, want_den] = naive::attention([&q, &k, &v], mask, &documents, &past, 0.3).unwrap();
        assert!(difference(&num, &want_num) < TOLERANCE && difference(&den, &want_den) < TOLERANCE, "{mask:?}");
    }
}

#[test]
fn keys_that_queries_need_are_there() {
    let x = |tokens| Var::from(random(1, &[1, tokens, 1, 4], 1.0));
    let run = |mask, past: &KvLayout| {
        let keys = x(past.columns() + 3);
        attention(&x(3), &keys, &keys, mask, &Documents::whole(1, 3), past, 1.0).is_ok()
    };
    let past = |sink_tokens, window_tokens| KvLayout { sink_tokens, window_tokens, seen: vec![20] };
    assert!(run(AttentionMask::sliding(5), &past(0, 4)) && !run(AttentionMask::sliding(5), &past(0, 3)));
    let sinks = AttentionMask { span: Span::Sliding { size: 5 }, sinks: 2 };
    assert!(run(sinks, &past(2, 4)) && !run(sinks, &past(1, 6)) && run(sinks, &past(0, 20)));
    assert!(!run(AttentionMask::ALL, &past(0, 19)) && !run(AttentionMask::sliding(0), &past(0, 20)));
}
