//! One token of any gated recurrence: [`crate::ops::gated_linear_attention`], [`crate::ops::delta_rule`], [`crate::ops::dplr`] as they
//! are written down, without gradients. The cost is one pass over the state.

use crate::Result;
use crate::ops::chunked::{flat, outer, per_state};
use crate::ops::cpu::simd::{axpy, exp, simd, triple};
use crate::ops::cpu::{HeadsView, Output, Sharing, Slice};
use crate::ops::layout::gather::widened;
use crate::ops::operator::on_device;
use candle_core::Tensor;
use rayon::prelude::*;

/// Tensors of one token, T = 1; shapes as in the operator. At most one of `beta` (delta rule), `transition`
/// (diagonal plus low rank) and `bonus` is given.
#[derive(Clone, Copy)]
pub struct Token<'a> {
    /// [B, 1, H, K]
    pub q: &'a Tensor,
    /// [B, 1, G, K]
    pub k: &'a Tensor,
    /// [B, 1, G, V]
    pub v: &'a Tensor,
    /// [B, 1, N, 1 or K]
    pub gate: Option<&'a Tensor>,
    /// [B, 1, N, 1]
    pub beta: Option<&'a Tensor>,
    /// a and b, [B, 1, N, K]
    pub transition: Option<(&'a Tensor, &'a Tensor)>,
    /// [H, K]
    pub bonus: Option<&'a Tensor>,
}

/// o [B, 1, H, V] and the state after, from the state before, [B, N, K, V].
pub fn recurrent_step(token: Token, state: &Tensor) -> Result<(Tensor, Tensor)> {
    let dtype = token.q.dtype();
    let (q, k, v) = (widened(token.q)?, widened(token.k)?, widened(token.v)?);
    let [gate, beta, bonus] = [token.gate, token.beta, token.bonus].map(|x| x.map(widened).transpose());
    let (gate, beta, bonus) = (gate?, beta?, bonus?);
    let transition = token.transition.map(|(a, b)| Ok::<_, crate::Error>((widened(a)?, widened(b)?))).transpose()?;
    let token = Token {
        q: &q,
        k: &k,
        v: &v,
        gate: gate.as_ref(),
        beta: beta.as_ref(),
        transition: transition.as_ref().map(|(a, b)| (a, b)),
        bonus: bonus.as_ref(),
    };
    let (o, after) = on_device(state, || recurrent_step_cpu(token, state), || recurrent_step_formula(token, state))?;
    Ok((o.to_dtype(dtype)?, after))
}

fn recurrent_step_formula(token: Token, state: &Tensor) -> Result<(Tensor, Tensor)> {
    let (batch, states, key_width, width) = state.dims4()?;
    let heads = token.q.dim(2)?;
    let of = |x: &Tensor| flat(&per_state(x, states, 1)?);
    let (q, k, v) = (of(token.q)?, of(token.k)?, of(token.v)?);
    let before = state.reshape((batch * states, key_width, width))?;
    let mut after = match token.gate {
        Some(gate) => before.broadcast_mul(&of(gate)?.exp()?.transpose(1, 2)?)?,
        None => before.clone(),
    };
    if let Some((a, b)) = token.transition {
        after = (after + outer(&of(b)?, &of(a)?.matmul(&before)?)?)?;
    }
    let written = match token.beta {
        Some(beta) => (&v - k.matmul(&after)?)?.broadcast_mul(&of(beta)?)?,
        None => v.clone(),
    };
    after = (after + outer(&k, &written)?)?;
    let o = match token.bonus {
        Some(bonus) => {
            let bonus = bonus.reshape((1, states, heads / states, key_width))?;
            let weight = q.reshape((batch, states, heads / states, key_width))?.broadcast_mul(&bonus)?;
            let weight = weight.reshape(q.shape())?.broadcast_mul(&k)?.sum_keepdim(2)?;
            (q.matmul(&before)? + weight.broadcast_mul(&v)?)?
        }
        None => q.matmul(&after)?,
    };
    Ok((o.reshape((batch, 1, heads, width))?, after.reshape(state.shape())?))
}

fn recurrent_step_cpu(token: Token, state: &Tensor) -> Result<(Tensor, Tensor)> {
    let (batch, states, kw, vw) = state.dims4()?;
    let (q, k, v) = (HeadsView::of(token.q)?, HeadsView::of(token.k)?, HeadsView::of(token.v)?);
    let (gate, beta) = (token.gate.map(HeadsView::of).transpose()?, token.beta.map(HeadsView::of).transpose()?);
    let transition =
        token.transition.map(|(a, b)| Ok::<_, crate::Error>((HeadsView::of(a)?, HeadsView::of(b)?))).transpose()?;
    let (before, bonus) = (Slice::of(state)?, token.bonus.map(Slice::of).transpose()?);
    let sharing = Sharing { batch, heads: q.heads, states, kv_heads: k.heads };
    let queries = sharing.queries_of(0).len();
    let mut out = Output::zeros(&[batch, 1, q.heads, vw]);
    let mut after = Output::unwritten(state.dims());
    let outputs = out.data().par_chunks_mut(queries * vw).zip(after.data().par_chunks_mut(kw * vw)).enumerate();
    outputs.for_each_init(Vec::new, |read, (i, (out, s))| {
        let (b, n) = (i / states, i % states);
        let row = |x: &HeadsView, head: usize| x.head(b, head, 0..1).row(0).to_vec();
        let g = n / (states / k.heads);
        let (k, v) = (row(&k, g), row(&v, g));
        let gate = gate.as_ref().map(|x| row(x, n));
        let beta = beta.as_ref().map(|x| row(x, n)[0]);
        let transition = transition.as_ref().map(|(x, y)| (row(x, n), row(y, n)));
        let queries: Vec<_> = sharing.queries_of(n).map(|h| (h, row(&q, h))).collect();
        s.copy_from_slice(&before[i * kw * vw..][..kw * vw]);
        simd!(|| {
            let read_all = |s: &[f32], out: &mut [f32]| {
                for ((h, q), out) in queries.iter().zip(out.chunks_exact_mut(vw)) {
                    s.chunks_exact(vw).zip(q).for_each(|(s, q)| axpy(out, *q, s));
                    if let Some(u) = &bonus {
                        axpy(out, triple(q, &k, &u[h * kw..][..kw]), &v);
                    }
                }
            };
            if bonus.is_some() {
                read_all(s, out);
            }
            crate::ops::cpu::zeroed(read, vw);
            if let Some((a, _)) = &transition {
                s.chunks_exact(vw).zip(a).for_each(|(s, a)| axpy(read, *a, s));
            }
            if let Some(gate) = &gate {
                for (c, s) in s.chunks_exact_mut(vw).enumerate() {
                    let factor = exp(gate[if gate.len() == 1 { 0 } else { c }]);
                    s.iter_mut().for_each(|s| *s *= factor);
                }
            }
            if let Some((_, b)) = &transition {
                s.chunks_exact_mut(vw).zip(b).for_each(|(s, b)| axpy(s, *b, read));
            }
            match beta {
                None => s.chunks_exact_mut(vw).zip(&k).for_each(|(s, k)| axpy(s, *k, &v)),
                Some(beta) => {
                    s.chunks_exact(vw).zip(&k).for_each(|(s, k)| axpy(read, *k, s));
                    read.iter_mut().zip(&v).for_each(|(r, v)| *r = beta * (v - *r));
                    s.chunks_exact_mut(vw).zip(&k).for_each(|(s, k)| axpy(s, *k, read));
                }
            }
            if bonus.is_none() {
                read_all(s, out);
            }
        });
    });
    Ok((out.tensor()?, after.tensor()?))
}
