//! The shared suite of the gated recurrences: chunked against the plain recurrence in f64, outputs, states and all
//! gradients, for every kind of gate, across documents and padding; wherever they are cut; and token by token.

mod common;

use candle_core::{DType, Tensor};
use common::{compare, difference, random};
use std::sync::Arc;
use subquad::Result;
use subquad::ops::gated_linear_attention::{gated_linear_attention, gated_linear_attention_step};
use subquad::ops::reference::{Recurrence, repeat_heads};
use subquad::ops::{Documents, Var};

const TOLERANCE: f64 = 3e-5;

/// Batch, tokens, query heads, states, kv heads, key width, value width.
type Sizes = (usize, usize, usize, usize, usize, usize, usize);

fn with_states((b, t, h, _, g, k, v): Sizes, n: usize) -> Sizes {
    (b, t, h, n, g, k, v)
}

const SIZES: &[Sizes] = &[
    (1, 1, 1, 1, 1, 4, 4),
    (2, 5, 4, 2, 1, 8, 6),
    (1, 63, 2, 2, 1, 16, 8),
    (2, 65, 2, 2, 2, 8, 12),
    (1, 130, 4, 1, 1, 8, 8),
    (1, 200, 1, 1, 1, 64, 32),
    (1, 70, 1, 1, 1, 128, 128),
];

/// Ways to lay documents in rows: whole; several and padding; another row that is all padding.
fn layouts(batch: usize, tokens: usize) -> Vec<Arc<Documents>> {
    let mut all = vec![Documents::whole(batch, tokens)];
    if tokens > 4 {
        let (a, b) = (tokens / 3 + 1, tokens / 2 + 1);
        #[allow(clippy::single_range_in_vec_init, reason = "one document, not its tokens")]
        let rows = [vec![1..a, a..b, b..tokens], vec![2..tokens]];
        all.push(Documents::new(tokens, (0..batch).map(|i| rows[i % 2].clone()).collect()).unwrap());
        let last = [vec![0..2, 3..tokens - 1], vec![]];
        all.push(Documents::new(tokens, (0..batch).map(|i| last[i % 2].clone()).collect()).unwrap());
    }
    all
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Gate {
    None,
    Scalar,
    Vector,
}

/// Log gates of every strength: open, ordinary, nearly closed, shut.
const STRENGTHS: [f32; 4] = [1e-3, 0.3, 8.0, 90.0];

fn gates(kind: Gate, sizes: Sizes, strength: f32) -> Option<Tensor> {
    let (b, t, _, n, _, k, _) = sizes;
    let width = match kind {
        Gate::None => return None,
        Gate::Scalar => 1,
        Gate::Vector => k,
    };
    Some(random(7, &[b, t, n, width], strength).abs().unwrap().neg().unwrap())
}

/// Whole heads for the definition.
fn whole(x: &Tensor, heads: usize, width: usize) -> candle_core::Result<Tensor> {
    let x = repeat_heads(x, heads)?;
    x.broadcast_as((x.dim(0)?, x.dim(1)?, heads, width))
}

fn state_of_heads(s: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    repeat_heads(&s.transpose(1, 2)?.contiguous()?, heads)?.transpose(1, 2)
}

/// The state of the first query head of every state.
fn states_of_heads(s: &Tensor, states: usize) -> candle_core::Result<Tensor> {
    let (b, h, k, v) = s.dims4()?;
    s.reshape((b, states, h / states, k, v))?.narrow(2, 0, 1)?.squeeze(2)
}

/// The inputs q, k, v, state, then the gate.
fn inputs(sizes: Sizes, gate: Option<Tensor>) -> Vec<Tensor> {
    let (b, t, h, n, g, k, v) = sizes;
    let mut all = vec![
        random(1, &[b, t, h, k], 1.0),
        random(2, &[b, t, g, k], 1.0),
        random(3, &[b, t, g, v], 1.0),
        random(4, &[b, n, k, v], 1.0),
    ];
    all.extend(gate);
    all
}

fn reference(x: &[Tensor], gated: bool, bonus: bool, documents: &Documents) -> candle_core::Result<Vec<Tensor>> {
    let (heads, width, states) = (x[0].dim(2)?, x[0].dim(3)?, x[3].dim(1)?);
    let gate = if gated { Some(whole(&x[4], heads, width)?) } else { None };
    let [o, s] = Recurrence {
        q: &x[0],
        k: &repeat_heads(&x[1], heads)?,
        v: &repeat_heads(&x[2], heads)?,
        gate: gate.as_ref(),
        transition: None,
        bonus: if bonus { x.last() } else { None },
        state: &state_of_heads(&x[3], heads)?,
    }
    .run(documents)?;
    Ok(vec![o, states_of_heads(&s, states)?])
}

fn fast(x: &[Var], gated: bool, bonus: bool, documents: &Arc<Documents>) -> Result<Vec<Var>> {
    let gate = if gated { Some(&x[4]) } else { None };
    let bonus = if bonus { x.last() } else { None };
    let (o, s) = gated_linear_attention(&x[0], &x[1], &x[2], gate, bonus, Some(&x[3]), documents)?;
    Ok(vec![o, s])
}

#[test]
fn gated_linear_attention_is_its_recurrence() {
    for &sizes in SIZES {
        for kind in [Gate::None, Gate::Scalar, Gate::Vector] {
            // Without a gate the states are those of keys.
            let sizes = if kind == Gate::None { with_states(sizes, sizes.4) } else { sizes };
            // The gradient of a shut gate, nearly zero, is a difference of sums that are not.
            let tolerance = |strength: f32| if strength > 1.0 { 1e-3 } else { TOLERANCE };
            for strength in STRENGTHS.into_iter().take(if kind == Gate::None { 1 } else { 4 }) {
                for documents in layouts(sizes.0, sizes.1) {
                    for bonus in [false, true] {
                        let gate = gates(kind, sizes, strength);
                        let gated = gate.is_some();
                        let mut x = inputs(sizes, gate);
                        x.extend(bonus.then(|| random(8, &[sizes.2, sizes.5], 1.0)));
                        compare(
                            &format!("{kind:?} {strength} bonus {bonus} {sizes:?} {documents:?}"),
                            &x,
                            |x| fast(x, gated, bonus, &documents),
                            |x| reference(x, gated, bonus, &documents),
                            tolerance(strength),
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn gated_linear_attention_cut_anywhere_and_step() {
    let sizes = (2, 150, 4, 2, 1, 8, 6);
    for (kind, bonus) in [(Gate::None, false), (Gate::Scalar, false), (Gate::Vector, false), (Gate::Vector, true)] {
        let sizes = if kind == Gate::None { with_states(sizes, 1) } else { sizes };
        let gate = gates(kind, sizes, 0.5);
        let x = inputs(sizes, gate.clone());
        let u = bonus.then(|| Var::from(random(8, &[4, 8], 1.0)));
        let part = |i: usize, from: usize, n: usize| Var::from(x[i].narrow(1, from, n).unwrap());
        let run = |from: usize, n: usize, s: &Var| {
            let gate = gate.as_ref().map(|_| part(4, from, n));
            let documents = Documents::whole(2, n);
            let (q, k, v) = (part(0, from, n), part(1, from, n), part(2, from, n));
            gated_linear_attention(&q, &k, &v, gate.as_ref(), u.as_ref(), Some(s), &documents).unwrap()
        };
        let start = Var::from(x[3].clone());
        let (whole, end) = run(0, 150, &start);
        for cut in [1, 63, 64, 65, 149] {
            let (first, middle) = run(0, cut, &start);
            let (second, last) = run(cut, 150 - cut, &middle);
            let joined = Tensor::cat(&[first.value(), second.value()], 1).unwrap();
            assert!(difference(&joined, whole.value()) < TOLERANCE, "{kind:?} cut at {cut}");
            assert!(difference(last.value(), end.value()) < TOLERANCE, "{kind:?} state, cut at {cut}");
        }
        let (mut s, mut outputs) = (x[3].clone(), vec![]);
        for t in 0..150 {
            let at = |i: usize| x[i].narrow(1, t, 1).unwrap();
            let gate = gate.as_ref().map(|_| at(4));
            let u = u.as_ref().map(Var::value);
            let (o, after) = gated_linear_attention_step(&at(0), &at(1), &at(2), gate.as_ref(), u, &s).unwrap();
            outputs.push(o);
            s = after;
        }
        assert!(difference(&Tensor::cat(&outputs, 1).unwrap(), whole.value()) < TOLERANCE, "{kind:?} steps");
        assert!(difference(&s, end.value()) < TOLERANCE && s.dtype() == DType::F32, "{kind:?} state of steps");
    }
}
