//! Linear attention, alone and beside a window.

use super::*;
use ops::linear_attention::linear_attention;

#[test]
fn beside_every_sight_over_every_layout() {
    for &(b, t, h, g, f, v) in SHAPES {
        let lags =
            [None, Some(AttentionMask::sliding(0)), Some(AttentionMask::sliding(5)), Some(AttentionMask::sliding(100))];
        let all = lags.into_iter().chain(SIGHTS.iter().copied().map(Some));
        for beside in all {
            for documents in layouts(b, t) {
                for past in pasts(b, beside.unwrap_or(AttentionMask::sliding(0))) {
                    let keys = t + past.columns();
                    let positive = |seed, shape: &[usize]| random(seed, shape, 1.0).abs().unwrap();
                    let inputs = [
                        positive(1, &[b, t, h, f]),
                        positive(2, &[b, keys, h, f]),
                        random(3, &[b, keys, g, v], 1.0),
                        random(4, &[b, h, f, v], 1.0),
                        positive(5, &[b, h, f]),
                    ];
                    compare(
                        &format!("linear attention {:?} {beside:?} {documents:?} {past:?}", (b, t, h, g, f, v)),
                        &inputs,
                        |x| {
                            let before = Some((&x[3], &x[4]));
                            let o = linear_attention(&x[0], &x[1], &x[2], beside, &documents, &past, before)?;
                            Ok(vec![o.num, o.den, o.state, o.normaliser])
                        },
                        |x| {
                            let x_refs = [&x[0], &x[1], &x[2], &x[3], &x[4]];
                            let outputs = naive::linear_attention(x_refs, beside, &documents, &past)?;
                            connected(outputs.to_vec(), x)
                        },
                        TOLERANCE,
                    );
                }
            }
        }
    }
}
