//! Parts that gated mechanisms share: short convolutions, low-rank gates, and what comes after the core operator.

use super::stateful_ops::StatefulOps;
use super::{
    CalibrationParam, CalibrationUpdate, Granularity, Initial, LayerDims, LayerInputs, NewTensor, OptionKind,
    OptionSpec, Params,
};
use crate::Result;
use crate::ops::Var;
use crate::ops::broadcast::{add, mul};
use crate::ops::linear::linear;
use crate::ops::norm::rms_norm_over;
use crate::ops::unary::{Unary, unary};
use candle_core::Tensor;

/// silu(1.2785) = 1: an output gate that begins as the identity.
const OPEN: f32 = 1.278_464_5;
/// sigmoid(4) = 0.98: a sigmoid cannot be the identity, but nearly.
const NEARLY_OPEN: f32 = 4.0;
/// Taps of a short convolution, as in flash-linear-attention.
const TAPS: usize = 4;

/// Short depthwise convolutions with SiLU over q, k and v (flash-linear-attention, Mamba). They start as the last tap
/// alone; the SiLU remains.
pub struct Convolutions {
    layer_dims: LayerDims,
    on: bool,
    /// Biases, zero at the start (Mamba).
    biased: bool,
}

impl Convolutions {
    /// The option that switches them.
    pub const fn option(default: &'static str) -> OptionSpec {
        OptionSpec {
            name: "convolution",
            kind: OptionKind::Flag,
            default,
            help: "short depthwise convolutions of 4 tokens with SiLU over q, k and v",
        }
    }

    pub fn new(layer_dims: LayerDims, on: bool) -> Self {
        Convolutions { layer_dims, on, biased: false }
    }

    /// The same with biases.
    pub fn biased(self) -> Self {
        Convolutions { biased: true, ..self }
    }

    /// The weight of one over `channels`.
    pub fn taps(name: &'static str, channels: usize) -> NewTensor {
        NewTensor { name, shape: vec![channels, TAPS], initial: Initial::LastTap }
    }

    /// Numbers that one over `channels` carries for one sequence.
    pub fn tail(channels: usize) -> usize {
        (TAPS - 1) * channels
    }

    pub fn tensors(&self) -> Vec<NewTensor> {
        let LayerDims { heads, kv_heads, width, .. } = self.layer_dims;
        if !self.on {
            return vec![];
        }
        let taps = |name, heads: usize| Self::taps(name, heads * width);
        let bias = |name, heads: usize| NewTensor { name, shape: vec![heads * width], initial: Initial::Constant(0.0) };
        let mut all =
            vec![taps("q_convolution", heads), taps("k_convolution", kv_heads), taps("v_convolution", kv_heads)];
        if self.biased {
            all.push(bias("q_convolution_bias", heads));
            all.push(bias("k_convolution_bias", kv_heads));
            all.push(bias("v_convolution_bias", kv_heads));
        }
        all
    }

    /// q, k, v as a mechanism without RoPE takes them.
    pub fn run(&self, heads: &LayerInputs, params: &Params, ops: &mut StatefulOps) -> Result<(Var, Var, Var)> {
        if !self.on {
            return Ok((heads.q.clone(), heads.k.clone(), heads.v.clone()));
        }
        let mut one = |name: &'static str, x: &Var| -> Result<Var> {
            let (b, t, h, k) = x.value().dims4()?;
            let flat = x.reshape(&[b, t, h * k])?;
            let bias = if self.biased { Some(params.get(&format!("{name}_bias"))?) } else { None };
            ops.convolution(name, &flat, params.get(name)?, bias, true)?.reshape(&[b, t, h, k])
        };
        Ok((one("q_convolution", &heads.q)?, one("k_convolution", &heads.k)?, one("v_convolution", &heads.v)?))
    }

    /// Numbers that they carry for one sequence.
    pub fn state_size(&self) -> usize {
        let LayerDims { heads, kv_heads, width, .. } = self.layer_dims;
        if self.on { Self::tail((heads + 2 * kv_heads) * width) } else { 0 }
    }
}

/// Log decays that no token and no training changes, one per head: the published ones times a time-scale, 1 unless
/// calibration finds a better one.
pub struct ConstantGate {
    decays: Vec<f32>,
}

impl ConstantGate {
    const TIME_SCALE: &'static str = "decay_scale";

    pub fn new(heads: usize, log_decay: impl Fn(usize) -> f32) -> Self {
        ConstantGate { decays: (0..heads).map(log_decay).collect() }
    }

    pub fn tensor(&self) -> NewTensor {
        NewTensor { name: Self::TIME_SCALE, shape: vec![self.decays.len(), 1], initial: Initial::Fixed(1.0) }
    }

    pub fn calibration_param(&self) -> CalibrationParam {
        let values = &[0.0, 0.015, 0.06, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0];
        CalibrationParam {
            tensor: Self::TIME_SCALE,
            granularity: Granularity::Head,
            values,
            update: CalibrationUpdate::Multiply,
        }
    }

    /// [B, T, H, 1]
    pub fn run(&self, heads: &LayerInputs, params: &Params) -> Result<Var> {
        let (batch, tokens) = heads.size()?;
        let row = Tensor::from_slice(&self.decays, (1, 1, self.decays.len(), 1), heads.q.value().device())?;
        let all = row.broadcast_as((batch, tokens, self.decays.len(), 1))?.contiguous()?;
        mul(&all.into(), params.get(Self::TIME_SCALE)?)
    }
}

/// A gate from the layer's input: W x + b, [B, T, N, n / N]; W starts at zero, so that only the bias counts.
pub fn gate_tensors(
    weight: &'static str,
    bias: &'static str,
    layer_dims: &LayerDims,
    n: usize,
    start: f32,
) -> [NewTensor; 2] {
    [
        NewTensor { name: weight, shape: vec![n, layer_dims.model_width], initial: Initial::Constant(0.0) },
        NewTensor { name: bias, shape: vec![n], initial: Initial::Constant(start) },
    ]
}

/// The gate of [`gate_tensors`] in `heads` heads.
pub fn gate(heads: &LayerInputs, params: &Params, weight: &str, bias: &str, states: usize) -> Result<Var> {
    let logits = add(&linear(heads.input()?, params.get(weight)?)?, params.get(bias)?)?;
    let (b, t, n) = logits.value().dims3()?;
    logits.reshape(&[b, t, states, n / states])
}

/// An output gate sigmoid(W x + b) per channel, nearly open at the start.
pub fn sigmoid_gate_tensors(layer_dims: &LayerDims) -> [NewTensor; 2] {
    gate_tensors("output_gate_weight", "output_gate_bias", layer_dims, layer_dims.heads * layer_dims.width, NEARLY_OPEN)
}

/// `o` [B, T, H, V] times the gate of [`sigmoid_gate_tensors`].
pub fn sigmoid_gate(o: &Var, heads: &LayerInputs, params: &Params) -> Result<Var> {
    let gate = gate(heads, params, "output_gate_weight", "output_gate_bias", o.value().dim(2)?)?;
    mul(o, &unary(&gate, Unary::Sigmoid)?)
}

/// A gate of low rank from the layer's input: W2 W1 x + b, `names` those of W1, W2, b; W2 starts at zero, so that only
/// the bias counts.
pub fn low_rank_tensors(
    names: [&'static str; 3],
    layer_dims: &LayerDims,
    rank: usize,
    n: usize,
    start: f32,
) -> [NewTensor; 3] {
    let down = Initial::Kaiming { fan_in: layer_dims.model_width };
    [
        NewTensor { name: names[0], shape: vec![rank, layer_dims.model_width], initial: down },
        NewTensor { name: names[1], shape: vec![n, rank], initial: Initial::Constant(0.0) },
        NewTensor { name: names[2], shape: vec![n], initial: Initial::Constant(start) },
    ]
}

/// The gate of [`low_rank_tensors`] of `x` [B, T, D] in `states` heads, [B, T, N, n / N].
pub fn low_rank_gate(x: &Var, params: &Params, names: [&str; 3], states: usize) -> Result<Var> {
    let low = linear(x, params.get(names[0])?)?;
    let logits = add(&linear(&low, params.get(names[1])?)?, params.get(names[2])?)?;
    let (b, t, n) = logits.value().dims3()?;
    logits.reshape(&[b, t, states, n / states])
}

/// The activation of an output gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputGate {
    None,
    /// x sigmoid(x)
    Swish,
    /// sigmoid(x), from a projection of this rank.
    LowRankSigmoid(usize),
}

const LOW_RANK: [&str; 3] = ["output_gate_down", "output_gate_up", "output_gate_bias"];

/// What follows a core operator: RMSNorm per head with a weight for every head and channel, times an output gate from
/// the layer's input. (The published weight is shared by the heads. One per head folds into the o projection just as
/// well, and lets calibration give each head its own scale.)
pub struct GatedNorm {
    layer_dims: LayerDims,
    gate: OutputGate,
    eps: f64,
}

impl GatedNorm {
    /// The option that switches the gate.
    pub const GATE: OptionSpec = OptionSpec {
        name: "output_gate",
        kind: OptionKind::Flag,
        default: "true",
        help: "multiply the normalised output by swish(W x + b), the identity at the start",
    };

    /// The weight, which scales every head's output.
    pub const SCALE: &'static str = "norm_weight";

    pub fn new(layer_dims: LayerDims, gated: bool, eps: f64) -> Self {
        GatedNorm { layer_dims, gate: if gated { OutputGate::Swish } else { OutputGate::None }, eps }
    }

    /// With a gate sigmoid(W2 W1 x + b) that starts at 1/2, where it is steepest, under a norm weight of 2.
    pub fn low_rank(layer_dims: LayerDims, rank: usize, eps: f64) -> Self {
        GatedNorm { layer_dims, gate: OutputGate::LowRankSigmoid(rank), eps }
    }

    pub fn tensors(&self) -> Vec<NewTensor> {
        let LayerDims { heads, width, .. } = self.layer_dims;
        let weight = if matches!(self.gate, OutputGate::LowRankSigmoid(_)) { 2.0 } else { 1.0 };
        let initial = Initial::Constant(weight);
        let mut all = vec![NewTensor { name: Self::SCALE, shape: vec![heads, width], initial }];
        let (layer_dims, n) = (&self.layer_dims, heads * width);
        match self.gate {
            OutputGate::None => {}
            OutputGate::Swish => {
                all.extend(gate_tensors("output_gate_weight", "output_gate_bias", layer_dims, n, OPEN))
            }
            OutputGate::LowRankSigmoid(rank) => all.extend(low_rank_tensors(LOW_RANK, layer_dims, rank, n, 0.0)),
        }
        all
    }

    pub fn run(&self, o: &Var, heads: &LayerInputs, params: &Params) -> Result<Var> {
        let o = rms_norm_over(o, 1, Some(params.get(Self::SCALE)?), self.eps)?;
        match self.gate {
            OutputGate::None => Ok(o),
            OutputGate::Swish => {
                let gate = gate(heads, params, "output_gate_weight", "output_gate_bias", self.layer_dims.heads)?;
                mul(&o, &unary(&gate, Unary::Silu)?)
            }
            OutputGate::LowRankSigmoid(_) => {
                let gate = low_rank_gate(heads.input()?, params, LOW_RANK, self.layer_dims.heads)?;
                mul(&o, &unary(&gate, Unary::Sigmoid)?)
            }
        }
    }
}
