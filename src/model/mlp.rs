//! The MLP of a block: plain, gated, or a mixture of experts.

use super::forward::{LayerVars, View};
use crate::Result;
use crate::arch::{Activation, Experts, Part, Target};
use crate::ops::linear::linear;
use crate::ops::unary::{Unary, unary};
use crate::ops::{Var, broadcast, elementwise, moe};

impl View<'_> {
    /// [B, T, D] -> [B, T, D].
    pub(super) fn mlp(&self, layer: usize, h: &Var, vars: &LayerVars) -> Result<Var> {
        let spec = &self.model.spec;
        if let Some(experts) = spec.experts_of(layer) {
            return self.experts(layer, h, experts);
        }
        let up = self.linear(layer, Target::Up, h, vars)?;
        let inner = match spec.gated {
            true => gated(&self.linear(layer, Target::Gate, h, vars)?, &up, spec.activation)?,
            false => unary(&up, function(spec.activation))?,
        };
        self.linear(layer, Target::Down, &inner, vars)
    }

    fn experts(&self, layer: usize, h: &Var, spec: Experts) -> Result<Var> {
        let (b, t, d) = h.value().dims3()?;
        let weights = &self.model.layers[layer];
        let of = |part: Part, x: &Var| linear(x, &Var::constant(weights.need(part)?.clone()));
        let h = h.reshape(&[b * t, d])?;
        let (chosen, shares) = moe::route(&of(Part::Router, &h)?, spec.per_token, spec.normalised)?;
        let mut outputs = vec![];
        for (expert, tokens) in chosen.into_iter().enumerate().filter(|(_, tokens)| !tokens.is_empty()) {
            let x = moe::gather(&h, &tokens)?;
            let up = of(Part::Expert(Target::Up, expert), &x)?;
            let inner = match self.model.spec.gated {
                true => gated(&of(Part::Expert(Target::Gate, expert), &x)?, &up, self.model.spec.activation)?,
                false => unary(&up, function(self.model.spec.activation))?,
            };
            outputs.push((of(Part::Expert(Target::Down, expert), &inner)?, tokens));
        }
        moe::combine(&outputs, &shares, d)?.reshape(&[b, t, d])
    }
}

/// act(gate) up
fn gated(gate: &Var, up: &Var, activation: Activation) -> Result<Var> {
    match activation {
        Activation::Silu => elementwise::swiglu(gate, up),
        other => broadcast::mul(&unary(gate, function(other))?, up),
    }
}

fn function(activation: Activation) -> Unary {
    match activation {
        Activation::Silu => Unary::Silu,
        Activation::Gelu => Unary::Gelu,
        Activation::GeluTanh => Unary::GeluTanh,
        Activation::Relu => Unary::Relu,
    }
}
