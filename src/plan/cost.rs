//! Formulas: operations per token, and bytes of memory. Letters as in the crate's legend; `L` layers, `n` = `B T` tokens
//! of a batch. An operation is one multiplication or addition; f32 everywhere, so an element has 4 bytes.
//!
//! The formulas know mixers only by their tensors and the size of their state, so a new mixer needs none of its own:
//! each new weight is used once per token, each element of the fixed state is written and read once per token, and
//! each element of the growing part (a window's keys and values) is read once per query head that shares it.

use crate::arch::Spec;
use crate::mixer::Mixer;
use crate::model::{Student, Target, softmax};
use crate::recipe::{AttentionTransfer, Lora};

/// Bytes of an f32.
const F32: f64 = 4.0;
/// Bytes of the program itself: code, embedded assets in use, threads.
const PROGRAM: f64 = 60e6;
/// Logits that a thread holds at a time in the loss at the head.
const LOGITS: f64 = (1 << 20) as f64;

/// Sizes that the formulas share. All per token and layer unless they say otherwise; f64, since sizes from a header can
/// be anything.
pub(super) struct Costs {
    /// D
    width: f64,
    /// H K
    queries: f64,
    /// G K
    keys: f64,
    ffn: f64,
    /// H F, the features of all heads.
    features: f64,
    layers: f64,
    replaced: f64,
    /// Vocabulary times D.
    head: f64,
    vocab: f64,
    /// Weights of a block's linear layers.
    block: f64,
    /// All of the teacher's weights.
    parameters: f64,
    /// Of one layer's mixer.
    mixer_parameters: f64,
    /// Operations of a mixer, forward.
    mixer: f64,
    /// Operations of softmax attention, forward.
    softmax: f64,
    threads: f64,
}

/// A training stage's work: operations per token and bytes at its peak.
pub(super) struct Cost {
    pub per_token: f64,
    pub memory: f64,
}

impl Costs {
    /// Of training windows of `sequence` tokens, with `replaced` layers converted to `mixer`.
    pub fn new(spec: &Spec, mixer: &dyn Mixer, replaced: usize, sequence: usize, threads: usize) -> Costs {
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
        Costs {
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

    /// Attention transfer runs the teacher, and each mixer forward and backward on the teacher's inputs:
    ///
    /// ```text
    /// operations = L (2 block + softmax) + L' (3 mixer + 3 softmax if weights are compared)
    /// memory = teacher + 4 trained + one layer's: n (D + 8 H K + 3 G K + 5 H F), or the MLP's n (4 D + H K + 3 ffn)
    /// ```
    ///
    /// `4 trained`: weights, gradients, two moments. `5 H F`: two features, their gradients, one in between.
    pub fn attention_transfer(&self, stage: &AttentionTransfer, sequence: usize) -> Cost {
        let n = (stage.training.batch.size * sequence) as f64;
        let weights = if stage.loss.weights > 0.0 { 3.0 * self.softmax } else { 0.0 };
        let per_token = self.layers * (2.0 * self.block + self.softmax) + self.replaced * (3.0 * self.mixer + weights);
        let attention = self.width + 8.0 * self.queries + 3.0 * self.keys + 5.0 * self.features;
        let mlp = 4.0 * self.width + self.queries + 3.0 * self.ffn;
        let trained = 4.0 * self.replaced * self.mixer_parameters;
        Cost { per_token, memory: PROGRAM + F32 * (self.parameters + trained + n * attention.max(mlp)) }
    }

    /// Calibration runs the teacher, and each mixer twice for every value that it tries:
    ///
    /// ```text
    /// operations = L (2 block + softmax) + L' 2 values mixer
    /// memory = teacher + one layer's: n (D + 8 H K + 3 G K + 5 H F), or the MLP's n (4 D + H K + 3 ffn)
    /// ```
    pub fn calibrate(&self, tokens: u64, outline: &Student, layer: usize) -> Cost {
        let n = tokens as f64;
        let values: usize = outline
            .mixer(layer)
            .calibration_params()
            .iter()
            .map(|calibration_param| calibration_param.values.len() + 1)
            .sum();
        let tried = 2.0 * (values + 2) as f64;
        let per_token = self.layers * (2.0 * self.block + self.softmax) + self.replaced * tried * self.mixer;
        let attention = self.width + 8.0 * self.queries + 3.0 * self.keys + 5.0 * self.features;
        let mlp = 4.0 * self.width + self.queries + 3.0 * self.ffn;
        Cost { per_token, memory: PROGRAM + F32 * (self.parameters + n * attention.max(mlp)) }
    }

    /// LoRA runs the student forward and backward. Frozen weights get no gradient, so their backward pass costs as much
    /// as the forward one; what trains costs twice as much:
    ///
    /// ```text
    /// forward    = L 2 block + L' mixer + (L - L') softmax + 2 adapters + 2 V D
    /// operations = forward + (L 2 block + 2 mixers and softmaxes + 4 adapters + 2 V D) + forward again if recomputed
    /// memory = teacher + mixers + 4 trained + n (layer (L + 1) + 3 D) + logits in slices
    /// layer  = 4 D + 4 H K + 2 G K + 2 H F + 3 ffn
    /// ```
    ///
    /// A layer keeps the inputs of its products, its features and its MLP until the backward pass has come down to it;
    /// one more layer's worth is the gradients on the way. Recomputed, a layer keeps its input alone.
    pub fn lora(&self, stage: &Lora, spec: &Spec, sequence: usize) -> Cost {
        let n = (stage.training.batch.size * sequence) as f64;
        let adapters = adapter_parameters(stage, spec);
        let mixed = self.replaced * self.mixer + (self.layers - self.replaced) * self.softmax;
        let linear = 2.0 * self.layers * self.block;
        let forward = linear + mixed + 2.0 * adapters + 2.0 * self.head;
        let backward = linear + 2.0 * mixed + 4.0 * adapters + 2.0 * self.head;
        let again = if stage.recompute { forward } else { 0.0 };
        let layer = 4.0 * self.width + 4.0 * self.queries + 2.0 * self.keys + 2.0 * self.features + 3.0 * self.ffn;
        let kept = if stage.recompute { self.layers * self.width + 2.0 * layer } else { (self.layers + 1.0) * layer };
        let mixers = self.replaced * self.mixer_parameters;
        let trained = 4.0 * adapters + if stage.train_mixer { 3.0 * mixers } else { 0.0 };
        let held = self.parameters + mixers + trained + n * (kept + 3.0 * self.width) + self.slices(1.0);
        Cost { per_token: forward + backward + again, memory: PROGRAM + F32 * held }
    }

    /// An evaluation runs the teacher, the student, the student with its mixers silent, and beside a window its two
    /// branches alone and the teacher under a bare window. None of them costs more than the student:
    ///
    /// ```text
    /// operations = passes (L 2 block + 2 V D) + L softmax + (passes - 1) (L' mixer + (L - L') softmax)
    /// memory = teacher + mixers + n (passes D + the layer at hand: 4 D + 3 ffn) + logits in slices, two at a time
    /// ```
    pub fn evaluate(&self, windowed: bool, batch_tokens: usize) -> Cost {
        let passes = if windowed { 6.0 } else { 3.0 };
        let mixed = self.replaced * self.mixer + (self.layers - self.replaced) * self.softmax;
        let frozen = 2.0 * self.layers * self.block + 2.0 * self.head;
        let layer = 4.0 * self.width + (3.0 * self.ffn).max(4.0 * self.queries + 2.0 * self.features);
        let mixers = self.replaced * self.mixer_parameters;
        let held = self.parameters + mixers + batch_tokens as f64 * (passes * self.width + layer) + self.slices(2.0);
        Cost {
            per_token: passes * frozen + self.layers * self.softmax + (passes - 1.0) * mixed,
            memory: PROGRAM + F32 * held,
        }
    }

    /// Merging and exporting hold the weights twice: as they were and as they become, or as they are read back.
    pub fn twice(&self) -> f64 {
        PROGRAM + 2.0 * F32 * (self.parameters + self.replaced * self.mixer_parameters)
    }

    fn slices(&self, buffers: f64) -> f64 {
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

/// Weights of all layers' adapters.
fn adapter_parameters(stage: &Lora, spec: &Spec) -> f64 {
    let one = |layer, target: &Target| spec.linear(layer, *target).map_or(0, |shape| shape.iter().sum::<usize>());
    let of_layer = |layer| stage.lora.on.iter().map(|target| one(layer, target)).sum::<usize>() as f64;
    (0..spec.layers).map(of_layer).sum::<f64>() * stage.lora.rank as f64
}

/// Names and shapes of what a LoRA stage adds.
pub(super) fn adapter_tensors(stage: &Lora, spec: &Spec) -> Vec<(String, Vec<usize>)> {
    let adapter = stage.lora.adapter();
    let of = |layer| adapter.tensors(spec, layer).into_iter().map(|(name, shape, _)| (name, shape));
    (0..spec.layers).flat_map(of).collect()
}
