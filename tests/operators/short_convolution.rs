//! Short convolution against its sum.

use super::*;
use ops::short_convolution::short_convolution;

#[test]
fn every_width_over_every_layout() {
    for (b, t, n) in [(1, 1, 3), (2, 2, 5), (2, 5, 8), (1, 63, 20), (3, 65, 7), (2, 200, 33)] {
        for (taps, silu, with_bias) in
            [(1, true, true), (2, false, true), (3, true, true), (4, true, false), (7, false, false)]
        {
            for documents in layouts(b, t) {
                let mut inputs = vec![random(1, &[b, t, n], 2.0), random(2, &[n, taps], 1.0)];
                // A filter of one tap has no inputs before; an empty tensor has no gradient to compare.
                let with_before = taps > 1;
                let before = random(3, &[b, taps - 1, n], 2.0);
                inputs.extend(with_before.then(|| before.clone()));
                inputs.extend(with_bias.then(|| random(4, &[n], 1.0)));
                compare(
                    &format!("short convolution {:?} {taps} taps {silu} {documents:?}", (b, t, n)),
                    &inputs,
                    |x| {
                        let (bias, before) = (with_bias.then(|| &x[x.len() - 1]), with_before.then(|| &x[2]));
                        let (y, tail) = short_convolution(&x[0], &x[1], bias, silu, before, &documents)?;
                        Ok(if with_before { vec![y, tail] } else { vec![y] })
                    },
                    |x| {
                        let bias = with_bias.then(|| &x[x.len() - 1]);
                        let none = before.to_dtype(x[0].dtype())?;
                        let before = if with_before { &x[2] } else { &none };
                        let [y, tail] = naive::short_convolution([&x[0], &x[1], before], bias, silu, &documents)?;
                        connected(if with_before { vec![y, tail] } else { vec![y] }, x)
                    },
                    TOLERANCE,
                );
            }
        }
    }
}

#[test]
fn nothing_before_is_zeros_before() {
    let documents = Documents::new(6, vec![vec![2..6], vec![0..6]]).unwrap();
    let (x, weight) = (Var::from(random(1, &[2, 6, 5], 1.0)), Var::from(random(2, &[5, 4], 1.0)));
    let zeros = Var::from(Tensor::zeros((2, 3, 5), candle_core::DType::F32, &Device::Cpu).unwrap());
    let (y, tail) = short_convolution(&x, &weight, None, true, None, &documents).unwrap();
    let (same_y, same_tail) = short_convolution(&x, &weight, None, true, Some(&zeros), &documents).unwrap();
    assert_eq!(common::largest(y.value(), same_y.value()), 0.0);
    assert_eq!(common::largest(tail.value(), same_tail.value()), 0.0);
}
