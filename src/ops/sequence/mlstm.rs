//! The matrix memory of xLSTM (arXiv 2405.04517): linear attention with a forget gate, an exponential input gate and a
//! normaliser that is bounded below.
//!
//! ```text
//! C_t = f_t C_{t-1} + i_t k_t v_t^T      n_t = f_t n_{t-1} + i_t k_t      f = e^lf, i = e^input
//! h_t = q_t^T C_t / (max(|q_t . n_t|, 1) + eps)
//! ```
//!
//! carried as e^(-m) C and e^(-m) n with m of [`crate::ops::stabilise`], so that the bound is e^(-m), and eps counts from there:
//! h = num / (max(|den|, e^(-m)) + eps). The sums are those of [`crate::ops::gated_linear_attention`] over weighed keys and
//! values with a column of ones, whose column of the state is n. The gradient is the true one, m's included.

use crate::Result;
use crate::ops::cpu::simd::{dot, exp, simd};
use crate::ops::cpu::{HeadsView, Output, Slice};
use crate::ops::documents::Documents;
use crate::ops::gated_linear_attention::gated_linear_attention;
use crate::ops::recurrent_step::{Token, recurrent_step};
use crate::ops::stabilise::{Stabilised, stabilise};
use crate::ops::tape::{Var, record1};
use candle_core::Tensor;
use std::sync::Arc;

/// What a head carries from token to token, all zero at the start.
#[derive(Clone)]
pub struct Memory {
    /// e^(-m) C and, as its last column, e^(-m) n: [B, N, K, V + 1].
    pub sums: Var,
    /// m, [B, N].
    pub maximum: Var,
}

impl Memory {
    pub fn zero(batch: usize, states: usize, key_width: usize, value_width: usize) -> Result<Self> {
        let sums = Output::zeros(&[batch, states, key_width, value_width + 1]).tensor()?;
        Ok(Memory { sums: sums.into(), maximum: Output::zeros(&[batch, states]).tensor()?.into() })
    }
}

/// Inputs of a call.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// [B, T, H, K], any scale applied.
    pub q: &'a Var,
    /// [B, T, G, K]
    pub k: &'a Var,
    /// [B, T, G, V]
    pub v: &'a Var,
    /// lf, log gates <= 0, [B, T, N, 1].
    pub forget: &'a Var,
    /// Log input gates of any size, [B, T, N, 1].
    pub input: &'a Var,
}

/// h [B, T, H, V] and the memory after; G | N | H.
pub fn mlstm(x: Inputs, before: &Memory, eps: f32, documents: &Arc<Documents>) -> Result<(Var, Memory)> {
    let Stabilised { gate, weight, maximum, last } = stabilise(x.forget, x.input, &before.maximum, documents)?;
    let (k, v) = (weigh(x.k, &weight)?, with_ones(x.v, weight.value().dim(2)?)?);
    let (sums, after) = gated_linear_attention(x.q, &k, &v, Some(&gate), None, Some(&before.sums), documents)?;
    Ok((bounded_quotient(&sums, &maximum, eps)?, Memory { sums: after, maximum: last }))
}

/// One token, T = 1, without gradients.
pub fn mlstm_step(x: Inputs, before: &Memory, eps: f32) -> Result<(Tensor, Memory)> {
    let documents = Documents::whole(x.q.value().dim(0)?, 1);
    let constant = |x: &Var| Var::constant(x.value().clone());
    let (forget, input) = (constant(x.forget), constant(x.input));
    let Stabilised { gate, weight, maximum, last } =
        stabilise(&forget, &input, &constant(&before.maximum), &documents)?;
    let (k, v) = (weigh(&constant(x.k), &weight)?, with_ones(&constant(x.v), weight.value().dim(2)?)?);
    let (q, k, v, gate) = (x.q.value(), k.value(), v.value(), Some(gate.value()));
    let token = Token { q, k, v, gate, beta: None, transition: None, bonus: None };
    let (sums, after) = recurrent_step(token, before.sums.value())?;
    let h = bounded_quotient(&sums.into(), &maximum, eps)?;
    Ok((h.value().clone(), Memory { sums: after.into(), maximum: last }))
}

/// Keys of every state, weighed: `k` [B, T, G, K], `weight` [B, T, N, 1] -> [B, T, N, K].
fn weigh(k: &Var, weight: &Var) -> Result<Var> {
    let (batch, tokens, kv_heads, width) = k.value().dims4()?;
    let states = weight.value().dim(2)?;
    check(k, kv_heads, states)?;
    let values = [k.value().clone(), weight.value().clone()];
    let weighed = {
        let (ks, ws) = (HeadsView::of(&values[0])?, Slice::of(&values[1])?);
        let mut out = Output::unwritten(&[batch, tokens, states, width]);
        simd!(|| {
            for (i, (out, w)) in out.data().chunks_exact_mut(width).zip(&*ws).enumerate() {
                let k = row_of(&ks, i, states);
                out.iter_mut().zip(k).for_each(|(out, k)| *out = w * k);
            }
        });
        out.tensor()?
    };
    record1(&[k, weight], weighed, move |g| {
        let (ks, ws, gs) = (HeadsView::of(&values[0])?, Slice::of(&values[1])?, Slice::of(&g)?);
        let (mut dk, mut dw) = (Output::zeros(values[0].dims()), Output::unwritten(values[1].dims()));
        let share = states / kv_heads;
        simd!(|| {
            for (i, ((g, w), dw)) in gs.chunks_exact(width).zip(&*ws).zip(dw.data()).enumerate() {
                *dw = dot(g, row_of(&ks, i, states));
                let dk = &mut dk.data()[i / share * width..][..width];
                dk.iter_mut().zip(g).for_each(|(dk, g)| *dk += w * g);
            }
        });
        Ok(vec![Some(dk.tensor()?), Some(dw.tensor()?)])
    })
}

/// Values of every state with a column of ones: `v` [B, T, G, V] -> [B, T, N, V + 1].
fn with_ones(v: &Var, states: usize) -> Result<Var> {
    let (batch, tokens, kv_heads, width) = v.value().dims4()?;
    check(v, kv_heads, states)?;
    let extended = {
        let vs = HeadsView::of(v.value())?;
        let mut out = Output::unwritten(&[batch, tokens, states, width + 1]);
        for (i, out) in out.data().chunks_exact_mut(width + 1).enumerate() {
            out[..width].copy_from_slice(row_of(&vs, i, states));
            out[width] = 1.0;
        }
        out.tensor()?
    };
    let share = states / kv_heads;
    record1(&[v], extended, move |g| {
        let gs = Slice::of(&g)?;
        let mut dv = Output::zeros(&[batch, tokens, kv_heads, width]);
        for (i, g) in gs.chunks_exact(width + 1).enumerate() {
            dv.data()[i / share * width..][..width].iter_mut().zip(g).for_each(|(dv, g)| *dv += g);
        }
        Ok(vec![Some(dv.tensor()?)])
    })
}

fn check(x: &Var, kv_heads: usize, states: usize) -> Result<()> {
    if kv_heads > 0 && states.is_multiple_of(kv_heads) {
        return Ok(());
    }
    let what = format!("{states} input gates do not share keys or values {:?}", x.value().dims());
    Err(candle_core::Error::Msg(what).into())
}

/// The row of a [B, T, G, _] tensor that row `i` of a [B, T, N, _] tensor reads.
fn row_of<'a>(x: &'a HeadsView, i: usize, states: usize) -> &'a [f32] {
    let (token, state) = (i / states, i % states);
    let t = token % x.tokens;
    x.head(token / x.tokens, state / (states / x.heads), t..t + 1).row(0)
}

/// num / (max(|den|, e^(-m)) + eps) of `sums` [B, T, H, V + 1], whose last column is den, and `maximum` [B, T, N, 1].
fn bounded_quotient(sums: &Var, maximum: &Var, eps: f32) -> Result<Var> {
    let (batch, tokens, heads, width) = sums.value().dims4()?;
    let width = width - 1;
    let share = heads / maximum.value().dim(2)?;
    let values = [sums.value().clone(), maximum.value().clone()];
    let h = {
        let (xs, ms) = (Slice::of(&values[0])?, Slice::of(&values[1])?);
        let mut h = Output::unwritten(&[batch, tokens, heads, width]);
        simd!(|| {
            for (i, (h, x)) in h.data().chunks_exact_mut(width).zip(xs.chunks_exact(width + 1)).enumerate() {
                let scale = 1.0 / (x[width].abs().max(exp(-ms[i / share])) + eps);
                h.iter_mut().zip(x).for_each(|(h, x)| *h = x * scale);
            }
        });
        h.tensor()?
    };
    let h_value = h.clone();
    record1(&[sums, maximum], h, move |g| {
        let (xs, ms) = (Slice::of(&values[0])?, Slice::of(&values[1])?);
        let (hs, gs) = (Slice::of(&h_value)?, Slice::of(&g)?);
        let (mut dx, mut dm) = (Output::unwritten(values[0].dims()), Output::zeros(values[1].dims()));
        simd!(|| {
            let rows = hs.chunks_exact(width).zip(gs.chunks_exact(width)).zip(xs.chunks_exact(width + 1));
            for (i, (((h, g), x), dx)) in rows.zip(dx.data().chunks_exact_mut(width + 1)).enumerate() {
                let (den, bound) = (x[width], exp(-ms[i / share]));
                let scale = 1.0 / (den.abs().max(bound) + eps);
                dx.iter_mut().zip(g).for_each(|(dx, g)| *dx = g * scale);
                let d = -scale * dot(g, h);
                let bounded = den.abs() < bound;
                dx[width] = if bounded { 0.0 } else { d * den.signum() };
                dm.data()[i / share] -= if bounded { d * bound } else { 0.0 };
            }
        });
        Ok(vec![Some(dx.tensor()?), Some(dm.tensor()?)])
    })
}
