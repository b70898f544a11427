//! A decoder as plain data, and what follows from it: which weights there are, and where they lie.

use serde::Serialize;

use super::names::{Arrangement, Names, NormAt, Part, Stored, Target};
use crate::mixer::LayerDims;

/// A decoder as plain data. Letters as in the crate's legend.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spec {
    /// Name of the [`super::Family`].
    pub family: &'static str,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// `D`, width of the residual stream.
    pub width: usize,
    /// Number of blocks.
    pub layers: usize,
    /// `H`, query heads.
    pub heads: usize,
    /// `G`, key-value heads; divides `H`.
    pub kv_heads: usize,
    /// `K`, width of a head; need not be `D / H`.
    pub head_width: usize,
    /// Width of the MLP's hidden layer.
    pub ffn: usize,
    /// Tokens that the teacher was trained to see.
    pub context: usize,
    pub norm: Norm,
    pub layout: Layout,
    /// RMSNorm of queries and keys, before RoPE.
    pub qk_norm: Option<QkNorm>,
    /// Linear layers with a bias.
    pub biases: Vec<Target>,
    /// Scores of attention are capped: c tanh(s / c).
    pub score_cap: Option<f64>,
    /// The rotary positions that layers choose from.
    pub ropes: Vec<Rope>,
    /// What differs between the blocks, one for each.
    pub blocks: Vec<Block>,
    /// Positions that are learned and added to the embedding.
    pub positions: Option<Learned>,
    pub activation: Activation,
    /// Whether the MLP is down(act(gate(x)) up(x)) rather than down(act(up(x))).
    pub gated: bool,
    pub experts: Option<Experts>,
    pub multipliers: Multipliers,
    /// Logits are capped: c tanh(l / c).
    pub logit_cap: Option<f64>,
    /// Whether the head shares the embedding's weights.
    pub tied: bool,
    /// Token that starts a text.
    pub bos: Option<u32>,
    /// Tokens that end a text; `config.json`'s first.
    pub eos: Vec<u32>,
    pub names: Names,
    /// The files lack the prefix of `names`: they were saved without a head.
    pub bare: bool,
}

/// The norm of a block's inputs and of the end.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Norm {
    pub kind: NormKind,
    /// Added to the mean square, or to the variance.
    pub eps: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormKind {
    /// RMSNorm times its weight.
    Rms,
    /// RMSNorm times one plus its weight.
    RmsPlusOne,
    /// LayerNorm times its weight, plus its bias.
    Layer,
}

/// Where a block has norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// x + attention(n(x)), then x + mlp(n(x))
    Pre,
    /// x + n(attention(x)), then x + n(mlp(x))
    Post,
    /// x + n(attention(n(x))), then x + n(mlp(n(x)))
    Sandwich,
    /// x + attention(n1(x)) + mlp(n2(x))
    Parallel,
    /// The same with one norm for both.
    ParallelShared,
}

/// What a norm of queries and keys takes the mean over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum QkNorm {
    /// Each head by itself, one weight `[K]` for all.
    Head,
    /// All heads together, a weight `[H K]`, and `[G K]` for keys.
    Full,
}

/// Rotary positions on the first channels of a head, halves turned against each other.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rope {
    /// Base of the frequencies: pair `i` turns by `theta^(-2i/width)` per token.
    pub theta: f64,
    /// Channels that turn.
    pub width: usize,
    pub scaling: Scaling,
}

/// How frequencies were changed for texts longer than those of the pretraining, as transformers defines it.
/// `context` is the length before the change.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Scaling {
    None,
    Linear {
        factor: f64,
    },
    /// NTK: the base grows with the length of the text beyond `context`.
    Dynamic {
        factor: f64,
        context: usize,
    },
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        context: usize,
    },
    /// `attention` multiplies sines and cosines.
    Yarn {
        factor: f64,
        context: usize,
        fast: f64,
        slow: f64,
        truncate: bool,
        attention: f64,
    },
    /// A factor for every pair; `long` for texts of more than `context` tokens.
    Long {
        short: Vec<f64>,
        long: Vec<f64>,
        context: usize,
        attention: f64,
    },
}

/// What differs between blocks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Block {
    /// Scores of attention are q.k times this.
    pub scale: f64,
    /// Keys that a query sees, its own included; none: all.
    pub window: Option<usize>,
    /// Which of the model's rotary positions; none: no positions at all.
    pub rope: Option<usize>,
    /// Whether the MLP is one of experts.
    pub experts: bool,
}

/// Learned positions: position p is row p + offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Learned {
    pub rows: usize,
    pub offset: usize,
}

impl Learned {
    /// Longest text that has a row for each of its tokens.
    pub fn tokens(self) -> usize {
        self.rows.saturating_sub(self.offset)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    Silu,
    /// x Phi(x), by the error function
    Gelu,
    /// Its approximation by a tanh
    GeluTanh,
    Relu,
}

/// A mixture of experts: of `count` MLPs each token uses those that a router gives the largest weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Experts {
    pub count: usize,
    pub per_token: usize,
    pub ffn: usize,
    /// Whether the weights of the chosen sum to one.
    pub normalised: bool,
}

/// Factors at fixed places.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Multipliers {
    /// Of the embedding.
    pub embedding: f64,
    /// Of what attention and MLP add.
    pub residual: f64,
    /// Of the logits.
    pub logits: f64,
}

/// A tensor of the files: its name, its shape, and the weights that it holds.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTensor {
    pub name: String,
    pub shape: Vec<usize>,
    /// `None` before and after the blocks.
    pub layer: Option<usize>,
    /// With their shapes in the decoder.
    pub parts: Vec<(Part, Vec<usize>)>,
    pub arrangement: Arrangement,
}

impl Spec {
    /// What the mixer of a layer is told.
    pub fn layer_dims(&self, layer: usize) -> LayerDims {
        LayerDims {
            heads: self.heads,
            kv_heads: self.kv_heads,
            width: self.head_width,
            model_width: self.width,
            layer,
            layers: self.layers,
        }
    }

    /// The experts of a layer, where it has them.
    pub fn experts_of(&self, layer: usize) -> Option<Experts> {
        self.experts.filter(|_| self.blocks[layer].experts)
    }

    /// [out, in] of a linear layer; `None` where a block has none.
    pub fn linear(&self, layer: usize, target: Target) -> Option<[usize; 2]> {
        let (d, q, kv) = (self.width, self.heads * self.head_width, self.kv_heads * self.head_width);
        match target {
            Target::Q => Some([q, d]),
            Target::K | Target::V => Some([kv, d]),
            Target::O => Some([d, q]),
            _ if self.experts_of(layer).is_some() => None,
            _ => self.mlp(target, self.ffn),
        }
    }

    fn mlp(&self, target: Target, ffn: usize) -> Option<[usize; 2]> {
        match target {
            Target::Gate => self.gated.then_some([ffn, self.width]),
            Target::Up => Some([ffn, self.width]),
            Target::Down => Some([self.width, ffn]),
            _ => None,
        }
    }

    /// Shape of a weight of the decoder; `None` where it has none. Those outside the blocks are of any layer.
    pub fn shape(&self, layer: usize, part: Part) -> Option<Vec<usize>> {
        let d = self.width;
        match part {
            Part::Embed => Some(vec![self.vocab, d]),
            Part::Positions => self.positions.map(|p| vec![p.rows, d]),
            Part::Head => (!self.tied).then(|| vec![self.vocab, d]),
            Part::Weight(target) => self.linear(layer, target).map(Vec::from),
            Part::Bias(target) => {
                self.linear(layer, target).filter(|_| self.biases.contains(&target)).map(|[out, _]| vec![out])
            }
            Part::Norm(at) => self.norm_width(at).map(|n| vec![n]),
            Part::NormBias(at) => {
                let biased = self.norm.kind == NormKind::Layer && !matches!(at, NormAt::Q | NormAt::K);
                self.norm_width(at).filter(|_| biased).map(|n| vec![n])
            }
            Part::Router => self.experts_of(layer).map(|e| vec![e.count, d]),
            Part::Expert(target, _) => self.experts_of(layer).and_then(|e| self.mlp(target, e.ffn)).map(Vec::from),
        }
    }

    /// Elements of a norm's weight; `None` where the decoder has no such norm.
    pub fn norm_width(&self, at: NormAt) -> Option<usize> {
        let heads = |n: usize| self.qk_norm.map(|kind| if kind == QkNorm::Full { n } else { 1 } * self.head_width);
        let there = match at {
            NormAt::Q => return heads(self.heads),
            NormAt::K => return heads(self.kv_heads),
            NormAt::Final => true,
            NormAt::Attention => self.layout != Layout::Post,
            NormAt::Mlp => matches!(self.layout, Layout::Pre | Layout::Sandwich | Layout::Parallel),
            NormAt::AfterAttention | NormAt::AfterMlp => matches!(self.layout, Layout::Post | Layout::Sandwich),
        };
        there.then_some(self.width)
    }

    /// Every tensor of the teacher, in the order in which a forward pass needs them. A tied head is not among them.
    pub fn stored(&self) -> Vec<StoredTensor> {
        let Names { before, block, after, .. } = self.names;
        let mut all = vec![];
        before.iter().for_each(|stored| self.expand(stored, None, &mut all));
        for layer in 0..self.layers {
            block.iter().copied().flatten().for_each(|stored| self.expand(stored, Some(layer), &mut all));
        }
        after.iter().for_each(|stored| self.expand(stored, None, &mut all));
        all
    }

    /// Adds the tensors that a template stands for: none where the model has no such weights, one for each expert.
    fn expand(&self, stored: &Stored, layer: Option<usize>, all: &mut Vec<StoredTensor>) {
        let at = layer.unwrap_or(0);
        let copies = match stored.parts {
            [Part::Expert(..), ..] => self.experts_of(at).map_or(0, |e| e.count),
            _ => 1,
        };
        for copy in 0..copies {
            let part = |part: &Part| match *part {
                Part::Expert(target, _) => Part::Expert(target, copy),
                other => other,
            };
            let parts = stored.parts.iter().map(part);
            let Some(parts) = parts.map(|p| Some((p, self.shape(at, p)?))).collect::<Option<Vec<_>>>() else { return };
            let rows = parts.iter().map(|(_, shape)| shape[0]).sum();
            let shape = match (stored.arrangement, parts[0].1.get(1)) {
                (_, None) => vec![rows],
                (Arrangement::Transposed, Some(&columns)) => vec![columns, rows],
                (_, Some(&columns)) => vec![rows, columns],
            };
            let name = self.name(stored.name, at).replace("{e}", &copy.to_string());
            all.push(StoredTensor { name, shape, layer, parts, arrangement: stored.arrangement });
        }
    }

    /// The name that `template` has in `layer`.
    pub fn name(&self, template: &str, layer: usize) -> String {
        let template = if self.bare { template.strip_prefix(self.names.base).unwrap_or(template) } else { template };
        template.replace("{}", &layer.to_string())
    }

    /// Name of the tensor that holds a weight of `layer`, and how many weights that tensor holds; `None`: there is no
    /// such weight.
    pub fn place(&self, layer: usize, part: Part) -> Option<(String, usize)> {
        self.shape(layer, part)?;
        let Names { before, block, after, .. } = self.names;
        let mut all = before.iter().chain(block.iter().copied().flatten()).chain(after);
        all.find(|stored| stored.parts.contains(&part)).map(|s| (self.name(s.name, layer), s.parts.len()))
    }

    /// What the names of a layer's mixer tensors begin with: they lie beside the projections.
    pub fn mixer_prefix(&self, layer: usize) -> String {
        self.name(self.names.attention, layer) + "mixer."
    }

    /// Name and shape of every tensor of [`Spec::stored`].
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        self.stored().into_iter().map(|stored| (stored.name, stored.shape)).collect()
    }

    /// Number of the teacher's weights; a tied head counts once.
    pub fn parameters(&self) -> usize {
        self.stored().iter().map(|stored| stored.shape.iter().product::<usize>()).sum()
    }
}
