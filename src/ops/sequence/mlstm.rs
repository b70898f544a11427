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
use crate::ops::cpu::{HeadsView, Output, Slice, gradients_of};
use crate::ops::documents::Documents;
use crate::ops::gated_linear_attention::gated_linear_attention;
use crate::ops::naive::repeat_heads;
use crate::ops::operator::{Operator, apply1};
use crate::ops::recurrent_step::{Token, recurrent_step};
use crate::ops::stabilise::{Stabilised, stabilise};
use crate::ops::tape::Var;
use candle_core::{DType, Device, Tensor};
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
    pub fn zero(batch: usize, states: usize, key_width: usize, value_width: usize, device: &Device) -> Result<Self> {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, device);
        let sums = zeros(&[batch, states, key_width, value_width + 1])?;
        Ok(Memory { sums: sums.into(), maximum: zeros(&[batch, states])?.into() })
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
    check(k, k.value().dim(2)?, weight.value().dim(2)?)?;
    apply1(Weigh, &[k, weight])
}

struct Weigh;

impl Operator for Weigh {
    type Kept = ();

    fn formula(&self, x: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![repeat_heads(&x[0], x[1].dim(2)?)?.broadcast_mul(&x[1])?])
    }

    fn forward_cpu(&self, x: &[Tensor], _keep: bool) -> Result<(Vec<Tensor>, ())> {
        let (batch, tokens, _, width) = x[0].dims4()?;
        let states = x[1].dim(2)?;
        let (ks, ws) = (HeadsView::of(&x[0])?, Slice::of(&x[1])?);
        let mut out = Output::unwritten(&[batch, tokens, states, width]);
        simd!(|| {
            for (i, (out, w)) in out.data().chunks_exact_mut(width).zip(&*ws).enumerate() {
                let k = row_of(&ks, i, states);
                out.iter_mut().zip(k).for_each(|(out, k)| *out = w * k);
            }
        });
        Ok((vec![out.tensor()?], ()))
    }

    fn backward_cpu(&self, x: &[Tensor], (): (), wanted: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        let (_, _, kv_heads, width) = x[0].dims4()?;
        let states = x[1].dim(2)?;
        let (ks, ws, gs) = (HeadsView::of(&x[0])?, Slice::of(&x[1])?, Slice::of(&up[0])?);
        let (mut dk, mut dw) = (Output::zeros(x[0].dims()), Output::unwritten(x[1].dims()));
        let share = states / kv_heads;
        simd!(|| {
            for (i, ((g, w), dw)) in gs.chunks_exact(width).zip(&*ws).zip(dw.data()).enumerate() {
                *dw = dot(g, row_of(&ks, i, states));
                let dk = &mut dk.data()[i / share * width..][..width];
                dk.iter_mut().zip(g).for_each(|(dk, g)| *dk += w * g);
            }
        });
        gradients_of(vec![dk, dw], wanted)
    }
}

/// Values of every state with a column of ones: `v` [B, T, G, V] -> [B, T, N, V + 1].
fn with_ones(v: &Var, states: usize) -> Result<Var> {
    check(v, v.value().dim(2)?, states)?;
    apply1(WithOnes { states }, &[v])
}

struct WithOnes {
    states: usize,
}

impl Operator for WithOnes {
    type Kept = ();

    fn formula(&self, x: &[Tensor]) -> Result<Vec<Tensor>> {
        let v = repeat_heads(&x[0], self.states)?;
        let (batch, tokens, states, _) = v.dims4()?;
        Ok(vec![Tensor::cat(&[&v, &Tensor::ones((batch, tokens, states, 1), v.dtype(), v.device())?], 3)?])
    }

    fn forward_cpu(&self, x: &[Tensor], _keep: bool) -> Result<(Vec<Tensor>, ())> {
        let (batch, tokens, _, width) = x[0].dims4()?;
        let vs = HeadsView::of(&x[0])?;
        let mut out = Output::unwritten(&[batch, tokens, self.states, width + 1]);
        for (i, out) in out.data().chunks_exact_mut(width + 1).enumerate() {
            out[..width].copy_from_slice(row_of(&vs, i, self.states));
            out[width] = 1.0;
        }
        Ok((vec![out.tensor()?], ()))
    }

    fn backward_cpu(&self, x: &[Tensor], (): (), wanted: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        let (_, _, kv_heads, width) = x[0].dims4()?;
        let (gs, share) = (Slice::of(&up[0])?, self.states / kv_heads);
        let mut dv = Output::zeros(x[0].dims());
        for (i, g) in gs.chunks_exact(width + 1).enumerate() {
            dv.data()[i / share * width..][..width].iter_mut().zip(g).for_each(|(dv, g)| *dv += g);
        }
        gradients_of(vec![dv], wanted)
    }
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
    apply1(BoundedQuotient { eps }, &[sums, maximum])
}

struct BoundedQuotient {
    eps: f32,
}

impl Operator for BoundedQuotient {
    /// h, which is output and kept alike.
    type Kept = Tensor;

    fn formula(&self, x: &[Tensor]) -> Result<Vec<Tensor>> {
        let width = x[0].dim(3)? - 1;
        let size = x[0].narrow(3, width, 1)?.abs()?;
        let bound = repeat_heads(&x[1], x[0].dim(2)?)?.neg()?.exp()?;
        let largest = size.lt(&bound)?.where_cond(&bound, &size)?;
        Ok(vec![x[0].narrow(3, 0, width)?.broadcast_mul(&(largest + f64::from(self.eps))?.recip()?)?])
    }

    fn forward_cpu(&self, x: &[Tensor], _keep: bool) -> Result<(Vec<Tensor>, Tensor)> {
        let (batch, tokens, heads, width) = x[0].dims4()?;
        let (width, share, eps) = (width - 1, heads / x[1].dim(2)?, self.eps);
        let (xs, ms) = (Slice::of(&x[0])?, Slice::of(&x[1])?);
        let mut h = Output::unwritten(&[batch, tokens, heads, width]);
        simd!(|| {
            for (i, (h, x)) in h.data().chunks_exact_mut(width).zip(xs.chunks_exact(width + 1)).enumerate() {
                let scale = 1.0 / (x[width].abs().max(exp(-ms[i / share])) + eps);
                h.iter_mut().zip(x).for_each(|(h, x)| *h = x * scale);
            }
        });
        let h = h.tensor()?;
        Ok((vec![h.clone()], h))
    }

    fn backward_cpu(&self, x: &[Tensor], h: Tensor, wanted: &[bool], up: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
        let (_, _, heads, width) = x[0].dims4()?;
        let (width, share, eps) = (width - 1, heads / x[1].dim(2)?, self.eps);
        let (xs, ms) = (Slice::of(&x[0])?, Slice::of(&x[1])?);
        let (hs, gs) = (Slice::of(&h)?, Slice::of(&up[0])?);
        let (mut dx, mut dm) = (Output::unwritten(x[0].dims()), Output::zeros(x[1].dims()));
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
        gradients_of(vec![dx, dm], wanted)
    }
}
