//! Hedgehog (arXiv 2402.04347) as LoLCATs defines it (arXiv 2410.10254; HazyResearch/lolcats 375df84).
//!
//! phi(x) = [softmax(x W), softmax(-x W)] with one map per query head for q and one for k, after RoPE. Without a window
//! o_i = phi(q_i) S_i / (phi(q_i).z_i + 1e-12). With a window of w keys both branches share one normaliser:
//!
//! ```text
//! o_i = (gamma sum_{i-w<j<=i} e^(s_ij - m_i) v_j + phi(q_i) S_{i-w}) / (the same with v replaced by 1)
//! ```
//!
//! s_ij = q_i.k_j / sqrt K, m_i its maximum in the window, gamma = sigmoid(factor) learned per head, 0.1 at the start.
//! The linear term is not multiplied by e^-m_i, as in the published code.

use super::{Bound, Branches, Combine, HeadSizes, Heads, Initial, Mixer, NewTensor, State};
use super::{OptionKind, OptionSpec, Registration};
use crate::Result;
use crate::ops::{Documents, Past, Sight, Var};
use crate::ops::{attention, attention_entropy, feature_map, linear_attention, quotient};
use candle_core::{DType, Tensor};

/// LoLCATs' start of the window factor: sigmoid(-2.197) = 0.1.
const WINDOW_FACTOR: f32 = -2.197_224_6;
/// LoLCATs' addition to the normaliser without a window.
const EPS: f32 = 1e-12;

pub const REGISTRATION: Registration = Registration {
    name: "hedgehog",
    summary: "learned softmax feature maps, one per head (LoLCATs)",
    formula: "phi(x) = [softmax(x W), softmax(-x W)];  o_t = phi(q_t) S_t / phi(q_t).z_t",
    paper: "Hedgehog (arXiv 2402.04347), as in LoLCATs (arXiv 2410.10254)",
    options: &[
        OptionSpec {
            name: "feature_width",
            kind: OptionKind::Integer { min: 1, max: 1024 },
            default: "null",
            help: "columns of each head's map; the head has twice as many features (default: the head width, as \
                   LoLCATs' 8B configs)",
        },
        OptionSpec {
            name: "init",
            kind: OptionKind::Choice(&["identity", "kaiming"]),
            default: "\"identity\"",
            help: "how maps start: a (rectangular) identity, which LoLCATs' published commands select, or \
                   Kaiming-uniform",
        },
    ],
    build: |options, sizes, window| {
        Ok(Box::new(Hedgehog {
            sizes,
            half: options.integer("feature_width", sizes.width),
            identity: options.word("init") == "identity",
            window: window.map(|w| match w.combine {
                Combine::Joint => w.size,
            }),
        }))
    },
};

struct Hedgehog {
    sizes: HeadSizes,
    /// Columns of a map; a head has twice as many features.
    half: usize,
    identity: bool,
    window: Option<usize>,
}

/// The two features of a call, and where the linear branch stands.
struct Features {
    q: Var,
    k: Var,
}

impl Hedgehog {
    fn scale(&self) -> f32 {
        1.0 / (self.sizes.width as f32).sqrt()
    }

    fn features(&self, heads: &Heads, bound: &Bound) -> Result<Features> {
        Ok(Features {
            q: feature_map::two_softmaxes(&heads.q, bound.get("q_map")?)?,
            k: feature_map::two_softmaxes(&heads.k, bound.get("k_map")?)?,
        })
    }

    /// Both branches over the heads; k and v may begin before q by at most a window. Also the state after them.
    fn combine(
        &self,
        heads: &Heads,
        features: Option<&Features>,
        bound: &Bound,
        before: Option<(&Var, &Var)>,
        branches: Branches,
    ) -> Result<(Var, Option<(Tensor, Tensor)>)> {
        let (batch, tokens, _, _) = heads.q.value().dims4()?;
        let documents = Documents::whole(batch, tokens);
        let past = Past::whole(batch, heads.k.value().dim(1)? - tokens);
        let sight = self.window.map(Sight::sliding);
        let linear = match features {
            Some(f) => {
                Some(linear_attention::linear_attention(&f.q, &f.k, &heads.v, sight, &documents, &past, before)?)
            }
            None => None,
        };
        let state = linear.as_ref().map(|l| (l.state.value().clone(), l.normaliser.value().clone()));
        let window = match sight {
            Some(sight) if branches != Branches::LinearOnly => {
                let Heads { q, k, v } = heads;
                Some(attention::attention(q, k, v, sight, &documents, &past, self.scale())?)
            }
            _ => None,
        };
        let output = match (window, &linear) {
            (Some((num, den)), Some(l)) if branches == Branches::Both => {
                quotient::joint_quotient((&num, &den), (&l.num, &l.den), bound.get("window_factor")?)?
            }
            (Some((num, den)), _) => quotient::quotient(&num, &den, 0.0)?,
            (None, Some(l)) if branches != Branches::WindowOnly => quotient::quotient(&l.num, &l.den, EPS)?,
            // The only branch is switched off: the mixer is silent.
            (None, _) => Var::constant(heads.q.value().zeros_like()?),
        };
        Ok((output, state))
    }
}

impl Mixer for Hedgehog {
    fn tensors(&self) -> Vec<NewTensor> {
        let HeadSizes { heads, width, .. } = self.sizes;
        let initial = if self.identity { Initial::Identity } else { Initial::Kaiming { fan_in: width } };
        let map = |name| NewTensor { name, shape: vec![heads, width, self.half], initial };
        let mut all = vec![map("q_map"), map("k_map")];
        if self.window.is_some() {
            all.push(NewTensor {
                name: "window_factor",
                shape: vec![heads],
                initial: Initial::Constant(WINDOW_FACTOR),
            });
        }
        all
    }

    fn mix(&self, heads: &Heads, bound: &Bound, state: Option<&mut State>, branches: Branches) -> Result<Var> {
        let Some(state) = state else {
            // Without a state to leave, a switched-off linear branch need not be computed.
            let features = match branches {
                Branches::WindowOnly => None,
                _ => Some(self.features(heads, bound)?),
            };
            return Ok(self.combine(heads, features.as_ref(), bound, None, branches)?.0);
        };
        let joined = |name, new: &Var| -> Result<Var> {
            Ok(match state.get(name) {
                Some(old) => Tensor::cat(&[old, new.value()], 1)?.into(),
                None => new.clone(),
            })
        };
        let heads = Heads { q: heads.q.clone(), k: joined("k", &heads.k)?, v: joined("v", &heads.v)? };
        let features = self.features(&heads, bound)?;
        let before = match (state.get("s"), state.get("z")) {
            (Some(s), Some(z)) => Some((Var::from(s.clone()), Var::from(z.clone()))),
            _ => None,
        };
        let before = before.as_ref().map(|(s, z)| (s, z));
        let (output, after) = self.combine(&heads, Some(&features), bound, before, branches)?;
        let (s, z) = after.expect("features were given");
        state.tensors.insert("s", s);
        state.tensors.insert("z", z);
        state.seen += heads.q.value().dim(1)?;
        for (name, x) in [("k", &heads.k), ("v", &heads.v)] {
            let kept = state.seen.min(self.window.unwrap_or(0));
            if kept > 0 {
                let x = x.value();
                state.tensors.insert(name, x.narrow(1, x.dim(1)? - kept, kept)?.copy()?);
            }
        }
        Ok(output)
    }

    fn step(&self, heads: &Heads, bound: &Bound, state: &mut State) -> Result<Tensor> {
        let (batch, _, _, width) = heads.v.value().dims4()?;
        let size = self.window.unwrap_or(0);
        if state.get("s").is_none() {
            let device = heads.q.value().device();
            let features = 2 * self.half;
            let s = Tensor::zeros((batch, self.sizes.heads, features, width), DType::F32, device)?;
            state.tensors.insert("s", s);
            state.tensors.insert("z", Tensor::zeros((batch, self.sizes.heads, features), DType::F32, device)?);
        }
        // The key that leaves the window enters the state; without a window every key does at once.
        let (leaving, window) = match (size, state.get("k"), state.get("v")) {
            (0, _, _) => (Some((heads.k.value().clone(), heads.v.value().clone())), None),
            (_, Some(k), Some(v)) => {
                let full = k.dim(1)? == size;
                let leaving = if full { Some((k.narrow(1, 0, 1)?, v.narrow(1, 0, 1)?)) } else { None };
                let rest = |x: &Tensor| x.narrow(1, usize::from(full), x.dims()[1] - usize::from(full));
                let k = Tensor::cat(&[&rest(k)?, heads.k.value()], 1)?;
                (leaving, Some((k, Tensor::cat(&[&rest(v)?, heads.v.value()], 1)?)))
            }
            _ => (None, Some((heads.k.value().clone(), heads.v.value().clone()))),
        };
        let q = feature_map::two_softmaxes(&heads.q, bound.get("q_map")?)?;
        let entering = match leaving {
            Some((k, v)) => {
                let b = feature_map::two_softmaxes(&Var::constant(k), bound.get("k_map")?)?;
                Some((b.value().clone(), v))
            }
            None => None,
        };
        let (documents, rows) = (Documents::whole(batch, 1), vec![0..1; batch]);
        let entering = entering.as_ref().map(|(b, v)| linear_attention::Entering { b, v, rows: &rows });
        let (s, z) = (&state.tensors["s"], &state.tensors["z"]);
        let (num, den, s, z) = linear_attention::linear_attention_step(q.value(), entering, &documents, s, z)?;
        state.tensors.insert("s", s);
        state.tensors.insert("z", z);
        state.seen += 1;
        let (num, den) = (Var::from(num), Var::from(den));
        let output = match window {
            None => quotient::quotient(&num, &den, EPS)?,
            Some((k, v)) => {
                let past = Past::whole(batch, k.dim(1)? - 1);
                let (q, sight) = (heads.q.value(), Sight::sliding(size));
                let (nw, dw) = attention::attention_step(q, &k, &v, sight, &documents, &past, self.scale())?;
                state.tensors.insert("k", k);
                state.tensors.insert("v", v);
                quotient::joint_quotient((&nw.into(), &dw.into()), (&num, &den), bound.get("window_factor")?)?
            }
        };
        Ok(output.value().clone())
    }

    fn transfer(&self, heads: &Heads, bound: &Bound, weights: bool) -> Result<(Var, Option<Var>)> {
        let features = self.features(heads, bound)?;
        let (output, _) = self.combine(heads, Some(&features), bound, None, Branches::Both)?;
        if !weights {
            return Ok((output, None));
        }
        let factor = if self.window.is_some() { Some(bound.get("window_factor")?) } else { None };
        let window = self.window.zip(factor);
        let (q, k) = (heads.q.value(), heads.k.value());
        let documents = Documents::whole(q.dim(0)?, q.dim(1)?);
        let (a, b) = (&features.q, &features.k);
        let loss = attention_entropy::attention_entropy(q, k, a, b, window, &documents, self.scale())?;
        Ok((output, Some(loss)))
    }

    fn state_bytes(&self, context: usize) -> usize {
        let HeadSizes { heads, kv_heads, width } = self.sizes;
        let features = 2 * self.half;
        4 * (heads * features * (width + 1) + 2 * context.min(self.window.unwrap_or(0)) * kv_heads * width)
    }
}
