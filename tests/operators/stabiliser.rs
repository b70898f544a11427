//! The stabiliser of input gates, and outputs in shares, against their formulas token by token.

use super::*;
use ops::stabilise::stabilise;

fn naive(x: &[Tensor], documents: &Documents) -> candle_core::Result<Vec<Tensor>> {
    let (forget, input) = (x[0].squeeze(3)?, x[1].squeeze(3)?);
    let (batch, tokens, _) = forget.dims3()?;
    let (mut all, mut last) = ([const { vec![] }; 3], vec![]);
    for row in 0..batch {
        let mut m = x[2].get(row)?;
        let mut rows = vec![[0; 3].map(|_| m.zeros_like().unwrap()); tokens];
        for (i, document) in documents.row(row).iter().enumerate() {
            if i > 0 {
                m = m.zeros_like()?;
            }
            for t in document.clone() {
                let (f, i) = (forget.get(row)?.get(t)?, input.get(row)?.get(t)?);
                let kept = (&f + &m)?;
                m = kept.maximum(&i)?;
                rows[t] = [(kept - &m)?, (i - &m)?.exp()?, m.clone()];
            }
        }
        for (j, all) in all.iter_mut().enumerate() {
            all.push(Tensor::stack(&rows.iter().map(|r| r[j].clone()).collect::<Vec<_>>(), 0)?);
        }
        last.push(m);
    }
    let stacked = all.iter().map(|rows| Tensor::stack(rows, 0)?.unsqueeze(3));
    stacked.chain([Tensor::stack(&last, 0)]).collect()
}

#[test]
fn every_gate_over_every_layout() {
    for (b, t, n) in [(1, 1, 1), (2, 9, 3), (2, 70, 2), (1, 150, 4)] {
        for (forget, gate, middle) in [(0.01, 1.0, 0.0), (1.0, 6.0, 0.0), (60.0, 60.0, 0.0), (5.0, 1.0, 50.0)] {
            for documents in layouts(b, t) {
                let inputs = [
                    random(1, &[b, t, n, 1], forget).abs().unwrap().neg().unwrap(),
                    (random(2, &[b, t, n, 1], gate) + middle).unwrap(),
                    (random(3, &[b, n], 2.0) + middle).unwrap(),
                ];
                compare(
                    &format!("stabiliser {:?} {forget} {gate} {middle} {documents:?}", (b, t, n)),
                    &inputs,
                    |x| {
                        let s = stabilise(&x[0], &x[1], &x[2], &documents)?;
                        Ok(vec![s.gate, s.weight, s.maximum, s.last])
                    },
                    |x| connected(naive(x, &documents)?, x),
                    5.0 * TOLERANCE,
                );
            }
        }
    }
}

#[test]
fn shares_of_two_outputs() {
    compare(
        "shares",
        &[random(1, &[2, 70, 3, 5], 1.0), random(2, &[2, 70, 3, 5], 1.0), random(3, &[3], 3.0)],
        |x| Ok(vec![ops::lerp::lerp(&x[0], &x[1], &x[2])?]),
        |x| {
            let share = candle_nn::ops::sigmoid(&x[2])?.unsqueeze(1)?;
            Ok(vec![(x[0].broadcast_mul(&share)? + x[1].broadcast_mul(&(1.0 - share)?)?)?])
        },
        TOLERANCE,
    );
}
