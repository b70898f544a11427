//! Inverse frequencies of rotary positions, and their scalings for long texts, as in transformers' modeling_rope_utils.py.

use std::f64::consts::TAU;

use crate::arch::{Rope, Scaling};
use crate::ops::rope::Rotary;

/// The frequencies for a text of `tokens` tokens: those of most kinds are the same for any.
///
/// `dynamic` and `longrope` depend on the length. In a text that grows, tokens that were read keep the angles they had
/// then, as with a cache in transformers.
pub(super) fn rotary(rope: &Rope, tokens: usize) -> Rotary {
    let width = rope.width as f64;
    let pairs = rope.width / 2;
    let plain = |base: f64| move |i: usize| base.powf(-2.0 * i as f64 / width);
    let inverse = plain(rope.theta);
    match &rope.scaling {
        Scaling::None => Rotary::of((0..pairs).map(inverse), 1.0),
        Scaling::Linear { factor } => Rotary::of((0..pairs).map(|i| inverse(i) / factor), 1.0),
        Scaling::Dynamic { factor, context } => {
            let context = *context as f64;
            let longer = factor * (tokens as f64).max(context) / context - (factor - 1.0);
            Rotary::of((0..pairs).map(plain(rope.theta * longer.powf(width / (width - 2.0)))), 1.0)
        }
        Scaling::Llama3 { factor, low, high, context } => {
            let of = |i: usize| {
                let f = inverse(i);
                let turns = *context as f64 * f / TAU;
                // Fast pairs stay, slow ones are slowed down, and those between are between.
                let share = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - share) * f / factor + share * f
            };
            Rotary::of((0..pairs).map(of), 1.0)
        }
        Scaling::Yarn { factor, context, fast, slow, truncate, attention } => {
            // The pair that turns so many times within the context.
            let pair = |turns: f64| width * (*context as f64 / (turns * TAU)).ln() / (2.0 * rope.theta.ln());
            let (mut low, mut high) = (pair(*fast), pair(*slow));
            if *truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            let (low, mut high) = (low.max(0.0), high.min(width - 1.0));
            if low == high {
                high += 0.001;
            }
            let of = |i: usize| {
                let slowed = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                inverse(i) * (slowed / factor + 1.0 - slowed)
            };
            Rotary::of((0..pairs).map(of), *attention)
        }
        Scaling::Long { short, long, context, attention } => {
            let factors = if tokens > *context { long } else { short };
            Rotary::of((0..pairs).map(|i| inverse(i) / factors[i]), *attention)
        }
    }
}
