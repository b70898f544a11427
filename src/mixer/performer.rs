//! Performer's positive random features, FAVOR+ (arXiv 2009.14794).
//!
//! x^ = x K^-1/4, phi(x) = m^-1/2 (exp(Omega x^ - |x^|^2 / 2 - c) + 1e-4); o_t = phi(q_t) S_t / (phi(q_t).z_t + 1e-6) on q and k
//! after RoPE. c is the maximum of its row for a query and 0 for keys, whose exponents Omega bounds: the published
//! maximum over all keys looks ahead, and one per key does not cancel. Omega [m, K] has orthogonal rows in blocks of K,
//! each of the length of a Gaussian vector. It is a tensor of the mixer, drawn from the seed, stored, and not trained;
//! unlike the paper's it is not drawn again either.

use super::kernel::{self, Kernel, Side};
use super::{Bound, Combine, Initial, NewTensor, OptionKind, OptionSpec, Registration, Scale, Site};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::{add, row_dot, scale};
use crate::ops::linear::linear;
use crate::ops::map::{Map, map};
use crate::ops::row_max::row_max;
use crate::ops::shape::repeat_heads;

/// What keeps features away from zero.
const FLOOR: f32 = 1e-4;

pub const REGISTRATION: Registration = Registration {
    name: "performer",
    summary: "positive random features (FAVOR+)",
    formula: "phi(x) = m^-1/2 (exp(Omega x^ - |x^|^2 / 2 - c) + 1e-4), x^ = x K^-1/4;  o_t = phi(q_t) S_t / phi(q_t).z_t",
    paper: "Performer (arXiv 2009.14794)",
    rope: true,
    seeding: "q and k through random features",
    options: &[
        OptionSpec {
            name: "features",
            kind: OptionKind::Integer { min: 1, max: 4096 },
            default: "null",
            help: "random features of a head (default: K ln K rounded down, as in performer-pytorch)",
        },
        Scale::OPTION,
    ],
    combine: Combine::ALL,
    build: |options, site, window| {
        let derived = (site.width as f64 * (site.width as f64).ln()) as usize;
        let kernel = Performer {
            site,
            features: options.integer("features", derived.max(1)),
            scale: Scale::added(options.flag("output_scale")),
        };
        Ok(kernel::mixer(kernel, site, window))
    },
};

struct Performer {
    site: Site,
    features: usize,
    scale: Scale,
}

impl Kernel for Performer {
    fn tensors(&self) -> Vec<NewTensor> {
        let shape = vec![self.features, self.site.width];
        vec![NewTensor { name: "omega", shape, initial: Initial::OrthogonalGaussian }]
    }

    fn features(&self) -> usize {
        self.features
    }

    fn eps(&self) -> f32 {
        1e-6
    }

    fn scale(&self) -> Scale {
        self.scale
    }

    fn map(&self, side: Side, x: &Var, bound: &Bound) -> Result<Var> {
        let x = scale(x, (self.site.width as f32).powf(-0.25), 0.0)?;
        let half = scale(&row_dot(&x, &x)?, -0.5, 0.0)?;
        let mut exponent = add(&linear(&x, bound.get("omega")?)?, &half)?;
        if side == Side::Query {
            exponent = add(&exponent, &scale(&row_max(&exponent)?, -1.0, 0.0)?)?;
        }
        let root = (self.features as f32).powf(-0.5);
        repeat_heads(&scale(&map(&exponent, Map::Exp)?, root, FLOOR * root)?, self.site.heads)
    }
}
