//! OPT: learned positions that begin at the third row, LayerNorm before attention and MLP, biases, ReLU.

use super::common::{ABSENT, Absent, KEYS, Keys, UNGATED, activation, biases, decoder, refuse_flag};
use super::fields::Fields;
use super::names::{Names, NormAt, Part, Target, whole};
use super::spec::{Learned, NormKind};
use super::{Family, Spec};
use crate::error::Result;
use Part::{Bias, Norm, NormBias, Weight};
use Target::{Down, K, O, Q, Up, V};

pub(super) const FAMILY: Family = Family {
    name: "opt",
    models: "OPT, but for OPT-350M",
    model_types: &["opt"],
    supported: &["learned positions with their offset", "biases, or none", "tied and untied heads"],
    refused: &[
        "texts longer than the learned positions",
        "`do_layer_norm_before` = false and a `word_embed_proj_dim` of its own (OPT-350M)",
        "`layer_norm_elementwise_affine` = false, `_remove_final_layer_norm`",
        "quantised weights",
    ],
    spec,
};

/// The first two rows of the positions belong to none.
const OFFSET: usize = 2;

const NAMES: Names = Names {
    base: "model.",
    before: &[
        whole("model.decoder.embed_tokens.weight", &[Part::Embed]),
        whole("model.decoder.embed_positions.weight", &[Part::Positions]),
    ],
    block: &[&[
        whole("model.decoder.layers.{}.self_attn_layer_norm.weight", &[Norm(NormAt::Attention)]),
        whole("model.decoder.layers.{}.self_attn_layer_norm.bias", &[NormBias(NormAt::Attention)]),
        whole("model.decoder.layers.{}.self_attn.q_proj.weight", &[Weight(Q)]),
        whole("model.decoder.layers.{}.self_attn.q_proj.bias", &[Bias(Q)]),
        whole("model.decoder.layers.{}.self_attn.k_proj.weight", &[Weight(K)]),
        whole("model.decoder.layers.{}.self_attn.k_proj.bias", &[Bias(K)]),
        whole("model.decoder.layers.{}.self_attn.v_proj.weight", &[Weight(V)]),
        whole("model.decoder.layers.{}.self_attn.v_proj.bias", &[Bias(V)]),
        whole("model.decoder.layers.{}.self_attn.out_proj.weight", &[Weight(O)]),
        whole("model.decoder.layers.{}.self_attn.out_proj.bias", &[Bias(O)]),
        whole("model.decoder.layers.{}.final_layer_norm.weight", &[Norm(NormAt::Mlp)]),
        whole("model.decoder.layers.{}.final_layer_norm.bias", &[NormBias(NormAt::Mlp)]),
        whole("model.decoder.layers.{}.fc1.weight", &[Weight(Up)]),
        whole("model.decoder.layers.{}.fc1.bias", &[Bias(Up)]),
        whole("model.decoder.layers.{}.fc2.weight", &[Weight(Down)]),
        whole("model.decoder.layers.{}.fc2.bias", &[Bias(Down)]),
    ]],
    after: &[
        whole("model.decoder.final_layer_norm.weight", &[Norm(NormAt::Final)]),
        whole("model.decoder.final_layer_norm.bias", &[NormBias(NormAt::Final)]),
        whole("lm_head.weight", &[Part::Head]),
    ],
    attention: "model.decoder.layers.{}.self_attn.",
    ignored: &[],
};

fn spec(fields: &Fields) -> Result<Spec> {
    let keys = Keys { ffn: "ffn_dim", eps: "layer_norm_eps", ..KEYS };
    let mut spec = decoder(fields, FAMILY.name, NAMES, &keys, &Absent { eps: 1e-5, tied: true, ..ABSENT })?;
    if !fields.flag_or("do_layer_norm_before", true)? {
        return Err(fields.unsupported("`do_layer_norm_before` is false: norms after the sum are not supported"));
    }
    if !fields.flag_or("layer_norm_elementwise_affine", true)? {
        let what = "`layer_norm_elementwise_affine` is false: norms without weights are not supported";
        return Err(fields.unsupported(what));
    }
    refuse_flag(fields, "_remove_final_layer_norm", "a model without its last norm is not supported")?;
    if let Some(width) = fields.optional_size("word_embed_proj_dim", 1 << 18)?.filter(|width| *width != spec.width) {
        let what = format!("`word_embed_proj_dim` is {width}: projections of the embedding are not supported");
        return Err(fields.unsupported(what));
    }
    spec.norm.kind = NormKind::Layer;
    spec.activation = activation(fields, "activation_function", "relu")?;
    spec.gated = false;
    biases(&mut spec, fields, "enable_bias", true, &UNGATED)?;
    spec.positions = Some(Learned { rows: spec.context + OFFSET, offset: OFFSET });
    Ok(spec)
}
