//! Performer's positive random features, FAVOR+ (arXiv 2009.14794).
//!
//! x^ = x K^-1/4, phi(x) = m^-1/2 (exp(Omega x^ - |x^|^2 / 2 - c) + 1e-4); o_t = phi(q_t) S_t / (phi(q_t).z_t + 1e-6) on q and k
//! after RoPE. c is the maximum of its row for a query and 0 for keys, whose exponents Omega bounds: the published
//! maximum over all keys looks ahead, and one per key does not cancel. Omega [m, K] has orthogonal rows in blocks of K,
//! each of the length of a Gaussian vector. It is a tensor of the mixer, drawn from the seed, stored, and not trained;
//! unlike the paper's it is not drawn again either.

use super::feature_map::{self, FeatureMap, Side};
use super::{Combine, Initial, LayerDims, NewTensor, OptionKind, OptionSpec, OutputScale, Params, Registration};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::{add, row_dot, scale};
use crate::ops::linear::linear;
use crate::ops::row_max::row_max;
use crate::ops::shape::repeat_heads;
use crate::ops::unary::{Unary, unary};

/// What keeps features away from zero.
const FLOOR: f32 = 1e-4;

pub const REGISTRATION: Registration = Registration {
    name: "performer",
    summary: "positive random features (FAVOR+)",
    formula: "phi(x) = m^-1/2 (exp(Omega x^ - |x^|^2 / 2 - c) + 1e-4), x^ = x K^-1/4;  o_t = phi(q_t) S_t / phi(q_t).z_t",
    paper: "Performer (arXiv 2009.14794)",
    rope: true,
    inherits: "q and k through random features",
    options: &[
        OptionSpec {
            name: "features",
            kind: OptionKind::Integer { min: 1, max: 4096 },
            default: "null",
            help: "random features of a head (default: K ln K rounded down, as in performer-pytorch)",
        },
        OutputScale::OPTION,
    ],
    combine: Combine::ALL,
    build: |options, layer_dims, window| {
        let derived = (layer_dims.width as f64 * (layer_dims.width as f64).ln()) as usize;
        let kernel = Performer {
            layer_dims,
            features: options.integer("features", derived.max(1)),
            scale: OutputScale::added(options.flag("output_scale")),
        };
        Ok(feature_map::mixer(kernel, layer_dims, window))
    },
};

struct Performer {
    layer_dims: LayerDims,
    features: usize,
    scale: OutputScale,
}

impl FeatureMap for Performer {
    fn tensors(&self) -> Vec<NewTensor> {
        let shape = vec![self.features, self.layer_dims.width];
        vec![NewTensor { name: "omega", shape, initial: Initial::OrthogonalGaussian }]
    }

    fn features(&self) -> usize {
        self.features
    }

    fn eps(&self) -> f32 {
        1e-6
    }

    fn scale(&self) -> OutputScale {
        self.scale
    }

    fn map(&self, side: Side, x: &Var, params: &Params) -> Result<Var> {
        let x = scale(x, (self.layer_dims.width as f32).powf(-0.25), 0.0)?;
        let half = scale(&row_dot(&x, &x)?, -0.5, 0.0)?;
        let mut exponent = add(&linear(&x, params.get("omega")?)?, &half)?;
        if side == Side::Query {
            exponent = add(&exponent, &scale(&row_max(&exponent)?, -1.0, 0.0)?)?;
        }
        let root = (self.features as f32).powf(-0.5);
        repeat_heads(&scale(&unary(&exponent, Unary::Exp)?, root, FLOOR * root)?, self.layer_dims.heads)
    }
}
