//! Gated DeltaProduct (arXiv 2502.10297), as in flash-linear-attention's layer: n delta-rule writes a token.
//!
//! S_t,0 = e^g_t S_{t-1}; S_t,i = S_t,i-1 + beta_t,i k_t,i (v_t,i - S_t,i-1^T k_t,i)^T for i = 1 .. n; S_t = S_t,n;
//! o_t = (q_t / sqrt K)^T S_t; g and what follows as in Gated DeltaNet; beta = 2 sigmoid(W_b x). The first write takes the
//! teacher's k and v; the others have projections and convolutions of their own. No RoPE.

use super::delta_parts::{self as delta, Beta};
use super::parts::{Convolutions, GatedNorm, gate_tensors};
use super::recurrent::{self, Recurrent};
use super::stateful_ops::StatefulOps;
use super::{
    CalibrationParam, Combine, Initial, LayerDims, LayerInputs, NewTensor, OptionKind, OptionSpec, OutputScale, Params,
    Registration,
};
use crate::Result;
use crate::ops::Var;
use crate::ops::linear::linear;
use crate::ops::shape::{concat_last, pick_micro_step, place_micro_step};

/// Writes after the first start small: their keys are random and their values zero, so that all they do is forget.
const MORE_BETA_BIAS: f32 = -4.0;
const MORE_BETA: [&str; 2] = ["more_beta_weight", "more_beta_bias"];

pub const REGISTRATION: Registration = Registration {
    name: "delta-product",
    summary: "several delta-rule writes a token, with a decay per head",
    formula: "S_t = (prod_i I - b_ti k_ti k_ti^T) e^g_t S_{t-1} + writes;  o_t = norm(q_t^T S_t / sqrt K) swish(W_g x_t)",
    paper: "DeltaProduct (arXiv 2502.10297)",
    rope: false,
    inherits: "q and the first write's k and v through short convolutions; q and k at unit length",
    options: &[
        OptionSpec {
            name: "micro_steps",
            kind: OptionKind::Integer { min: 2, max: 8 },
            default: "2",
            help: "writes a token (flash-linear-attention: 2); the first takes the teacher's k and v",
        },
        OptionSpec {
            default: "true",
            help: "double beta, so that a state can be reflected, which products of writes turn into rotations (the \
                   paper's and flash-linear-attention's default)",
            ..delta::NEGATIVE_EIGENVALUES
        },
        delta::BETA_BIAS,
        Convolutions::option("true"),
        GatedNorm::GATE,
    ],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, layer_dims, window| {
        let convolution = options.flag("convolution");
        let mixer = DeltaProduct {
            layer_dims,
            steps: options.integer("micro_steps", 2),
            beta: Beta::new(options),
            convolutions: Convolutions::new(layer_dims, convolution),
            convolution,
            finish: GatedNorm::new(layer_dims, options.flag("output_gate"), 1e-5),
        };
        Ok(recurrent::mixer(mixer, layer_dims, window))
    },
};

struct DeltaProduct {
    layer_dims: LayerDims,
    /// Writes a token.
    steps: usize,
    beta: Beta,
    /// Those of q and of the first write.
    convolutions: Convolutions,
    /// Whether the other writes have theirs.
    convolution: bool,
    finish: GatedNorm,
}

impl DeltaProduct {
    /// Channels of the other writes' keys, or values.
    fn more(&self) -> usize {
        (self.steps - 1) * self.layer_dims.kv_heads * self.layer_dims.width
    }

    /// Keys or values of all writes, [B, T n, G, K], from the first's, [B, T, G, K].
    fn all(
        &self,
        first: &Var,
        (projection, convolution): (&str, &'static str),
        heads: &LayerInputs,
        params: &Params,
        ops: &mut StatefulOps,
    ) -> Result<Var> {
        let (batch, tokens, kv_heads, width) = first.value().dims4()?;
        let mut more = linear(heads.input()?, params.get(projection)?)?;
        if self.convolution {
            more = ops.convolution(convolution, &more, params.get(convolution)?, None, true)?;
        }
        let first = first.reshape(&[batch, tokens, kv_heads * width])?;
        concat_last(&[&first, &more])?.reshape(&[batch, tokens * self.steps, kv_heads, width])
    }

    /// beta of all writes, [B, T n, H, 1].
    fn beta(&self, heads: &LayerInputs, params: &Params) -> Result<Var> {
        let (batch, tokens) = heads.size()?;
        let first = self.beta.logits(Beta::NAMES, heads, params)?;
        let more = self.beta.logits(MORE_BETA, heads, params)?;
        let logits = concat_last(&[&first, &more])?.reshape(&[batch, tokens * self.steps, self.layer_dims.heads, 1])?;
        self.beta.of(&logits)
    }
}

impl Recurrent for DeltaProduct {
    fn tensors(&self) -> Vec<NewTensor> {
        let LayerDims { heads, model_width, .. } = self.layer_dims;
        let (more, more_heads) = (self.more(), (self.steps - 1) * heads);
        let random = Initial::Kaiming { fan_in: model_width };
        let mut all = vec![
            delta::log_rate(&self.layer_dims),
            NewTensor { name: "more_k_weight", shape: vec![more, model_width], initial: random },
            NewTensor { name: "more_v_weight", shape: vec![more, model_width], initial: Initial::Constant(0.0) },
        ];
        all.extend(gate_tensors("decay_weight", "dt_bias", &self.layer_dims, heads, delta::DT_BIAS));
        all.extend(self.beta.tensors(Beta::NAMES, &self.layer_dims, heads, 0.0));
        all.extend(self.beta.tensors(MORE_BETA, &self.layer_dims, more_heads, MORE_BETA_BIAS));
        all.extend(self.convolutions.tensors());
        if self.convolution {
            all.push(Convolutions::taps("more_k_convolution", more));
            all.push(Convolutions::taps("more_v_convolution", more));
        }
        all.extend(self.finish.tensors());
        all
    }

    fn mix(&self, heads: &LayerInputs, params: &Params, ops: &mut StatefulOps) -> Result<Var> {
        let (LayerDims { heads: h, width, .. }, n) = (self.layer_dims, self.steps);
        let (q, k, v) = self.convolutions.run(heads, params, ops)?;
        let k = self.all(&k, ("more_k_weight", "more_k_convolution"), heads, params, ops)?;
        let (q, k) = delta::unit_vectors(&q, &k, width)?;
        let v = self.all(&v, ("more_v_weight", "more_v_convolution"), heads, params, ops)?;
        let decay = delta::decay(&delta::step_size(heads, params, "decay_weight", h)?, params)?;
        // A token decays before its first write and is read after its last.
        let (q, decay) = (place_micro_step(&q, n, n - 1)?, place_micro_step(&decay, n, 0)?);
        let o = ops.delta("s", (&q, &k, &v), &self.beta(heads, params)?, Some(&decay), n)?;
        self.finish.run(&pick_micro_step(&o, n, n - 1)?, heads, params)
    }

    fn calibration_params(&self) -> Vec<CalibrationParam> {
        std::iter::once(delta::DECAY_KNOB).chain(self.beta.calibration_param(Beta::USUAL)).collect()
    }

    fn scale(&self) -> OutputScale {
        OutputScale::Existing(GatedNorm::SCALE)
    }

    fn state_size(&self) -> usize {
        let tails = if self.convolution { Convolutions::tail(2 * self.more()) } else { 0 };
        self.layer_dims.heads * self.layer_dims.width * self.layer_dims.width + self.convolutions.state_size() + tails
    }
}
