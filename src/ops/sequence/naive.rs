//! The definitions: recurrences and plain formulas in candle's differentiable operations, a few lines each, any dtype.
//!
//! They are what the fast operators are compared with, outputs and all gradients (candle's own autograd). Never fast.

use crate::ops::{AttentionMask, Documents, KvLayout, Span};
use candle_core::{D, Result, Tensor};
use std::ops::Range;

/// Whole heads repeated: [B, T, G, K] -> [B, T, H, K].
pub fn repeat_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (b, t, g, k) = x.dims4()?;
    x.unsqueeze(3)?.broadcast_as((b, t, g, heads / g, k))?.reshape((b, t, heads, k))
}

/// [B, T, H, K] -> [softmax(x W_h), softmax(-x W_h)], features clamped below at 1e-12.
pub fn two_softmaxes(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let x = repeat_heads(x, w.dim(0)?)?.transpose(1, 2)?.contiguous()?;
    let y = x.broadcast_matmul(&w.unsqueeze(0)?)?.transpose(1, 2)?.contiguous()?;
    let half = |y: Tensor| candle_nn::ops::softmax(&y, D::Minus1)?.maximum(1e-12);
    Tensor::cat(&[half(y.clone())?, half(y.neg()?)?], D::Minus1)
}

/// Whether the query at position `p` of a document sees the key at position `r`.
pub fn sees(mask: AttentionMask, p: usize, r: usize) -> bool {
    let span = match mask.span {
        Span::All => true,
        Span::Sliding { size } => r + size > p,
        Span::Block { size, previous } => r / size == p / size || previous && r / size + 1 == p / size,
    };
    r <= p && (r < mask.sinks || span)
}

/// A row's document and the keys of its positions, those of the past included.
struct Positions<'a> {
    past: &'a KvLayout,
    row: usize,
    tokens: Range<usize>,
    /// Positions before the call.
    seen: usize,
}

impl<'a> Positions<'a> {
    fn of(documents: &Documents, past: &'a KvLayout, row: usize) -> Vec<Self> {
        let documents = documents.row(row).iter().enumerate();
        let of = |(i, d): (usize, &Range<usize>)| {
            let seen = if i == 0 { past.seen[row] } else { 0 };
            Positions { past, row, tokens: d.clone(), seen }
        };
        documents.map(of).collect()
    }

    /// Tokens and their positions.
    fn queries(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        self.tokens.clone().zip(self.seen..)
    }

    /// Rows [n, ..] of the keys `x` [B, past + T, ..] at these positions.
    fn select(&self, x: &Tensor, positions: &[usize]) -> Result<Tensor> {
        let columns = self.past.sink_tokens + self.past.window_tokens;
        let column = |&r: &usize| match r {
            r if r >= self.seen => columns + self.tokens.start + r - self.seen,
            r if r < self.past.sink_tokens => r,
            r => columns + r - self.seen,
        };
        let columns: Vec<u32> = positions.iter().map(|r| column(r) as u32).collect();
        x.get(self.row)?.index_select(&Tensor::new(columns, x.device())?, 0)
    }
}

/// A key enters when the window `beside` no longer sees it, at once if there is none: S += b_r v_r^T, z += b_r; then
/// num = a^T S, den = a.z, token by token. Returns num [B, T, H, V], den [B, T, H], S [B, H, F, V], z [B, H, F].
pub fn linear_attention(
    [a, b, v, s0, z0]: [&Tensor; 5],
    beside: Option<AttentionMask>,
    documents: &Documents,
    past: &KvLayout,
) -> Result<[Tensor; 4]> {
    let (batch, tokens, heads, _) = a.dims4()?;
    let v = repeat_heads(v, heads)?;
    let leaves = |p, r| beside.is_none_or(|mask| !sees(mask, p, r));
    let (mut nums, mut dens, mut states, mut normalisers) = (vec![], vec![], vec![], vec![]);
    for row in 0..batch {
        let (mut s, mut z) = (s0.get(row)?, z0.get(row)?);
        let mut num = vec![v.get(row)?.get(0)?.zeros_like()?; tokens];
        let mut den = vec![num[0].sum(1)?; tokens];
        for (i, document) in Positions::of(documents, past, row).iter().enumerate() {
            if i > 0 {
                (s, z) = (s.zeros_like()?, z.zeros_like()?);
            }
            let mut waiting: Vec<usize> = (0..document.seen).filter(|&r| !leaves(document.seen - 1, r)).collect();
            for (t, p) in document.queries() {
                waiting.push(p);
                let (entering, rest) = waiting.iter().partition::<Vec<usize>, _>(|&&r| leaves(p, r));
                waiting = rest;
                if !entering.is_empty() {
                    let (b, v) = (document.select(b, &entering)?, document.select(&v, &entering)?);
                    s = (s + b.unsqueeze(3)?.broadcast_mul(&v.unsqueeze(2)?)?.sum(0)?)?;
                    z = (z + b.sum(0)?)?;
                }
                let a = a.get(row)?.get(t)?;
                num[t] = a.unsqueeze(2)?.broadcast_mul(&s)?.sum(1)?;
                den[t] = (&a * &z)?.sum(1)?;
            }
        }
        nums.push(Tensor::stack(&num, 0)?);
        dens.push(Tensor::stack(&den, 0)?);
        states.push(s);
        normalisers.push(z);
    }
    Ok([
        Tensor::stack(&nums, 0)?,
        Tensor::stack(&dens, 0)?,
        Tensor::stack(&states, 0)?,
        Tensor::stack(&normalisers, 0)?,
    ])
}

/// Query by query: softmax numerator and denominator over the keys that it sees, the maximum's gradient included.
pub fn attention(
    qkv: [&Tensor; 3],
    mask: AttentionMask,
    documents: &Documents,
    past: &KvLayout,
    scale: f64,
) -> Result<[Tensor; 2]> {
    capped_attention(qkv, mask, documents, past, scale, None)
}

/// The same with scores c tanh(s / c) under a cap c.
pub fn capped_attention(
    [q, k, v]: [&Tensor; 3],
    mask: AttentionMask,
    documents: &Documents,
    past: &KvLayout,
    scale: f64,
    cap: Option<f64>,
) -> Result<[Tensor; 2]> {
    let (batch, tokens, heads, _) = q.dims4()?;
    let (k, v) = (repeat_heads(k, heads)?, repeat_heads(v, heads)?);
    let (mut nums, mut dens) = (vec![], vec![]);
    for row in 0..batch {
        let mut num = vec![v.get(row)?.get(0)?.zeros_like()?; tokens];
        let mut den = vec![num[0].sum(1)?; tokens];
        for document in Positions::of(documents, past, row) {
            for (t, p) in document.queries() {
                let seen: Vec<usize> = (0..=p).filter(|&r| sees(mask, p, r)).collect();
                let (k, v) = (document.select(&k, &seen)?, document.select(&v, &seen)?);
                let s = (q.get(row)?.get(t)?.unsqueeze(0)?.broadcast_mul(&k)?.sum(2)? * scale)?;
                let s = cap.map_or_else(|| Ok(s.clone()), |cap| (s.clone() / cap)?.tanh()? * cap)?;
                let p = s.broadcast_sub(&s.max_keepdim(0)?)?.exp()?;
                num[t] = p.unsqueeze(2)?.broadcast_mul(&v)?.sum(0)?;
                den[t] = p.sum(0)?;
            }
        }
        nums.push(Tensor::stack(&num, 0)?);
        dens.push(Tensor::stack(&den, 0)?);
    }
    Ok([Tensor::stack(&nums, 0)?, Tensor::stack(&dens, 0)?])
}

/// y_t = f(bias + sum_j weight_j x_{t-(W-1)+j}) over a document's own inputs, the first one's preceded by `before`.
/// x [B, T, N], weight [N, W], bias `[N]`, before [B, W-1, N]; returns y [B, T, N] and the last W - 1 inputs.
pub fn short_convolution(
    [x, weight, before]: [&Tensor; 3],
    bias: Option<&Tensor>,
    silu: bool,
    documents: &Documents,
) -> Result<[Tensor; 2]> {
    let (batch, tokens, channels) = x.dims3()?;
    let (taps, zero) = (weight.dim(1)?, Tensor::zeros(channels, x.dtype(), x.device())?);
    let (mut ys, mut tails) = (vec![], vec![]);
    for row in 0..batch {
        let mut inputs = (0..taps - 1).map(|i| before.get(row)?.get(i)).collect::<Result<Vec<_>>>()?;
        let mut y = vec![zero.clone(); tokens];
        for (i, document) in documents.row(row).iter().enumerate() {
            if i > 0 {
                inputs = vec![zero.clone(); taps - 1];
            }
            for t in document.clone() {
                inputs.push(x.get(row)?.get(t)?);
                let mut sum = bias.unwrap_or(&zero).clone();
                for j in 0..taps {
                    sum = (sum + (weight.narrow(1, j, 1)?.squeeze(1)? * &inputs[inputs.len() - taps + j])?)?;
                }
                y[t] = if silu { sum.silu()? } else { sum };
            }
        }
        let kept = inputs.split_off(inputs.len() + 1 - taps);
        ys.push(Tensor::stack(&y, 0)?);
        if taps > 1 {
            tails.push(Tensor::stack(&kept, 0)?);
        }
    }
    let tail = if taps > 1 { Tensor::stack(&tails, 0)? } else { before.clone() };
    Ok([Tensor::stack(&ys, 0)?, tail])
}

/// (gamma num_w + num_l) / (gamma den_w + den_l).
pub fn joint_normalize(nw: &Tensor, dw: &Tensor, nl: &Tensor, dl: &Tensor, gamma: &Tensor) -> Result<Tensor> {
    let num = (nw.broadcast_mul(&gamma.unsqueeze(1)?)? + nl)?;
    num.broadcast_div(&(dw.broadcast_mul(gamma)? + dl)?.unsqueeze(D::Minus1)?)
}

/// The one recurrence behind all gated operators, token by token and document by document:
///
/// ```text
/// S_t = diag(e^(g_t)) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T      o_t = q_t^T S_t
/// with a bonus u: o_t = q_t^T (S_{t-1} + diag(u) k_t v_t^T)
/// with a gate of the values: S_t = S_{t-1} diag(e^(g_t)) + k_t v_t^T
/// ```
///
/// All heads are whole: q, k, g, a, b [B, T, H, K], v and its g [B, T, H, V], u [H, K], S [B, H, K, V]. Returns o and the last S.
pub struct Recurrence<'a> {
    pub q: &'a Tensor,
    pub k: &'a Tensor,
    pub v: &'a Tensor,
    pub gate: Option<&'a Tensor>,
    pub value_gate: Option<&'a Tensor>,
    pub transition: Option<(&'a Tensor, &'a Tensor)>,
    pub bonus: Option<&'a Tensor>,
    pub state: &'a Tensor,
}

impl Recurrence<'_> {
    pub fn run(&self, documents: &Documents) -> Result<[Tensor; 2]> {
        let (tokens, mut outputs, mut states) = (self.q.dim(1)?, vec![], vec![]);
        for b in 0..self.q.dim(0)? {
            let mut s = self.state.narrow(0, b, 1)?.squeeze(0)?;
            let nothing = self.v.narrow(0, b, 1)?.narrow(1, 0, 1)?.squeeze(0)?.squeeze(0)?.zeros_like()?;
            let nothing = nothing.narrow(0, 0, 1)?.broadcast_as((self.q.dim(2)?, self.v.dim(3)?))?;
            let mut rows = vec![nothing; tokens];
            for (i, document) in documents.row(b).iter().enumerate() {
                if i > 0 {
                    s = s.zeros_like()?;
                }
                for t in document.clone() {
                    (rows[t], s) = self.token(b, t, s)?;
                }
            }
            outputs.push(Tensor::stack(&rows, 0)?);
            states.push(s);
        }
        Ok([Tensor::stack(&outputs, 0)?, Tensor::stack(&states, 0)?])
    }

    fn token(&self, b: usize, t: usize, s: Tensor) -> Result<(Tensor, Tensor)> {
        let at = |x: &Tensor| x.narrow(0, b, 1)?.narrow(1, t, 1)?.squeeze(0)?.squeeze(0);
        let read = |x: &Tensor, s: &Tensor| x.unsqueeze(2)?.broadcast_mul(s)?.sum(1);
        let outer = |x: &Tensor, y: &Tensor| x.unsqueeze(2)?.broadcast_mul(&y.unsqueeze(1)?);
        let (q, k, v) = (at(self.q)?, at(self.k)?, at(self.v)?);
        let written = outer(&k, &v)?;
        let decayed = match self.gate {
            Some(g) => s.broadcast_mul(&at(g)?.exp()?.unsqueeze(2)?)?,
            None => s.clone(),
        };
        let decayed = match self.value_gate {
            Some(g) => decayed.broadcast_mul(&at(g)?.exp()?.unsqueeze(1)?)?,
            None => decayed,
        };
        let mut after = (decayed + &written)?;
        if let Some((a, b)) = self.transition {
            after = (after + outer(&at(b)?, &read(&at(a)?, &s)?)?)?;
        }
        let output = match self.bonus {
            Some(u) => read(&q, &(s + written.broadcast_mul(&u.unsqueeze(2)?)?)?)?,
            None => read(&q, &after)?,
        };
        Ok((output, after))
    }
}
