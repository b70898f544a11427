//! mLSTM against the plain recurrence in f64 under candle's autograd: outputs, memories and all gradients, at gates of
//! every size, across documents and padding; wherever it is cut; and token by token.

mod common;

use candle_core::{D, DType, Device, Tensor};
use common::{compare, difference, random};
use std::sync::Arc;
use subquad::Result;
use subquad::ops::mlstm::{Inputs, Memory, mlstm, mlstm_step};
use subquad::ops::naive::repeat_heads;
use subquad::ops::{Documents, Var};

const EPS: f64 = 1e-6;
const TOLERANCE: f64 = 3e-5;
/// Of gradients: those of gates and maxima are what is left of larger sums.
const GRADIENTS: f64 = 1e-3;

/// Batch, tokens, query heads, states, kv heads, key width, value width.
type Sizes = (usize, usize, usize, usize, usize, usize, usize);

const SIZES: &[Sizes] =
    &[(1, 1, 1, 1, 1, 4, 4), (2, 9, 4, 2, 1, 8, 6), (1, 65, 2, 2, 2, 8, 12), (1, 150, 2, 2, 1, 16, 8)];

/// Smallest log forget gate, largest input gate in size, the input gates' middle.
const GATES: [(f32, f32, f32); 5] =
    [(1e-2, 1.0, 0.0), (1.0, 6.0, 0.0), (60.0, 60.0, 0.0), (5.0, 1.0, 50.0), (60.0, 1.0, -59.0)];

fn inputs((b, t, h, n, g, k, v): Sizes, (forget, input, middle): (f32, f32, f32)) -> Vec<Tensor> {
    vec![
        random(1, &[b, t, h, k], 1.0),
        random(2, &[b, t, g, k], 1.0),
        random(3, &[b, t, g, v], 1.0),
        random(4, &[b, t, n, 1], forget).abs().unwrap().neg().unwrap(),
        (random(5, &[b, t, n, 1], input) + f64::from(middle)).unwrap(),
        random(6, &[b, n, k, v + 1], 1.0),
        // A maximum that such gates have left behind.
        (random(7, &[b, n], 2.0) + f64::from(middle)).unwrap(),
    ]
}

fn call(x: &[Var]) -> (Inputs<'_>, Memory) {
    let inputs = Inputs { q: &x[0], k: &x[1], v: &x[2], forget: &x[3], input: &x[4] };
    (inputs, Memory { sums: x[5].clone(), maximum: x[6].clone() })
}

fn fast(x: &[Var], documents: &Arc<Documents>) -> Result<Vec<Var>> {
    let (inputs, memory) = call(x);
    let (h, after) = mlstm(inputs, &memory, EPS as f32, documents)?;
    Ok(vec![h, after.sums, after.maximum])
}

/// The definition, with the stabiliser as the paper has it.
fn reference(x: &[Tensor], documents: &Documents) -> candle_core::Result<Vec<Tensor>> {
    let (_, tokens, heads, _) = x[0].dims4()?;
    let (states, width) = (x[3].dim(2)?, x[2].dim(3)?);
    let (k, v) = (repeat_heads(&x[1], states)?, repeat_heads(&x[2], states)?);
    let ones = v.narrow(3, 0, 1)?.ones_like()?;
    let v = Tensor::cat(&[&v, &ones], 3)?;
    let (mut all, mut sums, mut maxima) = (vec![], vec![], vec![]);
    for b in 0..x[0].dim(0)? {
        let at = |x: &Tensor, t: usize| x.get(b)?.get(t);
        let (mut s, mut m) = (x[5].get(b)?, x[6].get(b)?);
        let mut rows = vec![Tensor::zeros((heads, width), DType::F64, v.device())?; tokens];
        for (i, document) in documents.row(b).iter().enumerate() {
            if i > 0 {
                (s, m) = (s.zeros_like()?, m.zeros_like()?);
            }
            for t in document.clone() {
                let (forget, input) = (at(&x[3], t)?.squeeze(1)?, at(&x[4], t)?.squeeze(1)?);
                let next = (&forget + &m)?.maximum(&input)?;
                let f = ((forget + m)? - &next)?.exp()?.unsqueeze(1)?.unsqueeze(2)?;
                let w = (input - &next)?.exp()?.unsqueeze(1)?.unsqueeze(2)?;
                let written = at(&k, t)?.unsqueeze(2)?.broadcast_mul(&at(&v, t)?.unsqueeze(1)?)?;
                s = (s.broadcast_mul(&f)? + written.broadcast_mul(&w)?)?;
                m = next;
                let share = |x: &Tensor| {
                    let (n, a, c) = x.dims3()?;
                    x.unsqueeze(1)?.broadcast_as((n, heads / states, a, c))?.reshape((heads, a, c))
                };
                let read = at(&x[0], t)?.unsqueeze(2)?.broadcast_mul(&share(&s)?)?.sum(1)?;
                let bound = share(&m.neg()?.exp()?.unsqueeze(1)?.unsqueeze(2)?)?.squeeze(2)?;
                let den = (read.narrow(D::Minus1, width, 1)?.abs()?.maximum(&bound)? + EPS)?;
                rows[t] = read.narrow(D::Minus1, 0, width)?.broadcast_div(&den)?;
            }
        }
        all.push(Tensor::stack(&rows, 0)?);
        sums.push(s);
        maxima.push(m);
    }
    Ok(vec![Tensor::stack(&all, 0)?, Tensor::stack(&sums, 0)?, Tensor::stack(&maxima, 0)?])
}

#[test]
fn chunked_is_the_recurrence() {
    for &sizes in SIZES {
        let (b, t) = (sizes.0, sizes.1);
        let mut layouts = vec![Documents::whole(b, t)];
        if t > 4 {
            let rows = [vec![1..t / 2, t / 2..t - 1], vec![]];
            layouts.push(Documents::new(t, (0..b).map(|i| rows[i % 2].clone()).collect()).unwrap());
        }
        for gates in GATES {
            for documents in &layouts {
                // Through gates that shut, the gradient of the first maximum is rounding alone: not compared.
                let all = inputs(sizes, gates);
                let tracked = if gates.0 > 1.0 { &all[..6] } else { &all[..] };
                let rest = &all[tracked.len()..];
                compare(
                    &format!("{sizes:?} {gates:?} {documents:?}"),
                    tracked,
                    |x| fast(&[x, &rest.iter().map(|x| x.clone().into()).collect::<Vec<_>>()].concat(), documents),
                    |x| {
                        let rest: candle_core::Result<Vec<_>> = rest.iter().map(|x| x.to_dtype(DType::F64)).collect();
                        reference(&[x, &rest?].concat(), documents)
                    },
                    GRADIENTS,
                );
            }
        }
    }
}

#[test]
fn cut_anywhere_and_token_by_token() {
    let tokens = 130;
    let all = inputs((2, tokens, 4, 2, 1, 8, 6), (1.0, 6.0, 0.0));
    let part = |from: usize, n: usize, memory: &Memory| -> Vec<Var> {
        let rows = all[..5].iter().map(|x| x.narrow(1, from, n).unwrap().into());
        rows.chain([memory.sums.clone(), memory.maximum.clone()]).collect()
    };
    let run = |from: usize, n: usize, memory: &Memory| {
        let x = part(from, n, memory);
        let (inputs, memory) = call(&x);
        mlstm(inputs, &memory, EPS as f32, &Documents::whole(2, n)).unwrap()
    };
    let start = Memory::zero(2, 2, 8, 6, &Device::Cpu).unwrap();
    let (whole, end) = run(0, tokens, &start);
    let same = |what: &str, o: &Tensor, memory: &Memory| {
        assert!(difference(o, whole.value()) < TOLERANCE, "{what}");
        assert!(difference(memory.sums.value(), end.sums.value()) < TOLERANCE, "{what}: sums");
        assert!(difference(memory.maximum.value(), end.maximum.value()) < TOLERANCE, "{what}: maximum");
    };
    for cut in [1, 63, 64, 65, 129] {
        let (first, middle) = run(0, cut, &start);
        let (second, last) = run(cut, tokens - cut, &middle);
        same(&format!("cut at {cut}"), &Tensor::cat(&[first.value(), second.value()], 1).unwrap(), &last);
    }
    let (mut memory, mut outputs) = (start, vec![]);
    for t in 0..tokens {
        let x = part(t, 1, &memory);
        let (inputs, before) = call(&x);
        let (h, after) = mlstm_step(inputs, &before, EPS as f32).unwrap();
        outputs.push(h);
        memory = after;
    }
    same("steps", &Tensor::cat(&outputs, 1).unwrap(), &memory);
}
