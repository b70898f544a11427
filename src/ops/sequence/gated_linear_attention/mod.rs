//! Linear attention with decay: none, one gate per token (retention, SSD) or one per key channel (GLA), and a bonus.
//!
//! ```text
//! S_t = diag(e^(g_t)) S_{t-1} + k_t v_t^T      o_t = q_t^T S_t
//! with a bonus u (RWKV-6):                     o_t = q_t^T (S_{t-1} + diag(u) k_t v_t^T)
//! ```
//!
//! In chunks o = (q e^G) S + A v with A of [`crate::ops::cpu::decay`]. There may be fewer states than
//! query heads: H query heads share the N states of the gates, and these the G heads of keys and values (G | N | H).

mod cpu;

use crate::ops::Documents;
use crate::ops::chunked::decay::{Decay, assemble, from_start, products, to_end};
use crate::ops::chunked::{Chunks, Moves, flat, outer, own};
use crate::ops::cpu::decay::Read;
use crate::ops::operator::{Operator, apply};
use crate::ops::recurrence::Sizes;
use crate::ops::tape::Var;
use crate::{Error, Result};
use candle_core::Tensor;
use std::sync::Arc;

/// Inputs of one call, in this order everywhere: q, k, v, state, then gate and bonus where there are any.
struct GatedLinearAttention {
    sizes: Sizes,
    /// Place of the gate [B, T, N, 1 or K] and of the bonus [H, K] among the inputs.
    gate: Option<usize>,
    bonus: Option<usize>,
}

const STATE: usize = 3;

/// `q` [B, T, H, K], `k` [B, T, G, K], `v` [B, T, G, V], log gates `gate` [B, T, N, 1 or K] (<= 0), `bonus` [H, K], and
/// the state before, `before` [B, N, K, V] (None: zero; N = G without gates). Returns o [B, T, H, V] and the state after.
pub fn gated_linear_attention(
    q: &Var,
    k: &Var,
    v: &Var,
    gate: Option<&Var>,
    bonus: Option<&Var>,
    before: Option<&Var>,
    documents: &Arc<Documents>,
) -> Result<(Var, Var)> {
    let states = gate.map_or(v, |g| g).value().dim(2)?;
    let sizes = Sizes::of(q, v, states, gate, documents)?;
    let state = sizes.state_before(before, v)?;
    let gates: Vec<_> = gate.into_iter().map(|g| (g, sizes.narrow_or_key_gate())).collect();
    sizes.check("gated linear attention", k, &state, &gates)?;
    if bonus.is_some_and(|u| u.value().dims() != [sizes.sharing.heads, sizes.key_width]) {
        return Err(Error::Internal("gated linear attention with a bonus of other sizes than q".into()));
    }
    let mut inputs = vec![q, k, v, &state];
    inputs.extend(gate);
    inputs.extend(bonus);
    let gate_at = gate.map(|_| STATE + 1);
    let bonus_at = bonus.map(|_| inputs.len() - 1);
    let mut vars = apply(GatedLinearAttention { sizes, gate: gate_at, bonus: bonus_at }, &inputs)?;
    let state = vars.pop().expect("two outputs");
    Ok((vars.pop().expect("two outputs"), state))
}

impl GatedLinearAttention {
    fn read(&self) -> Read {
        if self.bonus.is_some() { Read::Before } else { Read::After }
    }
}

impl Operator for GatedLinearAttention {
    type Kept = cpu::Kept;

    const F32_FROM: usize = 1;

    fn formula(&self, x: &[Tensor]) -> Result<Vec<Tensor>> {
        let chunks = Chunks::of(&self.sizes.documents, x[0].device())?;
        if chunks.count == 0 {
            return self.sizes.nothing(&x[0], &x[STATE]);
        }
        let n = self.sizes.sharing.states;
        let (q, k, v) = (chunks.split(&x[0], n)?, chunks.split(&x[1], n)?, flat(&chunks.split(&x[2], n)?)?);
        let gate = self.gate.map(|i| Decay::of(&chunks.split(&x[i], n)?)).transpose()?;
        let (decay, read) = (gate.as_ref(), self.read());
        let diagonal = match self.bonus {
            None => own(&q, &k)?,
            Some(i) => own(&self.sizes.by_heads(&q, &x[i])?, &k)?,
        };
        let scores = assemble(&products(decay, read, &q, &k)?, &diagonal)?;
        let keep = gate.as_ref().map(|g| g.keep.unsqueeze(2)).transpose()?;
        let write = Some(outer(&flat(&to_end(decay, &k)?)?, &v)?);
        let way = chunks.advance(&x[STATE], &Moves { keep, write, correction: None })?;
        let out = flat(&from_start(decay, read, &q)?)?.matmul(&way.states)?;
        self.sizes.outputs(&chunks, (out + scores.matmul(&v)?)?, way.last)
    }

    fn forward_cpu(&self, x: &[Tensor], keep: bool) -> Result<(Vec<Tensor>, Self::Kept)> {
        self.forward(x, keep)
    }

    fn backward_cpu(
        &self,
        x: &[Tensor],
        kept: Self::Kept,
        wanted: &[bool],
        up: &[Tensor],
    ) -> Result<Vec<Option<Tensor>>> {
        self.backward(x, kept, wanted, up)
    }
}
