//! How new tensors start: a pure function of the recipe's seed and the tensor's name.

use crate::Result;
use candle_core::{Device, Tensor};
use rand::{RngExt, SeedableRng};
use sha2::Digest;

/// A tensor that a mixer adds to a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct NewTensor {
    pub name: &'static str,
    pub shape: Vec<usize>,
    pub initial: Initial,
}

/// Initial values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Initial {
    Constant(f32),
    /// Ones on the diagonal of the last two dimensions.
    Identity,
    /// 1 in the last column, 0 before it: a causal convolution that passes its input on.
    LastTap,
    /// Uniform in +-sqrt(6 / ((1 + slope^2) fan_in)), slope sqrt(5): torch's default of a linear layer.
    Kaiming {
        fan_in: usize,
    },
}

/// A generator for the thing called `name` under `seed`; names keep draws independent of order.
pub fn generator(seed: u64, name: &str) -> rand_chacha::ChaCha8Rng {
    let digest = sha2::Sha256::digest([&seed.to_le_bytes()[..], name.as_bytes()].concat());
    rand_chacha::ChaCha8Rng::from_seed(digest.into())
}

impl Initial {
    /// The tensor `name` (full name, layer included) of this shape.
    pub fn tensor(self, name: &str, shape: &[usize], seed: u64) -> Result<Tensor> {
        let n: usize = shape.iter().product();
        let data = match self {
            Initial::Constant(value) => vec![value; n],
            Initial::Identity => {
                let (rows, cols) = (shape[shape.len() - 2], shape[shape.len() - 1]);
                (0..n).map(|i| if i / cols % rows == i % cols { 1.0 } else { 0.0 }).collect()
            }
            Initial::LastTap => {
                let taps = shape[shape.len() - 1];
                (0..n).map(|i| if i % taps == taps - 1 { 1.0 } else { 0.0 }).collect()
            }
            Initial::Kaiming { fan_in } => {
                let bound = 1.0 / (fan_in.max(1) as f32).sqrt();
                let mut rng = generator(seed, name);
                (0..n).map(|_| (rng.random::<f32>() * 2.0 - 1.0) * bound).collect()
            }
        };
        Ok(Tensor::from_vec(data, shape, &Device::Cpu)?)
    }
}
