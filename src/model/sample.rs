//! The next token from its logits.

use crate::Result;
use crate::checkpoint::values;
use crate::mixer::initial::generator;
use candle_core::Tensor;
use rand::RngExt;

/// Greedy at temperature 0, else from the smallest set of tokens that holds `top_p` of the probability.
pub struct Sampler {
    temperature: f32,
    top_p: f32,
    rng: rand_chacha::ChaCha8Rng,
}

impl Sampler {
    pub fn new(temperature: f32, top_p: f32, seed: u64) -> Self {
        Sampler { temperature, top_p, rng: generator(seed, "sample") }
    }

    pub fn next(&mut self, logits: &Tensor) -> Result<u32> {
        let logits = values(logits)?;
        let mut order: Vec<usize> = (0..logits.len()).collect();
        let best = order.iter().copied().max_by(|&i, &j| logits[i].total_cmp(&logits[j]).then(j.cmp(&i)));
        let best = best.unwrap_or(0);
        if self.temperature <= 0.0 {
            return Ok(best as u32);
        }
        order.sort_by(|&i, &j| logits[j].total_cmp(&logits[i]).then(i.cmp(&j)));
        let weight = |i: usize| ((logits[i] - logits[best]) / self.temperature).exp();
        let total: f32 = order.iter().map(|&i| weight(i)).sum();
        let mut kept = 0.0;
        let mut set = vec![];
        for &i in &order {
            kept += weight(i);
            set.push(i);
            if kept >= self.top_p * total {
                break;
            }
        }
        let mut at = self.rng.random::<f32>() * kept;
        for &i in &set {
            at -= weight(i);
            if at <= 0.0 {
                return Ok(i as u32);
            }
        }
        Ok(*set.last().unwrap_or(&best) as u32)
    }
}
