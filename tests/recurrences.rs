//! The shared suite of the gated recurrences: chunked against the plain recurrence in f64, outputs, states and all
//! gradients, for every kind of gate, across documents and padding; wherever they are cut; and token by token.

mod common;

use candle_core::Tensor;
use common::{compare, difference, random};
use std::sync::Arc;
use subquad::Result;
use subquad::ops::delta_rule::delta_rule;
use subquad::ops::dplr::dplr;
use subquad::ops::gated_linear_attention::gated_linear_attention;
use subquad::ops::naive::{Recurrence, repeat_heads};
use subquad::ops::recurrent_step::{Token, recurrent_step};
use subquad::ops::value_gated_linear_attention::{value_gated_linear_attention, value_gated_step};
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

const GATES: [Gate; 3] = [Gate::None, Gate::Scalar, Gate::Vector];

/// Log gates of every strength: open, ordinary, nearly closed, shut.
const STRENGTHS: [f32; 4] = [1e-3, 0.3, 8.0, 90.0];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Operator {
    Linear,
    Bonus,
    Delta,
    Dplr,
    /// Values gated: its only gate is one per value channel.
    Values,
}

const OPERATORS: [Operator; 5] = [Operator::Linear, Operator::Bonus, Operator::Delta, Operator::Dplr, Operator::Values];

/// The inputs of a call in one list, generic over what holds them: fast, reference and step read the same places.
struct Inputs<'a, T> {
    operator: Operator,
    gated: bool,
    x: &'a [T],
}

impl<'a, T> Inputs<'a, T> {
    fn q(&self) -> &'a T {
        &self.x[0]
    }
    fn k(&self) -> &'a T {
        &self.x[1]
    }
    fn v(&self) -> &'a T {
        &self.x[2]
    }
    fn state(&self) -> &'a T {
        &self.x[3]
    }
    fn gate(&self) -> Option<&'a T> {
        self.gated.then(|| &self.x[4])
    }
    /// Bonus, beta, or a and b.
    fn own(&self) -> &'a [T] {
        &self.x[4 + usize::from(self.gated)..]
    }
}

fn inputs(operator: Operator, gate: Gate, strength: f32, sizes: Sizes) -> Vec<Tensor> {
    let (b, t, h, n, g, k, v) = sizes;
    // Keys of unit length and small transitions, as every mechanism has them: otherwise states explode.
    let unit = |seed, shape: &[usize]| {
        let x = random(seed, shape, 1.0);
        x.broadcast_div(&x.sqr().unwrap().sum_keepdim(3).unwrap().sqrt().unwrap()).unwrap()
    };
    let mut all = vec![
        random(1, &[b, t, h, k], 1.0),
        if operator == Operator::Delta { unit(2, &[b, t, g, k]) } else { random(2, &[b, t, g, k], 1.0) },
        random(3, &[b, t, g, v], 1.0),
        random(4, &[b, n, k, v], 1.0),
    ];
    let width = match gate {
        Gate::None => 0,
        Gate::Scalar => 1,
        Gate::Vector if operator == Operator::Values => v,
        Gate::Vector => k,
    };
    if width > 0 {
        all.push(random(7, &[b, t, n, width], strength).abs().unwrap().neg().unwrap());
    }
    match operator {
        Operator::Linear | Operator::Values => {}
        Operator::Bonus => all.push(random(8, &[h, k], 1.0)),
        // Up to 2: eigenvalues down to -1.
        Operator::Delta => all.push((random(8, &[b, t, n, 1], 1.0) + 1.0).unwrap()),
        Operator::Dplr => all.extend([unit(8, &[b, t, n, k]).neg().unwrap(), unit(8, &[b, t, n, k])]),
    }
    all
}

fn fast(i: &Inputs<Var>, documents: &Arc<Documents>) -> Result<Vec<Var>> {
    let (o, s) = match i.operator {
        Operator::Linear => gated_linear_attention(i.q(), i.k(), i.v(), i.gate(), None, Some(i.state()), documents)?,
        Operator::Bonus => {
            gated_linear_attention(i.q(), i.k(), i.v(), i.gate(), i.own().first(), Some(i.state()), documents)?
        }
        Operator::Delta => delta_rule(i.q(), i.k(), i.v(), &i.own()[0], i.gate(), Some(i.state()), documents)?,
        Operator::Dplr => {
            let transition = (&i.own()[0], &i.own()[1]);
            dplr((i.q(), i.k(), i.v()), transition, i.gate(), Some(i.state()), documents)?
        }
        Operator::Values => {
            let gate = i.gate().expect("a gate per value channel");
            value_gated_linear_attention(i.q(), i.k(), i.v(), gate, Some(i.state()), documents)?
        }
    };
    Ok(vec![o, s])
}

fn reference(i: &Inputs<Tensor>, documents: &Documents) -> candle_core::Result<Vec<Tensor>> {
    let (heads, width, states) = (i.q().dim(2)?, i.q().dim(3)?, i.state().dim(1)?);
    // Whole heads, gates on every channel.
    let whole = |x: &Tensor| {
        let x = repeat_heads(x, heads)?;
        x.broadcast_as((x.dim(0)?, x.dim(1)?, heads, width))
    };
    let values = i.operator == Operator::Values;
    let gate = i.gate().filter(|_| !values).map(whole).transpose()?;
    let value_gate = i.gate().filter(|_| values).map(|g| repeat_heads(g, heads)).transpose()?;
    let k = whole(i.k())?;
    // The delta rule is a transition that reads k after the decay and takes beta k of it away.
    let (write, transition) = match i.operator {
        Operator::Linear | Operator::Bonus | Operator::Values => (k, None),
        Operator::Delta => {
            let beta = whole(&i.own()[0])?;
            let read = match &gate {
                Some(gate) => (&k * gate.exp()?)?,
                None => k.clone(),
            };
            let write = (&k * beta)?;
            (write.clone(), Some((read, write.neg()?)))
        }
        Operator::Dplr => (k, Some((whole(&i.own()[0])?, whole(&i.own()[1])?))),
    };
    let state = repeat_heads(&i.state().transpose(1, 2)?.contiguous()?, heads)?.transpose(1, 2)?;
    let recurrence = Recurrence {
        q: i.q(),
        k: &write,
        v: &repeat_heads(i.v(), heads)?,
        gate: gate.as_ref(),
        value_gate: value_gate.as_ref(),
        transition: transition.as_ref().map(|(a, b)| (a, b)),
        bonus: if i.operator == Operator::Bonus { i.own().first() } else { None },
        state: &state,
    };
    let [o, s] = recurrence.run(documents)?;
    let (b, _, k, v) = s.dims4()?;
    // Query heads of one state all carry that state.
    Ok(vec![o, s.reshape((b, states, heads / states, k, v))?.narrow(2, 0, 1)?.squeeze(2)?])
}

/// Every operator with every kind of gate; without gate and without a tensor of its own per state, the states are
/// those of the keys.
fn cases(sizes: Sizes) -> impl Iterator<Item = (Operator, Gate, Sizes)> {
    let all = OPERATORS.into_iter().flat_map(|o| GATES.into_iter().map(move |g| (o, g)));
    all.filter(|(o, g)| *o != Operator::Values || *g == Gate::Vector).map(move |(o, g)| {
        let shared = g == Gate::None && matches!(o, Operator::Linear | Operator::Bonus);
        (o, g, if shared { with_states(sizes, sizes.4) } else { sizes })
    })
}

#[test]
fn chunked_is_the_recurrence() {
    for &sizes in SIZES {
        for (operator, kind, sizes) in cases(sizes) {
            for strength in STRENGTHS.into_iter().take(if kind == Gate::None { 1 } else { 4 }) {
                for documents in layouts(sizes.0, sizes.1) {
                    let gated = kind != Gate::None;
                    compare(
                        &format!("{operator:?} {kind:?} {strength} {sizes:?} {documents:?}"),
                        &inputs(operator, kind, strength, sizes),
                        |x| fast(&Inputs { operator, gated, x }, &documents),
                        |x| reference(&Inputs { operator, gated, x }, &documents),
                        // The gradient of a shut gate, nearly zero, is a difference of sums that are not.
                        if strength > 1.0 { 1e-3 } else { TOLERANCE },
                    );
                }
            }
        }
    }
}

#[test]
fn cut_anywhere_and_token_by_token() {
    let tokens = 150;
    for (operator, kind, sizes) in cases((2, tokens, 4, 2, 1, 8, 6)) {
        let gated = kind != Gate::None;
        let all = inputs(operator, kind, 0.5, sizes);
        // Everything but state and bonus has tokens.
        let part = |from: usize, n: usize, state: &Tensor| -> Vec<Tensor> {
            let cut = |(i, x): (usize, &Tensor)| match (i, x.rank()) {
                (3, _) => state.clone(),
                (_, 4) => x.narrow(1, from, n).unwrap(),
                _ => x.clone(),
            };
            all.iter().enumerate().map(cut).collect()
        };
        let run = |from: usize, n: usize, state: &Tensor| {
            let x: Vec<Var> = part(from, n, state).into_iter().map(Var::from).collect();
            let outputs = fast(&Inputs { operator, gated, x: &x }, &Documents::whole(2, n)).unwrap();
            (outputs[0].value().clone(), outputs[1].value().clone())
        };
        let what = format!("{operator:?} {kind:?}");
        let (whole, end) = run(0, tokens, &all[3]);
        for cut in [1, 63, 64, 65, 149] {
            let (first, middle) = run(0, cut, &all[3]);
            let (second, last) = run(cut, tokens - cut, &middle);
            let kv = Tensor::cat(&[first, second], 1).unwrap();
            assert!(difference(&kv, &whole) < TOLERANCE, "{what} cut at {cut}");
            assert!(difference(&last, &end) < TOLERANCE, "{what}: state, cut at {cut}");
        }
        let (mut state, mut outputs) = (all[3].clone(), vec![]);
        for t in 0..tokens {
            let x = part(t, 1, &state);
            let i = Inputs { operator, gated, x: &x };
            let own = i.own();
            if operator == Operator::Values {
                let gate = i.gate().expect("a gate per value channel");
                let (o, after) = value_gated_step((i.q(), i.k(), i.v()), gate, &state).unwrap();
                outputs.push(o);
                state = after;
                continue;
            }
            let token = Token {
                q: i.q(),
                k: i.k(),
                v: i.v(),
                gate: i.gate(),
                beta: if operator == Operator::Delta { own.first() } else { None },
                transition: if operator == Operator::Dplr { Some((&own[0], &own[1])) } else { None },
                bonus: if operator == Operator::Bonus { own.first() } else { None },
            };
            let (o, after) = recurrent_step(token, &state).unwrap();
            outputs.push(o);
            state = after;
        }
        assert!(difference(&Tensor::cat(&outputs, 1).unwrap(), &whole) < TOLERANCE, "{what}: steps");
        assert!(difference(&state, &end) < TOLERANCE, "{what}: state of steps");
    }
}
