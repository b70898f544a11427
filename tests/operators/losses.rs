//! Losses: attention weights, labels, logits.

use super::*;

/// Cross-entropy of attention weights against the same formula on whole matrices.
#[test]
fn attention_entropy() {
    for (b, t, h, g, k, f, w) in [
        (2, 70, 2, 1, 8, 6, Some(16)),
        (1, 130, 2, 2, 8, 4, Some(64)),
        (1, 9, 1, 1, 4, 3, None),
        (1, 5, 2, 1, 4, 3, Some(64)),
    ] {
        for documents in layouts(b, t) {
            let (q, keys) = (random(1, &[b, t, h, k], 2.0), random(2, &[b, t, g, k], 2.0));
            let positive = |seed| (random(seed, &[b, t, h, f], 1.0).abs().unwrap() + 0.01).unwrap();
            let mut inputs = vec![positive(3), positive(4)];
            if w.is_some() {
                inputs.push((random(5, &[h], 1.0).abs().unwrap() + 0.1).unwrap());
            }
            let slow = |x: &[Tensor]| {
                let heads_first = |y: &Tensor| y.to_dtype(candle_core::DType::F64)?.transpose(1, 2)?.contiguous();
                let (q, keys) = (heads_first(&q)?, heads_first(&naive::repeat_heads(&keys, h)?)?);
                let scores = (q.matmul(&keys.t()?)? * 0.5)?;
                // Padding is taken as documents of one token, which do not count.
                let document = |row: usize, i: usize| documents.row(row).iter().position(|d| d.contains(&i));
                let mask = |keep: &dyn Fn(usize, usize) -> bool| {
                    let m: Vec<f64> = (0..b * t * t)
                        .map(|n| (n / t / t, n / t % t, n % t))
                        .map(|(row, i, j)| {
                            (i == j || document(row, i).is_some() && document(row, i) == document(row, j)) && keep(i, j)
                        })
                        .map(|kept| f64::from(u8::from(kept)))
                        .collect();
                    Tensor::from_vec(m, (b, 1, t, t), &Device::Cpu)
                };
                let counts: Vec<f64> =
                    (0..b * t).map(|n| f64::from(u8::from(document(n / t, n % t).is_some()))).collect();
                let counted = counts.iter().sum::<f64>() * h as f64;
                let counts = Tensor::from_vec(counts, (b, 1, t), &Device::Cpu)?;
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
                        (phi + e.broadcast_mul(&x[2].reshape((1, h, 1, 1))?)?)?
                    }
                };
                let weights = total.broadcast_div(&total.sum_keepdim(D::Minus1)?)?.maximum(1e-12)?;
                let loss = (p * weights.log()?)?.neg()?.broadcast_mul(&causal)?.sum(D::Minus1)?;
                Ok(vec![(loss.broadcast_mul(&counts)?.sum_all()? / counted)?])
            };
            let fast = |x: &[Var]| {
                let window = w.map(|w| (w, &x[2]));
                Ok(vec![ops::attention_entropy::attention_entropy(&q, &keys, &x[0], &x[1], window, &documents, 0.5)?])
            };
            compare(&format!("attention entropy {t} {w:?} {documents:?}"), &inputs, fast, slow, 1e-4);
        }
    }
}

#[test]
fn head_losses() {
    for cap in [None, Some(1.5)] {
        head_losses_of(cap);
    }
}

fn head_losses_of(cap: Option<f32>) {
    let (b, t, d, vocab) = (2, 33, 12, 50);
    let weight = random(1, &[vocab, d], 1.0);
    let head = ops::lm_head::Head { weight: weight.clone(), cap };
    let ids: Vec<u32> = (0..b * t).map(|i| (i * 7 % vocab) as u32).collect();
    let targets = ops::lm_head::next_tokens(&ids, t);
    let counted: Vec<usize> = (0..b * t).filter(|i| targets[*i] != ops::lm_head::IGNORE).collect();
    let log_probabilities = |h: &Tensor| -> candle_core::Result<Tensor> {
        let logits = h.reshape((b * t, d))?.matmul(&weight.to_dtype(h.dtype())?.t()?)?;
        let logits = match cap.map(f64::from) {
            Some(cap) => ((logits / cap)?.tanh()? * cap)?,
            None => logits,
        };
        candle_nn::ops::log_softmax(&logits, D::Minus1)
    };
    compare(
        "cross-entropy",
        &[random(2, &[b, t, d], 1.0)],
        |x| Ok(vec![ops::lm_head::cross_entropy(&x[0], &head, &targets)?]),
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
    let sums = ops::lm_head::compare(&[(&teacher, &head), (&student, &head)], &targets).unwrap();
    let logits = ops::lm_head::logits(&teacher, &head).unwrap();
    let normalised = candle_nn::ops::log_softmax(&logits, D::Minus1).unwrap().reshape((b * t, vocab)).unwrap();
    assert!(difference(&normalised, &log_probabilities(&teacher).unwrap()) < TOLERANCE);
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
