//! Retention (RetNet, arXiv 2307.08621), as in flash-linear-attention's layer.
//!
//! q and k after RoPE; S_t = gamma_h S_{t-1} + k_t v_t^T with gamma_h = 1 - 2^(-5-h), h = 0..H-1, which no training changes;
//! o_t = (q_t / sqrt K)^T S_t; RMSNorm per head times swish(W_g x). The teacher's RoPE takes the place of the paper's.

use super::carry::Carry;
use super::parts::{ConstantGate, Finish};
use super::recurrent::{self, Recurrent};
use super::{Bound, Combine, Heads, Knob, NewTensor, Registration, Scale, Site};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::scale;

pub const REGISTRATION: Registration = Registration {
    name: "retention",
    summary: "a fixed decay per head, with RoPE (RetNet)",
    formula: "S_t = (1 - 2^(-5-h)) S_{t-1} + k_t v_t^T;  o_t = norm(q_t^T S_t / sqrt K) swish(W_g x_t);  q, k after RoPE",
    paper: "Retentive Network (arXiv 2307.08621)",
    rope: true,
    seeding: "q, k and v as they are",
    options: &[Finish::GATE],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, site, window| {
        let retention = Retention {
            site,
            decay: ConstantGate::new(site.heads, |h| (-(-5.0 - h as f64).exp2()).ln_1p() as f32),
            finish: Finish::new(site, options.flag("output_gate"), 1e-5),
        };
        Ok(recurrent::mixer(retention, site, window))
    },
};

struct Retention {
    site: Site,
    decay: ConstantGate,
    finish: Finish,
}

impl Recurrent for Retention {
    fn tensors(&self) -> Vec<NewTensor> {
        let mut all = self.finish.tensors();
        all.push(self.decay.tensor());
        all
    }

    fn mix(&self, heads: &Heads, bound: &Bound, carry: &mut Carry) -> Result<Var> {
        let (q, k) = heads.rotated()?;
        let q = scale(q, 1.0 / (self.site.width as f32).sqrt(), 0.0)?;
        let o = carry.gated("s", (&q, k, &heads.v), Some(&self.decay.run(heads, bound)?), None)?;
        self.finish.run(&o, heads, bound)
    }

    fn knobs(&self) -> Vec<Knob> {
        vec![self.decay.knob()]
    }

    fn scale(&self) -> Scale {
        Scale::Own(Finish::SCALE)
    }

    fn state_size(&self) -> usize {
        self.site.heads * self.site.width * self.site.width
    }
}
