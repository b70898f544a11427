//! Linear attention whose state decays along the value axis: the first pass of gated slot attention (GSA,
//! arXiv 2409.07146), where values are slots.
//!
//! ```text
//! S_t = S_{t-1} diag(e^(g_t)) + k_t v_t^T      o_t = q_t^T S_t      g [V]
//! ```
//!
//! In chunks, with the decays of [`crate::ops::cpu::decay::values`] over A = tril(q k^T),
//!
//! ```text
//! o_i = e^(G_i) * (q_i^T S) + sum_{j <= i} A_ij e^(G_i - G_j) * v_j      S = S e^(G_C) + k^T (v e^(G_C - G))
//! ```
//!
//! Heads share states as in [`crate::ops::gated_linear_attention`]: G | N | H.

mod cpu;

use crate::Result;
use crate::ops::Documents;
use crate::ops::chunked::decay::{Decay, from_start, mixed_values, to_end};
use crate::ops::chunked::{Chunks, Moves, flat, outer, per_state};
use crate::ops::cpu::decay::Read;
use crate::ops::layout::gather::widened;
use crate::ops::operator::{Operator, apply, on_device};
use crate::ops::recurrence::Sizes;
use crate::ops::tape::Var;
use candle_core::Tensor;
use std::sync::Arc;

/// One call. Its inputs are q, k, v, state, gate.
struct ValueGated(Sizes);

const STATE: usize = 3;
const GATE: usize = 4;

/// `q` [B, T, H, K], `k` [B, T, G, K], `v` [B, T, G, V], log gates `gate` [B, T, N, V] (<= 0), and the state before,
/// `before` [B, N, K, V] (None: zero). Returns o [B, T, H, V] and the state after.
pub fn value_gated_linear_attention(
    q: &Var,
    k: &Var,
    v: &Var,
    gate: &Var,
    before: Option<&Var>,
    documents: &Arc<Documents>,
) -> Result<(Var, Var)> {
    let sizes = Sizes::of(q, v, gate.value().dim(2)?, Some(gate), documents)?;
    let state = sizes.state_before(before, v)?;
    sizes.check("linear attention, values gated,", k, &state, &[(gate, sizes.value_width)])?;
    let mut vars = apply(ValueGated(sizes), &[q, k, v, &state, gate])?;
    let state = vars.pop().expect("two outputs");
    Ok((vars.pop().expect("two outputs"), state))
}

impl Operator for ValueGated {
    type Kept = cpu::Kept;

    const F32_FROM: usize = 1;

    fn formula(&self, x: &[Tensor]) -> Result<Vec<Tensor>> {
        let chunks = Chunks::of(&self.0.documents, x[0].device())?;
        if chunks.count == 0 {
            return self.0.nothing(&x[0], &x[STATE]);
        }
        let n = self.0.sharing.states;
        let (q, k, v) = (chunks.split(&x[0], n)?, chunks.split(&x[1], n)?, chunks.split(&x[2], n)?);
        let gate = Decay::of(&chunks.split(&x[GATE], n)?)?;
        let moves = Moves {
            keep: Some(gate.keep.unsqueeze(1)?),
            write: Some(outer(&flat(&k)?, &flat(&to_end(Some(&gate), &v)?)?)?),
            correction: None,
        };
        let way = chunks.advance(&x[STATE], &moves)?;
        let (z, size, share, _) = q.dims4()?;
        let out = flat(&q)?.matmul(&way.states)?.reshape((z, size, share, self.0.value_width))?;
        let out = (from_start(Some(&gate), Read::After, &out)? + mixed_values(&gate, &q, &k, &v)?)?;
        self.0.outputs(&chunks, flat(&out)?, way.last)
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

/// One token, T = 1, without gradients: o [B, 1, H, V] and the state after, from the state before, [B, N, K, V].
pub fn value_gated_step(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    gate: &Tensor,
    state: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let dtype = q.dtype();
    let (q, k, v, gate) = (widened(q)?, widened(k)?, widened(v)?, widened(gate)?);
    let (o, after) = on_device(
        state,
        || cpu::value_gated_step((&q, &k, &v), &gate, state),
        || step_formula((&q, &k, &v), &gate, state),
    )?;
    Ok((o.to_dtype(dtype)?, after))
}

fn step_formula((q, k, v): (&Tensor, &Tensor, &Tensor), gate: &Tensor, state: &Tensor) -> Result<(Tensor, Tensor)> {
    let (batch, states, key_width, width) = state.dims4()?;
    let heads = q.dim(2)?;
    let of = |x: &Tensor| flat(&per_state(x, states, 1)?);
    let (q, k, v, gate) = (of(q)?, of(k)?, of(v)?, of(gate)?);
    let state = state.reshape((batch * states, key_width, width))?;
    let after = (state.broadcast_mul(&gate.exp()?)? + outer(&k, &v)?)?;
    let o = q.matmul(&after)?.reshape((batch, 1, heads, width))?;
    Ok((o, after.reshape((batch, states, key_width, width))?))
}
