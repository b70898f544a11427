//! Liger's three gated forms (arXiv 2503.01496): gates from the teacher's own keys, no new parameters.
//!
//! With k before RoPE and without any convolution, norm or output gate,
//!
//! ```text
//! liger-gla    g = ln sigmoid(k) / 16   S_t = diag(e^g_t) S_{t-1} + softmax(k_t) v_t^T        o_t = softmax(q_t)^T S_t
//! liger-hgrn2  g = ln sigmoid(k)        S_t = diag(e^g_t) S_{t-1} + (1 - e^g_t) v_t^T         o_t = softmax(q_t)^T S_t
//! liger-gsa    g = ln sigmoid(k) / 16   slot attention with s = 1 - e^g and as many slots as channels; q, k, v as they come
//! ```
//!
//! softmax over a head's channels, scale 1. Published half and half with a softmax window of 64 keys. The published gate
//! pools k to as many channels as there are: the identity.

use super::carry::Carry;
use super::gsa;
use super::recurrent::{self, Recurrent};
use super::{Bound, Build, Combine, Heads, Knob, Mixer, NewTensor, Options, Registration, Scale, Site, Window};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::scale;
use crate::ops::map::{Map, map};
use crate::ops::softmax::softmax;

/// What log gates of GLA and GSA are divided by.
const NORMALIZER: f32 = 16.0;

pub const GLA: Registration = registration(
    "liger-gla",
    "GLA with gates from the keys, no new projections (Liger)",
    "S_t = diag(e^g_t) S_{t-1} + softmax(k_t) v_t^T;  o_t = softmax(q_t)^T S_t;  g = ln sigmoid(k) / 16",
    "softmax of q and of k; gates <- k",
    |options, site, window| build(Form::Gla, options, site, window),
);

pub const HGRN2: Registration = registration(
    "liger-hgrn2",
    "HGRN2 with gates from the keys, no new projections (Liger)",
    "S_t = diag(e^g_t) S_{t-1} + (1 - e^g_t) v_t^T;  o_t = softmax(q_t)^T S_t;  g = ln sigmoid(k)",
    "softmax of q; gates and what is written <- k",
    |options, site, window| build(Form::Hgrn2, options, site, window),
);

pub const GSA: Registration = registration(
    "liger-gsa",
    "gated slot attention with gates from the keys, no new projections (Liger)",
    "p_t = softmax(q_t^T Hk_t);  o_t = p_t^T Hv_t;  Hk, Hv gated sums of k s^T, s v^T;  s = 1 - e^g;  g = ln sigmoid(k) / 16",
    "q, k and v as they are; gates <- k",
    |options, site, window| build(Form::Gsa, options, site, window),
);

const fn registration(
    name: &'static str,
    summary: &'static str,
    formula: &'static str,
    seeding: &'static str,
    build: Build,
) -> Registration {
    Registration {
        name,
        summary,
        formula,
        paper: "Liger (arXiv 2503.01496)",
        rope: false,
        seeding,
        options: &[Scale::OPTION],
        // Half and half is the paper's; elsewhere the default is the one that calibration can set.
        combine: &[Combine::Fixed, Combine::Learned],
        build,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Gla,
    Hgrn2,
    Gsa,
}

struct Liger {
    form: Form,
    site: Site,
    scale: Scale,
}

fn build(form: Form, options: &Options, site: Site, window: Option<Window>) -> Result<Box<dyn Mixer>> {
    let scale = Scale::added(options.flag("output_scale"));
    Ok(recurrent::mixer(Liger { form, site, scale }, site, window))
}

impl Recurrent for Liger {
    fn tensors(&self) -> Vec<NewTensor> {
        vec![]
    }

    fn mix(&self, heads: &Heads, _: &Bound, carry: &mut Carry) -> Result<Var> {
        let Heads { q, k, v, .. } = heads;
        let gate = map(k, Map::LogSigmoid)?;
        let slow = scale(&gate, 1.0 / NORMALIZER, 0.0)?;
        match self.form {
            Form::Gla => carry.gated("s", (&softmax(q, None)?, &softmax(k, None)?, v), Some(&slow), None),
            Form::Hgrn2 => {
                let k = map(&gate, Map::OneMinusExp)?;
                carry.gated("s", (&softmax(q, None)?, &k, v), Some(&gate), None)
            }
            Form::Gsa => gsa::passes(carry, q, k, v, &slow),
        }
    }

    fn knobs(&self) -> Vec<Knob> {
        vec![]
    }

    fn scale(&self) -> Scale {
        self.scale
    }

    fn state_size(&self) -> usize {
        let Site { kv_heads, width, .. } = self.site;
        match self.form {
            Form::Gla | Form::Hgrn2 => kv_heads * width * width,
            Form::Gsa => gsa::state_size(&self.site, width),
        }
    }
}
