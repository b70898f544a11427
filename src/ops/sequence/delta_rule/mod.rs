//! The delta rule: without a gate (DeltaNet), with one per token (Gated DeltaNet) or per key channel (KDA).
//!
//! ```text
//! S~ = diag(e^(g_t)) S_{t-1}      S_t = S~ + beta_t k_t (v_t - S~^T k_t)^T      o_t = q_t^T S_t
//! ```
//!
//! What a token corrects, u_t = v_t - S~^T k_t, depends on the corrections before it. In a chunk, with M the products
//! of keys with earlier keys ([`Read::Decayed`]) and y = beta u,
//!
//! ```text
//! (I + M diag(beta)) u = v - (k e^G) S      o = (q e^G) S + A y      S = e^(G_C) S + (k e^(G_C - G))^T y
//! ```
//!
//! (the WY form of arXiv 2406.06484 and 2412.06464, applied to one right-hand side instead of two, since the chunks of
//! a head follow each other here). Keys must have unit length, or beta |k|^2 <= 2, for the state to stay bounded.

mod cpu;

use crate::Result;
use crate::ops::Documents;
use crate::ops::chunked::decay::{Decay, assemble, from_start, inverse, products, to_end};
use crate::ops::chunked::{Chunks, Correction, Moves, flat, own};
use crate::ops::cpu::decay::Read;
use crate::ops::operator::{Operator, apply};
use crate::ops::recurrence::Sizes;
use crate::ops::tape::Var;
use candle_core::Tensor;
use std::sync::Arc;

/// One call. Its inputs are q, k, v, beta, state, and the gate if there is one.
struct DeltaRule(Sizes);

const BETA: usize = 3;
const STATE: usize = 4;
const GATE: usize = 5;

/// `q` [B, T, H, K], `k` [B, T, G, K], `v` [B, T, G, V], `beta` [B, T, N, 1], log gates `gate` [B, T, N, 1 or K] (<= 0),
/// and the state before, `before` [B, N, K, V] (None: zero). Returns o [B, T, H, V] and the state after.
pub fn delta_rule(
    q: &Var,
    k: &Var,
    v: &Var,
    beta: &Var,
    gate: Option<&Var>,
    before: Option<&Var>,
    documents: &Arc<Documents>,
) -> Result<(Var, Var)> {
    let sizes = Sizes::of(q, v, beta.value().dim(2)?, gate, documents)?;
    let state = sizes.state_before(before, v)?;
    let mut others = vec![(beta, 1)];
    others.extend(gate.map(|g| (g, sizes.narrow_or_key_gate())));
    sizes.check("delta rule", k, &state, &others)?;
    let mut inputs = vec![q, k, v, beta, &state];
    inputs.extend(gate);
    let mut vars = apply(DeltaRule(sizes), &inputs)?;
    let state = vars.pop().expect("two outputs");
    Ok((vars.pop().expect("two outputs"), state))
}

impl Operator for DeltaRule {
    type Kept = cpu::Kept;

    const F32_FROM: usize = 1;

    /// The chunks' equations of the header, by the inverse of I + M diag(beta) for all chunks at once.
    fn formula(&self, x: &[Tensor]) -> Result<Vec<Tensor>> {
        let chunks = Chunks::of(&self.0.documents, x[0].device())?;
        if chunks.count == 0 {
            return self.0.nothing(&x[0], &x[STATE]);
        }
        let n = self.0.sharing.states;
        let [q, k, v, beta] = [&x[0], &x[1], &x[2], &x[BETA]].map(|x| chunks.split(x, n));
        let (q, k, v, beta) = (q?, k?, v?, beta?);
        let gate = x.get(GATE).map(|g| Decay::of(&chunks.split(g, n)?)).transpose()?;
        let decay = gate.as_ref();
        let write = k.broadcast_mul(&beta)?;
        let correction = Correction {
            solved: inverse(&products(decay, Read::Decayed, &k, &write)?, &k)?,
            known: flat(&v)?,
            through: flat(&from_start(decay, Read::Decayed, &k)?)?.neg()?,
            removal: flat(&to_end(decay, &write)?)?,
        };
        let moves = Moves {
            keep: gate.as_ref().map(|g| g.keep.unsqueeze(2)).transpose()?,
            write: None,
            correction: Some(correction),
        };
        let way = chunks.advance(&x[STATE], &moves)?;
        let scores = assemble(&products(decay, Read::After, &q, &write)?, &own(&q, &write)?)?;
        let reads = way.reads.as_ref().expect("there is a correction");
        let out = flat(&from_start(decay, Read::After, &q)?)?.matmul(&way.states)?;
        self.0.outputs(&chunks, (out + scores.matmul(reads)?)?, way.last)
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
