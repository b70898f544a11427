//! DeltaNet (arXiv 2406.06484) and Gated DeltaNet (arXiv 2412.06464), as in flash-linear-attention's layers.
//!
//! beta = sigmoid(W_b x), one per head; q and k of unit length after their convolutions; RMSNorm per head. No RoPE.
//!
//! ```text
//! deltanet          S~ = S_{t-1}
//! gated-deltanet    S~ = e^g_t S_{t-1}, g = -e^A softplus(W_a x + b_dt), one per head; the norm times swish(W_g x)
//! both              S_t = S~ + beta_t k_t (v_t - S~^T k_t)^T, o_t = (q_t / sqrt K)^T S_t
//! ```
//!
//! beta is doubled where negative eigenvalues are allowed (arXiv 2411.12537).

use super::delta_parts::{self as delta, Beta};
use super::parts::{Convolutions, GatedNorm, gate_tensors};
use super::recurrent::{self, Recurrent};
use super::stateful_ops::StatefulOps;
use super::{
    CalibrationParam, Combine, LayerDims, LayerInputs, Mixer, NewTensor, OptionSpec, Options, OutputScale, Params,
    Registration, Window,
};
use crate::Result;
use crate::ops::Var;

pub const DELTANET: Registration = Registration {
    name: "deltanet",
    summary: "delta rule: a key's old value is replaced by the new one",
    formula: "S_t = S_{t-1} + b_t k_t (v_t - S_{t-1}^T k_t)^T;  o_t = norm(q_t^T S_t / sqrt K);  |q| = |k| = 1",
    paper: "DeltaNet (arXiv 2406.06484)",
    rope: false,
    inherits: "q, k and v through short convolutions; q and k at unit length",
    options: &[
        delta::NEGATIVE_EIGENVALUES,
        delta::BETA_BIAS,
        Convolutions::option("true"),
        OptionSpec { default: "false", ..GatedNorm::GATE },
    ],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, layer_dims, window| build(false, options, layer_dims, window),
};

pub const GATED: Registration = Registration {
    name: "gated-deltanet",
    summary: "delta rule with a decay per head",
    formula: "S~ = e^g_t S_{t-1};  S_t = S~ + b_t k_t (v_t - S~^T k_t)^T;  o_t = norm(q_t^T S_t / sqrt K) swish(W_g x_t)",
    paper: "Gated DeltaNet (arXiv 2412.06464)",
    rope: false,
    inherits: "q, k and v through short convolutions; q and k at unit length",
    options: &[delta::NEGATIVE_EIGENVALUES, delta::BETA_BIAS, Convolutions::option("true"), GatedNorm::GATE],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, layer_dims, window| build(true, options, layer_dims, window),
};

fn build(decays: bool, options: &Options, layer_dims: LayerDims, window: Option<Window>) -> Result<Box<dyn Mixer>> {
    let mixer = DeltaNet {
        layer_dims,
        decays,
        beta: Beta::new(options),
        convolutions: Convolutions::new(layer_dims, options.flag("convolution")),
        finish: GatedNorm::new(layer_dims, options.flag("output_gate"), 1e-5),
    };
    Ok(recurrent::mixer(mixer, layer_dims, window))
}

struct DeltaNet {
    layer_dims: LayerDims,
    decays: bool,
    beta: Beta,
    convolutions: Convolutions,
    finish: GatedNorm,
}

impl Recurrent for DeltaNet {
    fn tensors(&self) -> Vec<NewTensor> {
        let mut all = vec![];
        if self.decays {
            all.push(delta::log_rate(&self.layer_dims));
            all.extend(gate_tensors(
                "decay_weight",
                "dt_bias",
                &self.layer_dims,
                self.layer_dims.heads,
                delta::DT_BIAS,
            ));
        }
        all.extend(self.beta.tensors(Beta::NAMES, &self.layer_dims, self.layer_dims.heads, 0.0));
        all.extend(self.convolutions.tensors());
        all.extend(self.finish.tensors());
        all
    }

    fn mix(&self, heads: &LayerInputs, params: &Params, ops: &mut StatefulOps) -> Result<Var> {
        let LayerDims { heads: h, width, .. } = self.layer_dims;
        let (q, k, v) = self.convolutions.run(heads, params, ops)?;
        let (q, k) = delta::unit_vectors(&q, &k, width)?;
        let decay = match self.decays {
            true => Some(delta::decay(&delta::step_size(heads, params, "decay_weight", h)?, params)?),
            false => None,
        };
        let beta = self.beta.run(heads, params)?;
        let o = ops.delta("s", (&q, &k, &v), &beta, decay.as_ref(), 1)?;
        self.finish.run(&o, heads, params)
    }

    fn calibration_params(&self) -> Vec<CalibrationParam> {
        if self.decays {
            return std::iter::once(delta::DECAY_KNOB).chain(self.beta.calibration_param(Beta::USUAL)).collect();
        }
        // Without a decay, small writes are the only long average: beta of 0.001 to 0.95.
        self.beta.calibration_param(&[-7.0, -4.5, -3.0, -2.0, -1.0, 0.0, 1.0, 3.0]).into_iter().collect()
    }

    fn scale(&self) -> OutputScale {
        OutputScale::Existing(GatedNorm::SCALE)
    }

    fn state_size(&self) -> usize {
        self.layer_dims.heads * self.layer_dims.width * self.layer_dims.width + self.convolutions.state_size()
    }
}
