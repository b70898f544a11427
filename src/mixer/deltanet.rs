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

use super::carry::Carry;
use super::delta_parts::{self as delta, Beta};
use super::parts::{Convolutions, Finish, gate_tensors};
use super::recurrent::{self, Recurrent};
use super::{Bound, Combine, Heads, Knob, Mixer, NewTensor, OptionSpec, Options, Registration, Scale, Site, Window};
use crate::Result;
use crate::ops::Var;

pub const DELTANET: Registration = Registration {
    name: "deltanet",
    summary: "delta rule: a key's old value is replaced by the new one",
    formula: "S_t = S_{t-1} + b_t k_t (v_t - S_{t-1}^T k_t)^T;  o_t = norm(q_t^T S_t / sqrt K);  |q| = |k| = 1",
    paper: "DeltaNet (arXiv 2406.06484)",
    rope: false,
    seeding: "q, k and v through short convolutions; q and k at unit length",
    options: &[
        delta::NEGATIVE_EIGENVALUES,
        delta::BETA_BIAS,
        Convolutions::option("true"),
        OptionSpec { default: "false", ..Finish::GATE },
    ],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, site, window| build(false, options, site, window),
};

pub const GATED: Registration = Registration {
    name: "gated-deltanet",
    summary: "delta rule with a decay per head",
    formula: "S~ = e^g_t S_{t-1};  S_t = S~ + b_t k_t (v_t - S~^T k_t)^T;  o_t = norm(q_t^T S_t / sqrt K) swish(W_g x_t)",
    paper: "Gated DeltaNet (arXiv 2412.06464)",
    rope: false,
    seeding: "q, k and v through short convolutions; q and k at unit length",
    options: &[delta::NEGATIVE_EIGENVALUES, delta::BETA_BIAS, Convolutions::option("true"), Finish::GATE],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, site, window| build(true, options, site, window),
};

fn build(decays: bool, options: &Options, site: Site, window: Option<Window>) -> Result<Box<dyn Mixer>> {
    let mixer = DeltaNet {
        site,
        decays,
        beta: Beta::new(options),
        convolutions: Convolutions::new(site, options.flag("convolution")),
        finish: Finish::new(site, options.flag("output_gate"), 1e-5),
    };
    Ok(recurrent::mixer(mixer, site, window))
}

struct DeltaNet {
    site: Site,
    decays: bool,
    beta: Beta,
    convolutions: Convolutions,
    finish: Finish,
}

impl Recurrent for DeltaNet {
    fn tensors(&self) -> Vec<NewTensor> {
        let mut all = vec![];
        if self.decays {
            all.push(delta::log_rate(&self.site));
            all.extend(gate_tensors("decay_weight", "dt_bias", &self.site, self.site.heads, delta::DT_BIAS));
        }
        all.extend(self.beta.tensors(Beta::NAMES, &self.site, self.site.heads, 0.0));
        all.extend(self.convolutions.tensors());
        all.extend(self.finish.tensors());
        all
    }

    fn mix(&self, heads: &Heads, bound: &Bound, carry: &mut Carry) -> Result<Var> {
        let Site { heads: h, width, .. } = self.site;
        let (q, k, v) = self.convolutions.run(heads, bound, carry)?;
        let (q, k) = delta::unit_vectors(&q, &k, width)?;
        let decay = match self.decays {
            true => Some(delta::decay(&delta::step_size(heads, bound, "decay_weight", h)?, bound)?),
            false => None,
        };
        let beta = self.beta.run(heads, bound)?;
        let o = carry.delta("s", (&q, &k, &v), &beta, decay.as_ref(), 1)?;
        self.finish.run(&o, heads, bound)
    }

    fn knobs(&self) -> Vec<Knob> {
        if self.decays {
            return std::iter::once(delta::DECAY_KNOB).chain(self.beta.knob(Beta::USUAL)).collect();
        }
        // Without a decay, small writes are the only long average: beta of 0.001 to 0.95.
        self.beta.knob(&[-7.0, -4.5, -3.0, -2.0, -1.0, 0.0, 1.0, 3.0]).into_iter().collect()
    }

    fn scale(&self) -> Scale {
        Scale::Own(Finish::SCALE)
    }

    fn state_size(&self) -> usize {
        self.site.heads * self.site.width * self.site.width + self.convolutions.state_size()
    }
}
