//! Falcon: attention and MLP side by side under one norm or two, q, k and v joined for each key-value head, of which
//! the first models have a single one.

use super::common::{ABSENT, Absent, KEYS, Keys, UNGATED, activation, biases, decoder, refuse_flag};
use super::fields::Fields;
use super::names::{Arrangement, Names, NormAt, Part, Stored, Target, whole};
use super::ropes::{WHOLE, everywhere};
use super::spec::{Layout, NormKind};
use super::{Family, Spec};
use crate::error::Result;
use Part::{Bias, Norm, NormBias, Weight};
use Target::{Down, K, O, Q, Up, V};

pub(super) const FAMILY: Family = Family {
    name: "falcon",
    models: "Falcon 7B, 40B, 180B and Falcon 2 11B",
    model_types: &["falcon"],
    supported: &["one, some or all key-value heads", "parallel blocks under one norm or two, and sequential ones"],
    refused: &["`alibi` (Falcon-RW): positions that are no part of q and k", "quantised weights"],
    spec,
};

const fn grouped(name: &'static str, parts: &'static [Part]) -> Stored {
    Stored { name, parts, arrangement: Arrangement::Grouped }
}

const LINEAR: &[Stored] = &[
    grouped("transformer.h.{}.self_attention.query_key_value.weight", &[Weight(Q), Weight(K), Weight(V)]),
    grouped("transformer.h.{}.self_attention.query_key_value.bias", &[Bias(Q), Bias(K), Bias(V)]),
    whole("transformer.h.{}.self_attention.dense.weight", &[Weight(O)]),
    whole("transformer.h.{}.self_attention.dense.bias", &[Bias(O)]),
    whole("transformer.h.{}.mlp.dense_h_to_4h.weight", &[Weight(Up)]),
    whole("transformer.h.{}.mlp.dense_h_to_4h.bias", &[Bias(Up)]),
    whole("transformer.h.{}.mlp.dense_4h_to_h.weight", &[Weight(Down)]),
    whole("transformer.h.{}.mlp.dense_4h_to_h.bias", &[Bias(Down)]),
];

/// With one norm, or with two in sequence.
const NAMES: Names = Names {
    base: "transformer.",
    before: &[whole("transformer.word_embeddings.weight", &[Part::Embed])],
    block: &[
        &[
            whole("transformer.h.{}.input_layernorm.weight", &[Norm(NormAt::Attention)]),
            whole("transformer.h.{}.input_layernorm.bias", &[NormBias(NormAt::Attention)]),
            whole("transformer.h.{}.post_attention_layernorm.weight", &[Norm(NormAt::Mlp)]),
            whole("transformer.h.{}.post_attention_layernorm.bias", &[NormBias(NormAt::Mlp)]),
        ],
        LINEAR,
    ],
    after: &[
        whole("transformer.ln_f.weight", &[Norm(NormAt::Final)]),
        whole("transformer.ln_f.bias", &[NormBias(NormAt::Final)]),
        whole("lm_head.weight", &[Part::Head]),
    ],
    attention: "transformer.h.{}.self_attention.",
    ignored: &[".rotary_emb.inv_freq"],
};

/// With two norms side by side.
const TWO_NORMS: Names = Names {
    block: &[
        &[
            whole("transformer.h.{}.ln_attn.weight", &[Norm(NormAt::Attention)]),
            whole("transformer.h.{}.ln_attn.bias", &[NormBias(NormAt::Attention)]),
            whole("transformer.h.{}.ln_mlp.weight", &[Norm(NormAt::Mlp)]),
            whole("transformer.h.{}.ln_mlp.bias", &[NormBias(NormAt::Mlp)]),
        ],
        LINEAR,
    ],
    ..NAMES
};

/// The first models do not say how long their texts may be.
const ABSENT_KEYS: Absent = Absent { eps: 1e-5, tied: true, ffn: 4, context: 2048, ..ABSENT };

fn spec(fields: &Fields) -> Result<Spec> {
    let keys = Keys { kv_heads: "num_kv_heads", ffn: "ffn_hidden_size", eps: "layer_norm_epsilon", ..KEYS };
    let mut spec = decoder(fields, FAMILY.name, NAMES, &keys, &ABSENT_KEYS)?;
    refuse_flag(fields, "alibi", "positions that are added to the scores are not supported")?;
    let new = fields.flag("new_decoder_architecture")?;
    if !new {
        // Only the new architecture reads `num_kv_heads`.
        spec.kv_heads = if fields.flag_or("multi_query", true)? { 1 } else { spec.heads };
    }
    let norms = fields.optional_size("num_ln_in_parallel_attn", 2)?.unwrap_or(if new { 2 } else { 1 });
    spec.layout = match (new || fields.flag_or("parallel_attn", true)?, norms) {
        (false, _) => Layout::Pre,
        (true, 2) => Layout::Parallel,
        (true, _) => Layout::ParallelShared,
    };
    if spec.layout == Layout::Parallel {
        spec.names = TWO_NORMS;
    }
    spec.norm.kind = NormKind::Layer;
    spec.activation = activation(fields, "activation", "gelu")?;
    spec.gated = false;
    biases(&mut spec, fields, "bias", false, &UNGATED)?;
    everywhere(&mut spec, fields, &WHOLE)?;
    Ok(spec)
}
