//! GPT-NeoX and Pythia: attention and MLP side by side, rotary positions on a part of the head, LayerNorm, biases, and
//! q, k and v joined head by head.

use super::common::{ABSENT, Absent, KEYS, Keys, QKVO, activation, biases, decoder};
use super::fields::Fields;
use super::names::{Arrangement, Names, NormAt, Part, Stored, Target, whole};
use super::ropes::{Positions, WHOLE, everywhere};
use super::spec::{Layout, NormKind};
use super::{Family, Spec};
use crate::error::Result;
use Part::{Bias, Norm, NormBias, Weight};
use Target::{Down, K, O, Q, Up, V};

pub(super) const FAMILY: Family = Family {
    name: "gpt_neox",
    models: "Pythia, GPT-NeoX, Dolly 2, RedPajama-INCITE, StableLM alpha",
    model_types: &["gpt_neox"],
    supported: &["parallel and sequential blocks", "RoPE on a part of the head", "biases of attention, or none"],
    refused: &["quantised weights"],
    spec,
};

const fn grouped(name: &'static str, parts: &'static [Part]) -> Stored {
    Stored { name, parts, arrangement: Arrangement::Grouped }
}

const NAMES: Names = Names {
    base: "gpt_neox.",
    before: &[whole("gpt_neox.embed_in.weight", &[Part::Embed])],
    block: &[&[
        whole("gpt_neox.layers.{}.input_layernorm.weight", &[Norm(NormAt::Attention)]),
        whole("gpt_neox.layers.{}.input_layernorm.bias", &[NormBias(NormAt::Attention)]),
        grouped("gpt_neox.layers.{}.attention.query_key_value.weight", &[Weight(Q), Weight(K), Weight(V)]),
        grouped("gpt_neox.layers.{}.attention.query_key_value.bias", &[Bias(Q), Bias(K), Bias(V)]),
        whole("gpt_neox.layers.{}.attention.dense.weight", &[Weight(O)]),
        whole("gpt_neox.layers.{}.attention.dense.bias", &[Bias(O)]),
        whole("gpt_neox.layers.{}.post_attention_layernorm.weight", &[Norm(NormAt::Mlp)]),
        whole("gpt_neox.layers.{}.post_attention_layernorm.bias", &[NormBias(NormAt::Mlp)]),
        whole("gpt_neox.layers.{}.mlp.dense_h_to_4h.weight", &[Weight(Up)]),
        whole("gpt_neox.layers.{}.mlp.dense_h_to_4h.bias", &[Bias(Up)]),
        whole("gpt_neox.layers.{}.mlp.dense_4h_to_h.weight", &[Weight(Down)]),
        whole("gpt_neox.layers.{}.mlp.dense_4h_to_h.bias", &[Bias(Down)]),
    ]],
    after: &[
        whole("gpt_neox.final_layer_norm.weight", &[Norm(NormAt::Final)]),
        whole("gpt_neox.final_layer_norm.bias", &[NormBias(NormAt::Final)]),
        whole("embed_out.weight", &[Part::Head]),
    ],
    attention: "gpt_neox.layers.{}.attention.",
    // Masks and frequencies.
    ignored: &[".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"],
};

fn spec(fields: &Fields) -> Result<Spec> {
    let keys = Keys { eps: "layer_norm_eps", ..KEYS };
    let mut spec = decoder(fields, FAMILY.name, NAMES, &keys, &Absent { eps: 1e-5, ..ABSENT })?;
    spec.kv_heads = spec.heads;
    spec.norm.kind = NormKind::Layer;
    spec.activation = activation(fields, "hidden_act", "gelu")?;
    spec.gated = false;
    if fields.flag_or("use_parallel_residual", true)? {
        spec.layout = Layout::Parallel;
    }
    biases(&mut spec, fields, "attention_bias", true, &QKVO)?;
    spec.biases.extend([Up, Down]);
    let positions = Positions { theta_key: "rotary_emb_base", partial: Some(0.25), partial_key: "rotary_pct", ..WHOLE };
    everywhere(&mut spec, fields, &positions)?;
    Ok(spec)
}
