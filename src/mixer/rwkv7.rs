//! RWKV-7's time mixing (arXiv 2503.14456), as in flash-linear-attention's layer, without the value residual between layers
//! (a layer sees itself alone).
//!
//! With x' the token before x, and x_w = x + mu_w (x' - x), x_a and x_g likewise:
//! w = -e^-0.5 sigmoid(W2 tanh(W1 x_w) + b), alpha = sigmoid(A2 A1 x_a + b), both per channel; kappa = k k_k / |k k_k|;
//! k' = k (1 + (alpha - 1) k_a); S_t = diag(e^w_t) S_{t-1} - (kappa alpha)_t (kappa_t^T S_{t-1}) + k'_t v_t^T; o_t = r_t^T S_t;
//! y = (GroupNorm(o) + (r . r_k k') v) * G2 sigmoid(G1 x_g), the norm over each head with eps 1e-5 K. r is the teacher's q.
//! The published layer shifts what r, k and v are projected from as well, each input channel by its own amount; the
//! teacher's projections stand, and so these have no shift. No RoPE.

use super::parts::low_rank_tensors;
use super::recurrent::{self, Recurrent};
use super::stateful_ops::StatefulOps;
use super::{
    CalibrationParam, CalibrationUpdate, Combine, Granularity, Initial, LayerDims, LayerInputs, NewTensor, OptionKind,
    OptionSpec, OutputScale, Params, Registration,
};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::{add, mul, row_dot, scale};
use crate::ops::elementwise::add_scaled;
use crate::ops::linear::linear;
use crate::ops::norm::{l2_norm, layer_norm};
use crate::ops::shape::repeat_heads;
use crate::ops::token_shift::lerp;
use crate::ops::unary::{Unary, unary};

/// e^-0.5: no channel decays faster than by 0.545 a token.
const FASTEST: f32 = 0.606_530_66;
/// A decay of 0.99 a token.
const DECAY_BIAS: f32 = -4.08;
/// The middle of the published start.
const RATE_BIAS: f32 = -0.19;
const K_K: f32 = 0.71;
const K_A: f32 = 1.02;
/// The published norm divides by max(|x|, 1e-12).
const TINY: f64 = 1e-24;
const DECAY: [&str; 3] = ["decay_down", "decay_up", "decay_bias"];
const RATE: [&str; 3] = ["rate_down", "rate_up", "rate_bias"];
const SHIFTS: [&str; 3] = ["decay_shift", "rate_shift", "gate_shift"];

const fn rank(name: &'static str, help: &'static str) -> OptionSpec {
    OptionSpec { name, kind: OptionKind::Integer { min: 1, max: 4096 }, default: "null", help }
}

pub const REGISTRATION: Registration = Registration {
    name: "rwkv7",
    summary: "RWKV-7: a generalised delta rule with decay and rate per channel",
    formula: "S_t = (diag(e^w_t) - (kappa alpha)_t kappa_t^T) S_{t-1} + k'_t v_t^T;  o_t = (norm(r_t^T S_t) + (r_t . r_k k'_t) v_t) g_t",
    paper: "RWKV-7 (arXiv 2503.14456)",
    rope: false,
    inherits: "r <- q, k and v as they are; what is removed <- k at unit length",
    options: &[
        rank("decay_rank", "rank of the decay's projection (paper: 2.5 sqrt D K / 64 in steps of 32, at least 32)"),
        rank("rate_rank", "rank of the rate's projection (paper: as the decay's)"),
        rank("gate_rank", "rank of the output gate's projection (paper: 5 sqrt D in steps of 32, at least 32)"),
        OptionSpec {
            name: "token_shift",
            kind: OptionKind::Flag,
            default: "true",
            help: "mix each token with the one before it where decay, rate and gate are made (published); starts at none",
        },
    ],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, layer_dims, window| {
        let root = (layer_dims.model_width as f64).sqrt();
        let steps = |x: f64| ((x / 32.0).round() as usize * 32).max(32);
        let inner = steps(2.5 * root * layer_dims.width as f64 / 64.0);
        let mixer = Rwkv7 {
            layer_dims,
            decay_rank: options.integer("decay_rank", inner),
            rate_rank: options.integer("rate_rank", inner),
            gate_rank: options.integer("gate_rank", steps(5.0 * root)),
            shift: options.flag("token_shift"),
        };
        Ok(recurrent::mixer(mixer, layer_dims, window))
    },
};

struct Rwkv7 {
    layer_dims: LayerDims,
    decay_rank: usize,
    rate_rank: usize,
    gate_rank: usize,
    shift: bool,
}

impl Rwkv7 {
    /// What decay, rate and gate are made of: x_w, x_a, x_g [B, T, D].
    fn inputs(&self, heads: &LayerInputs, params: &Params, ops: &mut StatefulOps) -> Result<[Var; 3]> {
        let x = heads.input()?;
        if !self.shift {
            return Ok([x.clone(), x.clone(), x.clone()]);
        }
        let before = ops.token_shift("x", x)?;
        let of = |name| lerp(x, &before, params.get(name)?);
        Ok([of(SHIFTS[0])?, of(SHIFTS[1])?, of(SHIFTS[2])?])
    }

    /// sigmoid(U f(D x) + b), [B, T, H, K].
    fn sigmoid(&self, x: &Var, params: &Params, names: [&str; 3], inner: Option<Unary>) -> Result<Var> {
        let low = linear(x, params.get(names[0])?)?;
        let low = inner.map_or_else(|| Ok(low.clone()), |f| unary(&low, f))?;
        let logits = add(&linear(&low, params.get(names[1])?)?, params.get(names[2])?)?;
        unary(&self.in_heads(&logits)?, Unary::Sigmoid)
    }

    fn in_heads(&self, x: &Var) -> Result<Var> {
        let (batch, tokens, _) = x.value().dims3()?;
        x.reshape(&[batch, tokens, self.layer_dims.heads, self.layer_dims.width])
    }
}

impl Recurrent for Rwkv7 {
    fn tensors(&self) -> Vec<NewTensor> {
        let (LayerDims { heads, width, model_width, .. }, n) =
            (self.layer_dims, self.layer_dims.heads * self.layer_dims.width);
        let per_channel =
            |name, value| NewTensor { name, shape: vec![heads, width], initial: Initial::Constant(value) };
        let mut all = vec![
            per_channel("k_k", K_K),
            per_channel("k_a", K_A),
            // The published -0.04 belongs to projections from scratch; a teacher's q . k is large.
            per_channel("r_k", 0.0),
            per_channel("norm_weight", 1.0),
            per_channel("norm_bias", 0.0),
        ];
        all.extend(low_rank_tensors(DECAY, &self.layer_dims, self.decay_rank, n, DECAY_BIAS));
        all.extend(low_rank_tensors(RATE, &self.layer_dims, self.rate_rank, n, RATE_BIAS));
        // Sigmoids around 1/2 whose sum is about 1: the identity, nearly.
        let open = Initial::Constant(2.0 / self.gate_rank as f32);
        let down = Initial::Kaiming { fan_in: model_width };
        all.push(NewTensor { name: "gate_down", shape: vec![self.gate_rank, model_width], initial: down });
        all.push(NewTensor { name: "gate_up", shape: vec![n, self.gate_rank], initial: open });
        if self.shift {
            let none = |name| NewTensor { name, shape: vec![model_width], initial: Initial::Constant(0.0) };
            all.extend(SHIFTS.map(none));
        }
        all
    }

    fn mix(&self, heads: &LayerInputs, params: &Params, ops: &mut StatefulOps) -> Result<Var> {
        let LayerDims { heads: h, width, .. } = self.layer_dims;
        let [for_decay, for_rate, for_gate] = self.inputs(heads, params, ops)?;
        let decay = scale(&self.sigmoid(&for_decay, params, DECAY, Some(Unary::Tanh))?, -FASTEST, 0.0)?;
        let rate = self.sigmoid(&for_rate, params, RATE, None)?;
        let low = unary(&linear(&for_gate, params.get("gate_down")?)?, Unary::Sigmoid)?;
        let gate = self.in_heads(&linear(&low, params.get("gate_up")?)?)?;

        let (r, k, v) = (&heads.q, repeat_heads(&heads.k, h)?, repeat_heads(&heads.v, h)?);
        let kappa = l2_norm(&mul(&k, params.get("k_k")?)?, TINY)?;
        let slower = mul(&mul(&k, &scale(&rate, 1.0, -1.0)?)?, params.get("k_a")?)?;
        let k = add_scaled(&k, 1.0, &slower)?;
        let transition = (&scale(&kappa, -1.0, 0.0)?, &mul(&kappa, &rate)?);
        let o = ops.dplr("s", (r, &k, &v), transition, Some(&decay))?;

        let (weight, bias) = (params.get("norm_weight")?, params.get("norm_bias")?);
        let o = layer_norm(&o, 1, Some(weight), Some(bias), 1e-5 * width as f64)?;
        let bonus = mul(&v, &row_dot(&mul(r, params.get("r_k")?)?, &k)?)?;
        ops.without_padding(&mul(&add(&o, &bonus)?, &gate)?)
    }

    fn calibration_params(&self) -> Vec<CalibrationParam> {
        // Decays of 0.55 (the fastest) to 0.9998 a token; rates of 0.05 to 0.95.
        let decay = &[6.0, 1.0, 0.0, -1.5, -3.0, -4.1, -6.0, -8.0];
        let calibration_param = |tensor, values| CalibrationParam {
            tensor,
            granularity: Granularity::Head,
            values,
            update: CalibrationUpdate::Set,
        };
        vec![calibration_param("decay_bias", decay), calibration_param("rate_bias", &[-3.0, -2.0, -1.0, 0.0, 1.0, 3.0])]
    }

    fn scale(&self) -> OutputScale {
        // At the start there is neither bias nor bonus, and the weight scales all.
        OutputScale::Existing("norm_weight")
    }

    fn state_size(&self) -> usize {
        let LayerDims { heads, width, model_width, .. } = self.layer_dims;
        heads * width * width + if self.shift { model_width } else { 0 }
    }
}
