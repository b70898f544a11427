//! The definitions: recurrences and plain formulas in candle's differentiable operations, a few lines each, any dtype.
//!
//! They are what the fast operators are compared with, outputs and all gradients (candle's own autograd). Never fast.

use candle_core::{D, Result, Tensor};

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

/// S += b_t v_t^T, z += b_t, then num = a^T S, den = a.z, token by token; query i reads the state after key i - lag.
/// Returns num [B, T, H, V], den [B, T, H], S [B, H, F, V], z [B, H, F].
pub fn linear_attention(
    a: &Tensor,
    b: &Tensor,
    v: &Tensor,
    lag: usize,
    s0: &Tensor,
    z0: &Tensor,
) -> Result<[Tensor; 4]> {
    let v = repeat_heads(v, a.dim(2)?)?;
    let (mut s, mut z) = (s0.clone(), z0.clone());
    let (mut nums, mut dens) = (vec![], vec![]);
    for i in 0..a.dim(1)? {
        if i >= lag {
            let b = b.narrow(1, i - lag, 1)?.squeeze(1)?;
            let v = v.narrow(1, i - lag, 1)?.squeeze(1)?;
            s = (s + b.unsqueeze(3)?.broadcast_mul(&v.unsqueeze(2)?)?)?;
            z = (z + b)?;
        }
        let a = a.narrow(1, i, 1)?.squeeze(1)?;
        nums.push(a.unsqueeze(3)?.broadcast_mul(&s)?.sum(2)?);
        dens.push((&a * &z)?.sum(2)?);
    }
    Ok([Tensor::stack(&nums, 1)?, Tensor::stack(&dens, 1)?, s, z])
}

/// Query by query: softmax numerator and denominator over the last `window` keys, the maximum's gradient included.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, window: Option<usize>, scale: f64) -> Result<[Tensor; 2]> {
    let heads = q.dim(2)?;
    let (k, v) = (repeat_heads(k, heads)?, repeat_heads(v, heads)?);
    let past = k.dim(1)? - q.dim(1)?;
    let (mut nums, mut dens) = (vec![], vec![]);
    for i in 0..q.dim(1)? {
        let end = past + i + 1;
        let start = window.map_or(0, |w| end.saturating_sub(w));
        let (k, v) = (k.narrow(1, start, end - start)?, v.narrow(1, start, end - start)?);
        let s = (q.narrow(1, i, 1)?.broadcast_mul(&k)?.sum(3)? * scale)?;
        let p = s.broadcast_sub(&s.max_keepdim(1)?)?.exp()?;
        nums.push(p.unsqueeze(3)?.broadcast_mul(&v)?.sum(1)?);
        dens.push(p.sum(1)?);
    }
    Ok([Tensor::stack(&nums, 1)?, Tensor::stack(&dens, 1)?])
}

/// (gamma num_w + num_l) / (gamma den_w + den_l), gamma = sigmoid(factor).
pub fn joint_quotient(nw: &Tensor, dw: &Tensor, nl: &Tensor, dl: &Tensor, factor: &Tensor) -> Result<Tensor> {
    let gamma = candle_nn::ops::sigmoid(factor)?;
    let num = (nw.broadcast_mul(&gamma.unsqueeze(1)?)? + nl)?;
    num.broadcast_div(&(dw.broadcast_mul(&gamma)? + dl)?.unsqueeze(D::Minus1)?)
}

/// The one recurrence behind all gated operators, token by token and document by document:
///
/// ```text
/// S_t = diag(e^(g_t)) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T      o_t = q_t^T S_t
/// with a bonus u: o_t = q_t^T (S_{t-1} + diag(u) k_t v_t^T)
/// ```
///
/// All heads are whole: q, k, g, a, b [B, T, H, K], v [B, T, H, V], u [H, K], S [B, H, K, V]. Returns o and the last S.
pub struct Recurrence<'a> {
    pub q: &'a Tensor,
    pub k: &'a Tensor,
    pub v: &'a Tensor,
    pub gate: Option<&'a Tensor>,
    pub transition: Option<(&'a Tensor, &'a Tensor)>,
    pub bonus: Option<&'a Tensor>,
    pub state: &'a Tensor,
}

impl Recurrence<'_> {
    pub fn run(&self, documents: &super::Documents) -> Result<[Tensor; 2]> {
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
