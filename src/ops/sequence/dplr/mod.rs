//! Diagonal plus low rank: the superset of the gated recurrences (RWKV-7, linear Titans).
//!
//! ```text
//! S_t = diag(e^(g_t)) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T      o_t = q_t^T S_t
//! ```
//!
//! a reads the state before the decay. In a chunk, with A_xy of [`crate::ops::cpu::decay`] ([`Read::Before`] for a) and
//! y_t = a_t^T S_{t-1},
//!
//! ```text
//! (I - A_ab) y = A_ak v + (a e^Gx) S      o = (q e^G) S + A_qk v + A_qb y
//! S = e^(G_C) S + (k e^(G_C - G))^T v + (b e^(G_C - G))^T y
//! ```
//!
//! where Gx is the cumulative sum without a token's own gate.

mod cpu;

use crate::Result;
use crate::ops::Documents;
use crate::ops::chunked::decay::{Decay, assemble, from_start, inverse, products, to_end};
use crate::ops::chunked::{Chunks, Correction, Moves, flat, outer, own};
use crate::ops::cpu::decay::Read;
use crate::ops::operator::{Operator, apply};
use crate::ops::recurrence::Sizes;
use crate::ops::tape::Var;
use candle_core::Tensor;
use std::sync::Arc;

/// One call. Its inputs are q, k, v, a, b, state, and the gate if there is one.
struct Dplr(Sizes);

const STATE: usize = 5;
const GATE: usize = 6;

/// `q` [B, T, H, K], `k` [B, T, G, K], `v` [B, T, G, V], the transition's `a` and `b` [B, T, N, K], log gates `gate`
/// [B, T, N, 1 or K] (<= 0), and the state before, `before` [B, N, K, V] (None: zero). Returns o [B, T, H, V] and the
/// state after.
pub fn dplr(
    (q, k, v): (&Var, &Var, &Var),
    (a, b): (&Var, &Var),
    gate: Option<&Var>,
    before: Option<&Var>,
    documents: &Arc<Documents>,
) -> Result<(Var, Var)> {
    let sizes = Sizes::of(q, v, a.value().dim(2)?, gate, documents)?;
    let state = sizes.state_before(before, v)?;
    let mut others = vec![(a, sizes.key_width), (b, sizes.key_width)];
    others.extend(gate.map(|g| (g, sizes.narrow_or_key_gate())));
    sizes.check("diagonal plus low rank", k, &state, &others)?;
    let mut inputs = vec![q, k, v, a, b, &state];
    inputs.extend(gate);
    let mut vars = apply(Dplr(sizes), &inputs)?;
    let state = vars.pop().expect("two outputs");
    Ok((vars.pop().expect("two outputs"), state))
}

impl Operator for Dplr {
    type Kept = cpu::Kept;

    const F32_FROM: usize = 1;

    /// The chunks' equations of the header, by the inverse of I - A_ab for all chunks at once.
    fn formula(&self, x: &[Tensor]) -> Result<Vec<Tensor>> {
        let chunks = Chunks::of(&self.0.documents, x[0].device())?;
        if chunks.count == 0 {
            return self.0.nothing(&x[0], &x[STATE]);
        }
        let n = self.0.sharing.states;
        let [q, k, v, a, b] = [0, 1, 2, 3, 4].map(|i| chunks.split(&x[i], n));
        let (q, k, v, a, b) = (q?, k?, v?, a?, b?);
        let gate = x.get(GATE).map(|g| Decay::of(&chunks.split(g, n)?)).transpose()?;
        let (decay, values) = (gate.as_ref(), flat(&v)?);
        let nothing = a.narrow(3, 0, 1)?.zeros_like()?;
        let correction = Correction {
            solved: inverse(&products(decay, Read::Before, &a.neg()?, &b)?, &a)?,
            known: assemble(&products(decay, Read::Before, &a, &k)?, &nothing)?.matmul(&values)?,
            through: flat(&from_start(decay, Read::Before, &a)?)?,
            removal: flat(&to_end(decay, &b)?)?,
        };
        let moves = Moves {
            keep: gate.as_ref().map(|g| g.keep.unsqueeze(2)).transpose()?,
            write: Some(outer(&flat(&to_end(decay, &k)?)?, &values)?),
            correction: Some(correction),
        };
        let way = chunks.advance(&x[STATE], &moves)?;
        let reads = way.reads.as_ref().expect("there is a correction");
        let mut out = flat(&from_start(decay, Read::After, &q)?)?.matmul(&way.states)?;
        for (written, values) in [(&k, &values), (&b, reads)] {
            let scores = assemble(&products(decay, Read::After, &q, written)?, &own(&q, written)?)?;
            out = (out + scores.matmul(values)?)?;
        }
        self.0.outputs(&chunks, out, way.last)
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
