//! Operators of a recurrent mechanism with what each of them carries from call to call.
//!
//! A mechanism writes its formula once, in these operators. A call without a state computes whole sequences, a call with
//! one continues from it and leaves what the next needs, and a call of one token takes the recurrent form.

use super::State;
use super::window::after;
use crate::Result;
use crate::ops::attention_mask::{AttentionMask, KvLayout};
use crate::ops::broadcast::mul;
use crate::ops::delta_rule::delta_rule;
use crate::ops::dplr::dplr;
use crate::ops::gated_linear_attention::gated_linear_attention;
use crate::ops::linear_attention::{LinearAttention, linear_attention};
use crate::ops::linear_attention_step::{Entering, linear_attention_step};
use crate::ops::mlstm::{Inputs, Memory, mlstm, mlstm_step};
use crate::ops::prefix_sum::prefix_sum;
use crate::ops::recurrent_step::{Token, recurrent_step};
use crate::ops::short_convolution::short_convolution;
use crate::ops::token_shift::token_shift;
use crate::ops::value_gated_linear_attention::value_gated_linear_attention;
use crate::ops::{Documents, Var, attention};
use candle_core::{DType, Tensor};
use std::sync::Arc;

/// The state of one call, by the names that a mechanism gives its parts; none: nothing is carried.
pub struct StatefulOps<'a> {
    state: Option<&'a mut State>,
    documents: &'a Arc<Documents>,
    /// Tokens of each row's continuing document before this call.
    seen: Vec<usize>,
}

impl<'a> StatefulOps<'a> {
    pub(super) fn new(state: Option<&'a mut State>, documents: &'a Arc<Documents>) -> Self {
        let batch = documents.batch();
        let seen = state.as_ref().map_or_else(|| vec![0; batch], |s| s.past(batch).seen);
        StatefulOps { state, documents, seen }
    }

    /// Position of every token in its document, [B][T]; 0 for padding.
    pub fn positions(&self) -> Vec<Vec<usize>> {
        let row = |b: usize| {
            let mut positions = vec![0; self.documents.tokens()];
            for (i, document) in self.documents.row(b).iter().enumerate() {
                let first = if i == 0 { self.seen[b] } else { 0 };
                document.clone().for_each(|t| positions[t] = first + t - document.start);
            }
            positions
        };
        (0..self.documents.batch()).map(row).collect()
    }

    /// A number of every token's position, [B, T, 1, 1], on the device of `x`.
    pub fn of_positions(&self, x: &Var, f: impl Fn(usize) -> f64) -> Result<Var> {
        let data: Vec<f32> = self.positions().into_iter().flatten().map(|t| f(t) as f32).collect();
        let shape = (self.documents.batch(), self.documents.tokens(), 1, 1);
        Ok(Tensor::from_vec(data, shape, x.value().device())?.into())
    }

    /// What an earlier call left under `name`.
    pub fn get(&self, name: &str) -> Option<Var> {
        self.state.as_ref().and_then(|s| s.get(name)).map(|t| t.clone().into())
    }

    /// Leaves `value` for the next call.
    pub fn put(&mut self, name: &'static str, value: &Var) {
        if let Some(state) = &mut self.state {
            state.tensors.insert(name, value.value().clone());
        }
    }

    /// Whether every row has one token of a text that goes on: then an operator takes its recurrent form.
    pub fn one_token(&self) -> bool {
        let documents = self.documents;
        self.state.is_some() && documents.tokens() == 1 && (0..documents.batch()).all(|b| !documents.row(b).is_empty())
    }

    /// [`gated_linear_attention`] with its state `name`.
    pub fn gated(
        &mut self,
        name: &'static str,
        (q, k, v): (&Var, &Var, &Var),
        gate: Option<&Var>,
        bonus: Option<&Var>,
    ) -> Result<Var> {
        let before = self.get(name);
        let (o, after) = if self.one_token() {
            let states = gate.map_or(k.value().dim(2), |g| g.value().dim(2))?;
            let token = Token { gate: gate.map(Var::value), bonus: bonus.map(Var::value), ..token(q, k, v) };
            step(token, before, states)?
        } else {
            gated_linear_attention(q, k, v, gate, bonus, before.as_ref(), self.documents)?
        };
        self.put(name, &after);
        Ok(o)
    }

    /// [`linear_attention`] of features `a`, `b` [B, T, H, F] with its sums `names`: numerator and denominator.
    pub fn linear(&mut self, names: (&'static str, &'static str), a: &Var, b: &Var, v: &Var) -> Result<(Var, Var)> {
        let before = self.get(names.0).zip(self.get(names.1));
        let (num, den, s, z) = if self.one_token() {
            let (batch, _, heads, features) = a.value().dims4()?;
            let (s, z) = match &before {
                Some((s, z)) => (s.value().clone(), z.value().clone()),
                None => {
                    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, a.value().device());
                    (zeros(&[batch, heads, features, v.value().dim(3)?])?, zeros(&[batch, heads, features])?)
                }
            };
            let entering = Entering { b: b.value(), v: v.value(), rows: &vec![0..1; batch] };
            let (num, den, s, z) = linear_attention_step(a.value(), Some(entering), self.documents, &s, &z)?;
            (num.into(), den.into(), s.into(), z.into())
        } else {
            let past = KvLayout { sink_tokens: 0, window_tokens: 0, seen: self.seen.clone() };
            let before = before.as_ref().map(|(s, z)| (s, z));
            let LinearAttention { num, den, state, normaliser } =
                linear_attention(a, b, v, None, self.documents, &past, before)?;
            (num, den, state, normaliser)
        };
        self.put(names.0, &s);
        self.put(names.1, &z);
        Ok((num, den))
    }

    /// Sums of `x` [B, T, ..] up to each token, the one before it being `name`.
    pub fn sum(&mut self, name: &'static str, x: &Var) -> Result<Var> {
        let (y, after) = prefix_sum(x, self.get(name).as_ref(), self.documents)?;
        self.put(name, &after);
        Ok(y)
    }

    /// [`attention::attention`] over what `mask` shows, without sinks, with its past keys and values `names`: numerator
    /// and denominator.
    pub fn attention(
        &mut self,
        names: (&'static str, &'static str),
        (q, k, v): (&Var, &Var, &Var),
        mask: AttentionMask,
        scale: f32,
    ) -> Result<(Var, Var)> {
        let state = self.state.as_deref();
        let (k, v) = (after(state, names.0, k)?, after(state, names.1, v)?);
        let window_tokens = k.value().dim(1)? - self.documents.tokens();
        let past = KvLayout { sink_tokens: 0, window_tokens, seen: self.seen.clone() };
        let both = attention::attention(q, &k, &v, mask, self.documents, &past, scale)?;
        if let Some(state) = &mut self.state {
            let next = past.after(self.documents, mask);
            state.tensors.insert(names.0, past.carry(k.value(), self.documents, &next)?);
            state.tensors.insert(names.1, past.carry(v.value(), self.documents, &next)?);
        }
        Ok(both)
    }

    /// `x` [B, T, H, V] with zeros at padding, where biases would leave something.
    pub fn without_padding(&self, x: &Var) -> Result<Var> {
        let (batch, tokens) = (self.documents.batch(), self.documents.tokens());
        let mut inside = vec![1f32; batch * tokens];
        for row in 0..batch {
            self.documents.padding(row).for_each(|gap| inside[row * tokens..][gap].fill(0.0));
        }
        if inside.iter().all(|x| *x == 1.0) {
            return Ok(x.clone());
        }
        mul(x, &Tensor::from_vec(inside, (batch, tokens, 1, 1), x.value().device())?.into())
    }

    /// [`value_gated_linear_attention`] with its state `name`.
    pub fn value_gated(&mut self, name: &'static str, (q, k, v): (&Var, &Var, &Var), gate: &Var) -> Result<Var> {
        let before = self.get(name);
        let (o, after) = value_gated_linear_attention(q, k, v, gate, before.as_ref(), self.documents)?;
        self.put(name, &after);
        Ok(o)
    }

    /// [`mlstm`] with the names of its sums and of their maximum.
    pub fn mlstm(&mut self, (sums, maximum): (&'static str, &'static str), x: Inputs, eps: f32) -> Result<Var> {
        let before = match (self.get(sums), self.get(maximum)) {
            (Some(sums), Some(maximum)) => Memory { sums, maximum },
            _ => {
                let (batch, _, states, _) = x.forget.value().dims4()?;
                Memory::zero(batch, states, x.k.value().dim(3)?, x.v.value().dim(3)?, x.v.value().device())?
            }
        };
        let (h, after) = if self.one_token() {
            let (h, after) = mlstm_step(x, &before, eps)?;
            (h.into(), after)
        } else {
            mlstm(x, &before, eps, self.documents)?
        };
        self.put(sums, &after.sums);
        self.put(maximum, &after.maximum);
        Ok(h)
    }

    /// [`delta_rule`] with its state `name`, in `micro` steps a token, side by side: [B, T * micro, ..].
    pub fn delta(
        &mut self,
        name: &'static str,
        (q, k, v): (&Var, &Var, &Var),
        beta: &Var,
        gate: Option<&Var>,
        micro: usize,
    ) -> Result<Var> {
        let before = self.get(name);
        let (o, after) = if self.one_token() && micro == 1 {
            let token = Token { gate: gate.map(Var::value), beta: Some(beta.value()), ..token(q, k, v) };
            step(token, before, beta.value().dim(2)?)?
        } else {
            delta_rule(q, k, v, beta, gate, before.as_ref(), &self.documents.times(micro))?
        };
        self.put(name, &after);
        Ok(o)
    }

    /// [`dplr`] with its state `name`.
    pub fn dplr(
        &mut self,
        name: &'static str,
        (q, k, v): (&Var, &Var, &Var),
        (a, b): (&Var, &Var),
        gate: Option<&Var>,
    ) -> Result<Var> {
        let before = self.get(name);
        let (o, after) = if self.one_token() {
            let transition = Some((a.value(), b.value()));
            let token = Token { gate: gate.map(Var::value), transition, ..token(q, k, v) };
            step(token, before, a.value().dim(2)?)?
        } else {
            dplr((q, k, v), (a, b), gate, before.as_ref(), self.documents)?
        };
        self.put(name, &after);
        Ok(o)
    }

    /// [`short_convolution`] of `x` [B, T, N] with its tail `name`.
    pub fn convolution(
        &mut self,
        name: &'static str,
        x: &Var,
        weight: &Var,
        bias: Option<&Var>,
        silu: bool,
    ) -> Result<Var> {
        let (y, tail) = short_convolution(x, weight, bias, silu, self.get(name).as_ref(), self.documents)?;
        self.put(name, &tail);
        Ok(y)
    }

    /// [`token_shift`] of `x` [B, T, ..], its last token being `name`.
    pub fn token_shift(&mut self, name: &'static str, x: &Var) -> Result<Var> {
        let (shifted, last) = token_shift(x, self.get(name).as_ref(), self.documents)?;
        self.put(name, &last);
        Ok(shifted)
    }
}

fn token<'a>(q: &'a Var, k: &'a Var, v: &'a Var) -> Token<'a> {
    Token { q: q.value(), k: k.value(), v: v.value(), gate: None, beta: None, transition: None, bonus: None }
}

fn step(token: Token, before: Option<Var>, states: usize) -> Result<(Var, Var)> {
    let (batch, _, _, key_width) = token.k.dims4()?;
    let state = match before {
        Some(state) => state.value().clone(),
        None => Tensor::zeros((batch, states, key_width, token.v.dim(3)?), DType::F32, token.k.device())?,
    };
    let (o, after) = recurrent_step(token, &state)?;
    Ok((o.into(), after.into()))
}
