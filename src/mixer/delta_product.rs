//! Gated DeltaProduct (arXiv 2502.10297), as in flash-linear-attention's layer: n delta-rule writes a token.
//!
//! S_t,0 = e^g_t S_{t-1}; S_t,i = S_t,i-1 + beta_t,i k_t,i (v_t,i - S_t,i-1^T k_t,i)^T for i = 1 .. n; S_t = S_t,n;
//! o_t = (q_t / sqrt K)^T S_t; g and what follows as in Gated DeltaNet; beta = 2 sigmoid(W_b x). The first write takes the
//! teacher's k and v; the others have projections and convolutions of their own. No RoPE.

use super::carry::Carry;
use super::delta_parts::{self as delta, Beta};
use super::parts::{Convolutions, Finish, gate_tensors};
use super::recurrent::{self, Recurrent};
use super::{Bound, Combine, Heads, Initial, Knob, NewTensor, OptionKind, OptionSpec, Registration, Scale, Site};
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
    seeding: "q and the first write's k and v through short convolutions; q and k at unit length",
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
        Finish::GATE,
    ],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, site, window| {
        let convolution = options.flag("convolution");
        let mixer = DeltaProduct {
            site,
            steps: options.integer("micro_steps", 2),
            beta: Beta::new(options),
            convolutions: Convolutions::new(site, convolution),
            convolution,
            finish: Finish::new(site, options.flag("output_gate"), 1e-5),
        };
        Ok(recurrent::mixer(mixer, site, window))
    },
};

struct DeltaProduct {
    site: Site,
    /// Writes a token.
    steps: usize,
    beta: Beta,
    /// Those of q and of the first write.
    convolutions: Convolutions,
    /// Whether the other writes have theirs.
    convolution: bool,
    finish: Finish,
}

impl DeltaProduct {
    /// Channels of the other writes' keys, or values.
    fn more(&self) -> usize {
        (self.steps - 1) * self.site.kv_heads * self.site.width
    }

    /// Keys or values of all writes, [B, T n, G, K], from the first's, [B, T, G, K].
    fn all(
        &self,
        first: &Var,
        (projection, convolution): (&str, &'static str),
        heads: &Heads,
        bound: &Bound,
        carry: &mut Carry,
    ) -> Result<Var> {
        let (batch, tokens, kv_heads, width) = first.value().dims4()?;
        let mut more = linear(heads.input()?, bound.get(projection)?)?;
        if self.convolution {
            more = carry.convolution(convolution, &more, bound.get(convolution)?, None, true)?;
        }
        let first = first.reshape(&[batch, tokens, kv_heads * width])?;
        concat_last(&[&first, &more])?.reshape(&[batch, tokens * self.steps, kv_heads, width])
    }

    /// beta of all writes, [B, T n, H, 1].
    fn beta(&self, heads: &Heads, bound: &Bound) -> Result<Var> {
        let (batch, tokens) = heads.size()?;
        let first = self.beta.logits(Beta::NAMES, heads, bound)?;
        let more = self.beta.logits(MORE_BETA, heads, bound)?;
        let logits = concat_last(&[&first, &more])?.reshape(&[batch, tokens * self.steps, self.site.heads, 1])?;
        self.beta.of(&logits)
    }
}

impl Recurrent for DeltaProduct {
    fn tensors(&self) -> Vec<NewTensor> {
        let Site { heads, model_width, .. } = self.site;
        let (more, more_heads) = (self.more(), (self.steps - 1) * heads);
        let random = Initial::Kaiming { fan_in: model_width };
        let mut all = vec![
            delta::log_rate(&self.site),
            NewTensor { name: "more_k_weight", shape: vec![more, model_width], initial: random },
            NewTensor { name: "more_v_weight", shape: vec![more, model_width], initial: Initial::Constant(0.0) },
        ];
        all.extend(gate_tensors("decay_weight", "dt_bias", &self.site, heads, delta::DT_BIAS));
        all.extend(self.beta.tensors(Beta::NAMES, &self.site, heads, 0.0));
        all.extend(self.beta.tensors(MORE_BETA, &self.site, more_heads, MORE_BETA_BIAS));
        all.extend(self.convolutions.tensors());
        if self.convolution {
            all.push(Convolutions::taps("more_k_convolution", more));
            all.push(Convolutions::taps("more_v_convolution", more));
        }
        all.extend(self.finish.tensors());
        all
    }

    fn mix(&self, heads: &Heads, bound: &Bound, carry: &mut Carry) -> Result<Var> {
        let (Site { heads: h, width, .. }, n) = (self.site, self.steps);
        let (q, k, v) = self.convolutions.run(heads, bound, carry)?;
        let k = self.all(&k, ("more_k_weight", "more_k_convolution"), heads, bound, carry)?;
        let (q, k) = delta::unit_vectors(&q, &k, width)?;
        let v = self.all(&v, ("more_v_weight", "more_v_convolution"), heads, bound, carry)?;
        let decay = delta::decay(&delta::step_size(heads, bound, "decay_weight", h)?, bound)?;
        // A token decays before its first write and is read after its last.
        let (q, decay) = (place_micro_step(&q, n, n - 1)?, place_micro_step(&decay, n, 0)?);
        let o = carry.delta("s", (&q, &k, &v), &self.beta(heads, bound)?, Some(&decay), n)?;
        self.finish.run(&pick_micro_step(&o, n, n - 1)?, heads, bound)
    }

    fn knobs(&self) -> Vec<Knob> {
        std::iter::once(delta::DECAY_KNOB).chain(self.beta.knob(Beta::USUAL)).collect()
    }

    fn scale(&self) -> Scale {
        Scale::Own(Finish::SCALE)
    }

    fn state_size(&self) -> usize {
        let tails = if self.convolution { Convolutions::tail(2 * self.more()) } else { 0 };
        self.site.heads * self.site.width * self.site.width + self.convolutions.state_size() + tails
    }
}
