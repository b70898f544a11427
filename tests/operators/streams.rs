//! A text in parts: whole = cut anywhere, with padding before a part = token by token, for rows that differ in length and
//! in what they hold, in outputs and in what is kept.

use super::*;
use ops::attention::{attention, attention_step};
use ops::linear_attention::linear_attention;
use ops::linear_attention_step::{Entering, linear_attention_step};
use ops::short_convolution::short_convolution;

const TOKENS: usize = 150;
const TAPS: usize = 4;

/// Rows: whole; padding before; packed, with a gap; nothing; padding after.
#[allow(clippy::single_range_in_vec_init, reason = "one document, not its tokens")]
fn documents() -> Vec<Vec<std::ops::Range<usize>>> {
    vec![vec![0..TOKENS], vec![37..TOKENS], vec![5..20, 20..71, 80..TOKENS], vec![], vec![3..64]]
}

/// All tokens of q, a, x, and of what is kept of the past: k, v, b.
struct Text {
    queries: [Tensor; 3],
    keys: [Tensor; 3],
    weight: Var,
}

/// The state between parts: every buffer of keys, the linear state, and the convolution's inputs.
struct State {
    past: KvLayout,
    keys: [Tensor; 3],
    s: Tensor,
    z: Tensor,
    tail: Tensor,
}

impl Text {
    fn new() -> Self {
        let (b, t) = (documents().len(), TOKENS);
        Text {
            queries: [
                random(1, &[b, t, 4, 8], 2.0),
                random(2, &[b, t, 4, 5], 1.0).abs().unwrap(),
                random(3, &[b, t, 6], 1.0),
            ],
            keys: [
                random(4, &[b, t, 2, 8], 2.0),
                random(5, &[b, t, 2, 6], 1.0),
                random(6, &[b, t, 4, 5], 1.0).abs().unwrap(),
            ],
            weight: random(7, &[6, TAPS], 1.0).into(),
        }
    }

    fn start(&self) -> State {
        let batch = documents().len();
        let zeros = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
        State {
            past: KvLayout::none(batch),
            keys: self.keys.each_ref().map(|x| x.narrow(1, 0, 0).unwrap()),
            s: zeros(&[batch, 4, 5, 6]),
            z: zeros(&[batch, 4, 5]),
            tail: zeros(&[batch, TAPS - 1, 6]),
        }
    }

    /// Outputs of `n` tokens from `from` on, after `padding` tokens of padding in every row.
    fn part(
        &self,
        mask: AttentionMask,
        alone: bool,
        from: usize,
        n: usize,
        padding: usize,
        state: &mut State,
    ) -> Vec<Tensor> {
        let rows: Vec<Vec<_>> = documents().into_iter().map(|row| inside(&row, from, n, padding)).collect();
        for (row, all) in documents().iter().enumerate() {
            // A document that begins in this part, and is its first, does not go on from what came before.
            if all.iter().find(|d| d.end > from).is_some_and(|d| d.start >= from) {
                state.reset(row);
            }
        }
        let documents = Documents::new(padding + n, rows).unwrap();
        let cut = |x: &Tensor| {
            let part = x.narrow(1, from, n).unwrap();
            let mut shape = part.dims().to_vec();
            shape[1] = padding;
            Tensor::cat(&[random(9, &shape, 1.0), part], 1).unwrap()
        };
        let [q, a, x] = self.queries.each_ref().map(cut);
        let mut kv = vec![];
        for (old, new) in state.keys.iter().zip(&self.keys) {
            kv.push(Tensor::cat(&[old.clone(), cut(new)], 1).unwrap());
        }
        let [k, v, b] = [0, 1, 2].map(|i| kv[i].clone());
        let beside = (!alone).then_some(mask);
        let past = &state.past;
        let (num, den, linear) = if n + padding == 1 {
            let (num, den) = attention_step(&q, &k, &v, mask, &documents, past, 0.3).unwrap();
            let (columns, rows) = match beside {
                Some(mask) => past.leaving(&documents, mask),
                None => {
                    let present = |row| documents.row(row).len();
                    (past.columns()..past.columns() + 1, (0..documents.batch()).map(|row| 0..present(row)).collect())
                }
            };
            let [b, v] = [&b, &v].map(|x| x.narrow(1, columns.start, columns.len()).unwrap());
            let entering = (!columns.is_empty()).then_some(Entering { b: &b, v: &v, rows: &rows });
            let (num_l, den_l, s, z) = linear_attention_step(&a, entering, &documents, &state.s, &state.z).unwrap();
            (num, den, [num_l, den_l, s, z])
        } else {
            let [q, k, v, a, b] = [&q, &k, &v, &a, &b].map(|x| Var::from(x.clone()));
            let (num, den) = attention(&q, &k, &v, mask, &documents, past, 0.3).unwrap();
            let before = (&state.s.clone().into(), &state.z.clone().into());
            let l = linear_attention(&a, &b, &v, beside, &documents, past, Some(before)).unwrap();
            let l = [l.num, l.den, l.state, l.normaliser].map(|x| x.value().clone());
            (num.value().clone(), den.value().clone(), l)
        };
        let before = state.tail.clone().into();
        let (y, tail) = short_convolution(&x.into(), &self.weight, None, true, Some(&before), &documents).unwrap();
        let [num_l, den_l, s, z] = linear;
        let after = past.after(&documents, mask);
        let keys = [0, 1, 2].map(|i| past.carry(&kv[i], &documents, &after).unwrap());
        *state = State { past: after, keys, s, z, tail: tail.value().clone() };
        let outputs = [num, den, num_l, den_l, y.value().clone()];
        outputs.iter().map(|x| x.narrow(1, padding, n).unwrap()).collect()
    }

    /// Outputs and final state of the text in parts of the given lengths.
    fn run(&self, mask: AttentionMask, alone: bool, parts: &[(usize, usize)]) -> (Vec<Tensor>, State) {
        let (mut state, mut from, mut all) = (self.start(), 0, vec![]);
        for &(n, padding) in parts {
            all.push(self.part(mask, alone, from, n, padding, &mut state));
            from += n;
        }
        assert_eq!(from, TOKENS);
        let outputs = (0..5).map(|i| {
            let parts: Vec<&Tensor> = all.iter().map(|part| &part[i]).collect();
            Tensor::cat(&parts, 1).unwrap()
        });
        (outputs.collect(), state)
    }
}

impl State {
    fn reset(&mut self, row: usize) {
        self.past.seen[row] = 0;
        for x in [&mut self.s, &mut self.z, &mut self.tail] {
            let keep: Vec<f32> = (0..x.dims()[0]).map(|r| f32::from(u8::from(r != row))).collect();
            let mut shape = vec![1; x.dims().len()];
            shape[0] = x.dims()[0];
            *x = x.broadcast_mul(&Tensor::from_vec(keep, shape, &Device::Cpu).unwrap()).unwrap();
        }
    }
}

/// The documents of a part.
fn inside(row: &[std::ops::Range<usize>], from: usize, n: usize, padding: usize) -> Vec<std::ops::Range<usize>> {
    let clip = |at: usize| at.clamp(from, from + n) - from + padding;
    row.iter().map(|d| clip(d.start)..clip(d.end)).filter(|d| !d.is_empty()).collect()
}

#[test]
fn cut_anywhere_and_token_by_token() {
    let text = Text::new();
    let mut ways: Vec<Vec<(usize, usize)>> =
        [1, 7, 36, 63, 64, 65, 149].iter().map(|&cut| vec![(cut, 0), (TOKENS - cut, 3)]).collect();
    ways.push((0..TOKENS / 10).map(|i| (10, i % 3)).collect());
    ways.push(vec![(1, 0); TOKENS]);
    for (mask, alone) in SIGHTS.iter().map(|s| (*s, false)).chain([(AttentionMask::ALL, true), (SIGHTS[5], true)]) {
        let (whole, end) = text.run(mask, alone, &[(TOKENS, 0)]);
        for parts in &ways {
            let (outputs, state) = text.run(mask, alone, parts);
            let what = format!("{mask:?} alone {alone}, parts {parts:?}");
            for (i, (got, want)) in outputs.iter().zip(&whole).enumerate() {
                let d = difference(got, want);
                assert!(d < TOLERANCE, "{what}: output {i} differs by {d:.1e}");
            }
            assert_eq!(state.past, end.past, "{what}");
            let kept = |s: &State| [&s.keys[0], &s.keys[1], &s.keys[2], &s.s, &s.z, &s.tail].map(Tensor::clone);
            for (i, (got, want)) in kept(&state).iter().zip(&kept(&end)).enumerate() {
                let d = difference(got, want);
                assert!(d < TOLERANCE, "{what}: kept {i} differs by {d:.1e}");
            }
        }
    }
}
