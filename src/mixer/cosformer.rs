//! cosFormer (arXiv 2202.08791): positive parts, weighed by the cosine of their distance.
//!
//! phi(x_t) = [r sin theta_t, r cos theta_t], r = max(x, 0), theta_t = pi t / 2M, t from 1, so that
//! phi(q_t).phi(k_s) = (r_q.r_k) cos(theta_t - theta_s); o_t = phi(q_t) S_t / max(phi(q_t).z_t, 1e-6). The cosine is the position
//! code: no RoPE. The paper's M is the length of the text; a text that goes on needs one M for all lengths. Beyond a
//! distance of M weights would turn negative, so M should be at least the longest text.

use super::carry::Carry;
use super::recurrent::{self, Recurrent};
use super::{Bound, Combine, Heads, Knob, Misfit, NewTensor, OptionKind, OptionSpec, Registration, Scale, Site};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::mul;
use crate::ops::map::{Map, map};
use crate::ops::quotient::quotient;
use crate::ops::shape::{concat_last, repeat_heads};

/// The smallest denominator.
const FLOOR: f32 = 1e-6;

pub const REGISTRATION: Registration = Registration {
    name: "cosformer",
    summary: "positive parts weighed by the cosine of their distance",
    formula: "phi(x_t) = [r sin u, r cos u], r = max(x, 0), u = pi t / 2M;  o_t = phi(q_t) S_t / max(phi(q_t).z_t, 1e-6)",
    paper: "cosFormer (arXiv 2202.08791)",
    rope: false,
    seeding: "positive parts of q and k",
    options: &[
        OptionSpec {
            name: "length",
            kind: OptionKind::Integer { min: 1, max: 1 << 24 },
            default: "4096",
            help: "M, tokens over which the cosine falls from 1 to 0: the longest text that will be read (the paper: \
                   the length of each text, which a text that goes on does not know)",
        },
        Scale::OPTION,
    ],
    combine: &[Combine::Learned, Combine::Fixed],
    build: |options, site, window| {
        let length = options.integer("length", 4096);
        let mixer = Cosformer { site, length, scale: Scale::added(options.flag("output_scale")) };
        Ok(recurrent::mixer(mixer, site, window))
    },
};

struct Cosformer {
    site: Site,
    /// M
    length: usize,
    scale: Scale,
}

impl Recurrent for Cosformer {
    fn tensors(&self) -> Vec<NewTensor> {
        vec![]
    }

    fn mix(&self, heads: &Heads, _: &Bound, carry: &mut Carry) -> Result<Var> {
        let quarter = std::f64::consts::FRAC_PI_2 / self.length as f64;
        let sine = carry.of_positions(|t| (quarter * (t + 1) as f64).sin())?;
        let cosine = carry.of_positions(|t| (quarter * (t + 1) as f64).cos())?;
        let features = |x: &Var| -> Result<Var> {
            let r = map(x, Map::Relu)?;
            repeat_heads(&concat_last(&[&mul(&r, &sine)?, &mul(&r, &cosine)?])?, self.site.heads)
        };
        let (a, b) = (features(&heads.q)?, features(&heads.k)?);
        let (num, den) = carry.linear(("s", "z"), &a, &b, &heads.v)?;
        quotient(&num, &map(&den, Map::Clamp { min: FLOOR, max: f32::INFINITY })?, 0.0)
    }

    fn misfits(&self, tokens: usize) -> Vec<Misfit> {
        let misfit = Misfit {
            option: Some("length"),
            what: format!(
                "`length` is {}: in a text of {tokens} tokens, weights of keys that are further away turn negative",
                self.length
            ),
            hint: format!("at least {tokens}"),
        };
        if tokens > self.length { vec![misfit] } else { vec![] }
    }

    fn knobs(&self) -> Vec<Knob> {
        vec![]
    }

    fn scale(&self) -> Scale {
        self.scale
    }

    fn state_size(&self) -> usize {
        let Site { heads, width, .. } = self.site;
        heads * 2 * width * (width + 1)
    }
}
