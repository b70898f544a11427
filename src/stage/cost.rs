//! Formulas: operations per token, and bytes of memory. Letters as in the crate's legend; `L` layers, `n` = `B T` tokens
//! of a batch. An operation is one multiplication or addition; f32 everywhere, so an element has 4 bytes.
//!
//! The formulas know mixers only by their tensors and the size of their state, so a new mixer needs none of its own:
//! each new weight is used once per token, each element of the fixed state is written and read once per token, and
//! each element of the growing part (a window's keys and values) is read once per query head that shares it.

use crate::arch::Spec;
use crate::mixer::Mixer;
use crate::model::{Target, softmax};

/// Bytes of an f32.
pub(super) const F32: f64 = 4.0;
/// Bytes of the program itself: code, embedded assets in use, threads.
pub(super) const PROGRAM: f64 = 60e6;
/// Logits that a thread holds at a time in the loss at the head.
const LOGITS: f64 = (1 << 20) as f64;

/// Sizes that the formulas of all stages share. All per token and layer unless they say otherwise; f64, since sizes from a header can
/// be anything.
pub(crate) struct Sizes {
    /// D
    pub width: f64,
    /// H K
    pub queries: f64,
    /// G K
    pub keys: f64,
    pub ffn: f64,
    /// H F, the features of all heads.
    pub features: f64,
    pub layers: f64,
    pub replaced: f64,
    /// Vocabulary times D.
    pub head: f64,
    pub vocab: f64,
    /// Weights of a block's linear layers.
    pub block: f64,
    /// All of the teacher's weights.
    pub parameters: f64,
    /// Of one layer's mixer.
    pub mixer_parameters: f64,
    /// Operations of a mixer, forward.
    pub mixer: f64,
    /// Operations of softmax attention, forward.
    pub softmax: f64,
    pub threads: f64,
}

/// Operations per token, and bytes of memory at the peak.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    pub per_token: f64,
    pub memory: f64,
}

impl Sizes {
    /// Of training windows of `sequence` tokens, with `replaced` layers converted to `mixer`.
    pub fn new(spec: &Spec, mixer: &dyn Mixer, replaced: usize, sequence: usize, threads: usize) -> Sizes {
        let float = |n: usize| n as f64;
        let mixer_parameters: f64 =
            mixer.tensors().iter().map(|t| t.shape.iter().map(|&n| n as f64).product::<f64>()).sum();
        let fixed = float(mixer.state_bytes(0)) / F32;
        let growing = float(mixer.state_bytes(sequence)) / F32 - fixed;
        let shared = float(spec.heads) / float(spec.kv_heads);
        // A query sees half of the keys on average.
        let keys_and_values =
            (0..spec.layers).map(|layer| float(softmax(spec, layer).state_bytes(sequence))).sum::<f64>()
                / float(spec.layers)
                / F32
                / 2.0;
        let head = float(spec.vocab) * float(spec.width);
        Sizes {
            width: float(spec.width),
            queries: float(spec.heads) * float(spec.head_width),
            keys: float(spec.kv_heads) * float(spec.head_width),
            ffn: float(spec.ffn),
            features: fixed / (float(spec.head_width) + 1.0),
            layers: float(spec.layers),
            replaced: float(replaced),
            head,
            vocab: float(spec.vocab),
            block: (0..spec.layers).map(|layer| block(spec, layer)).sum::<f64>() / float(spec.layers),
            parameters: float(spec.parameters()),
            mixer_parameters,
            mixer: 2.0 * mixer_parameters + 4.0 * fixed + 2.0 * shared * growing,
            softmax: 2.0 * shared * keys_and_values,
            threads: float(threads),
        }
    }

    /// Bytes of logits in slices, over `buffers` of them, by thread.
    pub fn slices(&self, buffers: f64) -> f64 {
        buffers * self.threads * LOGITS.max(16.0 * self.vocab)
    }
}

/// Weights that a token meets in the linear layers of a block: of experts those that it uses.
fn block(spec: &Spec, layer: usize) -> f64 {
    let own =
        |target: &Target| spec.linear(layer, *target).map(|shape| shape.map(|n| n as f64).iter().product::<f64>());
    let experts = spec.experts_of(layer).map_or(0.0, |experts| {
        let of_one = if spec.gated { 3.0 } else { 2.0 } * experts.ffn as f64;
        spec.width as f64 * (experts.count as f64 + experts.per_token as f64 * of_one)
    });
    Target::ALL.iter().filter_map(own).sum::<f64>() + experts
}

/// Merging and exporting hold the weights twice: as they were and as they become, or as they are read back.
pub(crate) fn twice(s: &Sizes) -> f64 {
    PROGRAM + 2.0 * F32 * (s.parameters + s.replaced * s.mixer_parameters)
}
