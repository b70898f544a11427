//! Where the weights of a decoder lie in the files: templates of names, each with the weights that the tensor holds.
//!
//! A template is used where the model has the weights that it names, so that one table serves a family with all of its
//! switches. Reading cuts tensors that hold several weights, exporting joins them again.

use serde::Serialize;

/// A linear layer of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Target {
    pub const ALL: [Target; 7] = [Target::Q, Target::K, Target::V, Target::O, Target::Gate, Target::Up, Target::Down];

    /// As recipes write it.
    pub fn word(self) -> &'static str {
        ["q", "k", "v", "o", "gate", "up", "down"][self as usize]
    }

    pub fn from_word(word: &str) -> Option<Target> {
        Self::ALL.into_iter().find(|t| t.word() == word)
    }
}

/// Where a norm stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NormAt {
    /// Before attention.
    Attention,
    /// Of what attention adds.
    AfterAttention,
    /// Before the MLP.
    Mlp,
    /// Of what the MLP adds.
    AfterMlp,
    /// Of queries, of keys.
    Q,
    K,
    /// Before the head.
    Final,
}

/// A weight of the decoder, whatever tensor holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// `[vocab, D]`
    Embed,
    /// [rows, D]
    Positions,
    /// `[vocab, D]`, absent when tied
    Head,
    /// [out, in]
    Weight(Target),
    /// `[out]`
    Bias(Target),
    Norm(NormAt),
    NormBias(NormAt),
    /// [experts, D]
    Router,
    /// [out, in] of one expert. In templates the first stands for all, and `{e}` in the name for its number.
    Expert(Target, usize),
}

/// How the weights of a tensor lie in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrangement {
    /// [out, in], one after the other.
    Rows,
    /// [in, out], side by side (GPT-2's Conv1D).
    Transposed,
    /// [out, in], for each key-value head in turn the rows of its queries, key and value.
    Grouped,
}

/// A template of tensors: `{}` in its name stands for the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Stored {
    pub name: &'static str,
    pub parts: &'static [Part],
    pub arrangement: Arrangement,
}

/// All templates of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Names {
    /// What all names but the head's begin with, unless the files were saved without a head.
    pub base: &'static str,
    pub before: &'static [Stored],
    /// Of every block, in the order of a forward pass.
    pub block: &'static [&'static [Stored]],
    pub after: &'static [Stored],
    /// The path of a block's attention.
    pub attention: &'static str,
    /// Ends of names that older files have and nothing needs.
    pub ignored: &'static [&'static str],
}

/// A tensor that is one weight as it is.
pub(super) const fn whole(name: &'static str, part: &'static [Part; 1]) -> Stored {
    Stored { name, parts: part, arrangement: Arrangement::Rows }
}

/// Weights one below the other.
pub(super) const fn rows(name: &'static str, parts: &'static [Part]) -> Stored {
    Stored { name, parts, arrangement: Arrangement::Rows }
}

use Part::{Bias, Embed, Expert, Head, Norm, NormBias, Router, Weight};
use Target::{Down, Gate, K, O, Q, Up, V};

/// The names that began with Llama and that most families have.
pub(super) const LLAMA: Names = Names {
    base: "model.",
    before: &[whole("model.embed_tokens.weight", &[Embed])],
    block: &[NORM_BEFORE, ATTENTION, NORM_BETWEEN, MLP],
    after: AFTER,
    attention: "model.layers.{}.self_attn.",
    ignored: &[".rotary_emb.inv_freq"],
};

/// The same where the norm called `post_attention` is indeed of what attention adds.
pub(super) const SANDWICH: Names = Names {
    block: &[
        NORM_BEFORE,
        ATTENTION,
        &[
            whole("model.layers.{}.post_attention_layernorm.weight", &[Norm(NormAt::AfterAttention)]),
            whole("model.layers.{}.pre_feedforward_layernorm.weight", &[Norm(NormAt::Mlp)]),
        ],
        MLP,
        &[whole("model.layers.{}.post_feedforward_layernorm.weight", &[Norm(NormAt::AfterMlp)])],
    ],
    ..LLAMA
};

pub(super) const AFTER: &[Stored] = &[
    whole("model.norm.weight", &[Norm(NormAt::Final)]),
    whole("model.norm.bias", &[NormBias(NormAt::Final)]),
    whole("lm_head.weight", &[Head]),
];

pub(super) const NORM_BEFORE: &[Stored] = &[
    whole("model.layers.{}.input_layernorm.weight", &[Norm(NormAt::Attention)]),
    whole("model.layers.{}.input_layernorm.bias", &[NormBias(NormAt::Attention)]),
];

pub(super) const NORM_BETWEEN: &[Stored] = &[
    whole("model.layers.{}.post_attention_layernorm.weight", &[Norm(NormAt::Mlp)]),
    whole("model.layers.{}.post_attention_layernorm.bias", &[NormBias(NormAt::Mlp)]),
];

pub(super) const ATTENTION: &[Stored] = &[
    whole("model.layers.{}.self_attn.q_proj.weight", &[Weight(Q)]),
    whole("model.layers.{}.self_attn.q_proj.bias", &[Bias(Q)]),
    whole("model.layers.{}.self_attn.k_proj.weight", &[Weight(K)]),
    whole("model.layers.{}.self_attn.k_proj.bias", &[Bias(K)]),
    whole("model.layers.{}.self_attn.v_proj.weight", &[Weight(V)]),
    whole("model.layers.{}.self_attn.v_proj.bias", &[Bias(V)]),
    whole("model.layers.{}.self_attn.q_norm.weight", &[Norm(NormAt::Q)]),
    whole("model.layers.{}.self_attn.k_norm.weight", &[Norm(NormAt::K)]),
    whole("model.layers.{}.self_attn.o_proj.weight", &[Weight(O)]),
    whole("model.layers.{}.self_attn.o_proj.bias", &[Bias(O)]),
];

pub(super) const MLP: &[Stored] = &[
    whole("model.layers.{}.mlp.gate_proj.weight", &[Weight(Gate)]),
    whole("model.layers.{}.mlp.gate_proj.bias", &[Bias(Gate)]),
    whole("model.layers.{}.mlp.up_proj.weight", &[Weight(Up)]),
    whole("model.layers.{}.mlp.up_proj.bias", &[Bias(Up)]),
    whole("model.layers.{}.mlp.down_proj.weight", &[Weight(Down)]),
    whole("model.layers.{}.mlp.down_proj.bias", &[Bias(Down)]),
    whole("model.layers.{}.mlp.gate.weight", &[Router]),
    whole("model.layers.{}.mlp.experts.{e}.gate_proj.weight", &[Expert(Gate, 0)]),
    whole("model.layers.{}.mlp.experts.{e}.up_proj.weight", &[Expert(Up, 0)]),
    whole("model.layers.{}.mlp.experts.{e}.down_proj.weight", &[Expert(Down, 0)]),
];
