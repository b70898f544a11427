//! How new tensors start: a pure function of the recipe's seed and the tensor's name.

use crate::{Result, checkpoint};
use candle_core::Tensor;
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
    /// The same, and training leaves it so: a constant of the mechanism that calibration may set.
    Fixed(f32),
    /// Ones on the diagonal of the last two dimensions.
    Identity,
    /// 1 in the last column, 0 before it: a causal convolution that passes its input on.
    LastTap,
    /// Uniform in +-sqrt(6 / ((1 + slope^2) fan_in)), slope sqrt(5): torch's default of a linear layer.
    Kaiming {
        fan_in: usize,
    },
    /// Rows orthogonal in blocks of as many as there are columns, each of the length of a Gaussian vector (FAVOR+,
    /// arXiv 2009.14794). Such features stay as they are drawn.
    OrthogonalGaussian,
}

impl std::fmt::Display for Initial {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Initial::Constant(value) => write!(f, "all {value}"),
            Initial::Fixed(value) => write!(f, "all {value}, fixed"),
            Initial::LastTap => f.write_str("last tap 1"),
            Initial::Identity => f.write_str("identity"),
            Initial::Kaiming { .. } => f.write_str("Kaiming-uniform"),
            Initial::OrthogonalGaussian => f.write_str("orthogonal Gaussian, fixed"),
        }
    }
}

/// A generator for the thing called `name` under `seed`; names keep draws independent of order.
pub fn generator(seed: u64, name: &str) -> rand_chacha::ChaCha8Rng {
    let digest = sha2::Sha256::digest([&seed.to_le_bytes()[..], name.as_bytes()].concat());
    rand_chacha::ChaCha8Rng::from_seed(digest.into())
}

impl Initial {
    /// Whether a tensor that starts so is trained.
    pub fn learned(self) -> bool {
        !matches!(self, Initial::OrthogonalGaussian | Initial::Fixed(_))
    }

    /// The tensor `name` (full name, layer included) of this shape.
    pub fn tensor(self, name: &str, shape: &[usize], seed: u64) -> Result<Tensor> {
        let n: usize = shape.iter().product();
        let data = match self {
            Initial::Constant(value) | Initial::Fixed(value) => vec![value; n],
            Initial::Identity => {
                let (rows, cols) = (shape[shape.len() - 2], shape[shape.len() - 1]);
                (0..n).map(|i| if i / cols % rows == i % cols { 1.0 } else { 0.0 }).collect()
            }
            Initial::LastTap => {
                let taps = shape[shape.len() - 1];
                (0..n).map(|i| if i % taps == taps - 1 { 1.0 } else { 0.0 }).collect()
            }
            Initial::Kaiming { fan_in } => {
                let params = 1.0 / (fan_in.max(1) as f32).sqrt();
                let mut rng = generator(seed, name);
                (0..n).map(|_| (rng.random::<f32>() * 2.0 - 1.0) * params).collect()
            }
            Initial::OrthogonalGaussian => orthogonal_gaussian(n, shape[shape.len() - 1], &mut generator(seed, name)),
        };
        Ok(Tensor::from_vec(data, shape, &checkpoint::device())?)
    }
}

/// Rows of `width` elements, `n` elements in all.
fn orthogonal_gaussian(n: usize, width: usize, rng: &mut rand_chacha::ChaCha8Rng) -> Vec<f32> {
    // Box and Muller's method; 1 - u keeps the logarithm finite.
    let mut gaussian = || {
        let (radius, turn) = (1.0 - rng.random::<f64>(), rng.random::<f64>());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * turn).cos()
    };
    let dot = |x: &[f64], y: &[f64]| -> f64 { x.iter().zip(y).map(|(x, y)| x * y).sum() };
    let mut rows = Vec::with_capacity(n);
    let mut block: Vec<Vec<f64>> = vec![];
    while rows.len() < n {
        if block.len() == width {
            block.clear();
        }
        let mut row: Vec<f64> = (0..width).map(|_| gaussian()).collect();
        let length = dot(&row, &row).sqrt();
        // Twice, since the last rows of a block lose most of their length.
        for other in block.iter().chain(&block) {
            let along = dot(&row, other);
            row.iter_mut().zip(other).for_each(|(x, y)| *x -= along * y);
        }
        let left = dot(&row, &row).sqrt();
        row.iter_mut().for_each(|x| *x /= left);
        // The length before is as good as a fresh draw: it is independent of the direction.
        rows.extend(row.iter().map(|x| (x * length) as f32));
        block.push(row);
    }
    rows
}
