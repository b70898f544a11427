//! GPT-2: learned positions, LayerNorm, biases, weights stored as [in, out] with q, k and v side by side.

use super::common::{ABSENT, Absent, KEYS, Keys, UNGATED, activation, decoder, refuse_flag};
use super::fields::Fields;
use super::names::{Arrangement, Names, NormAt, Part, Stored, Target, whole};
use super::spec::{Learned, NormKind};
use super::{Family, Spec};
use crate::error::Result;
use Part::{Bias, Norm, NormBias, Weight};
use Target::{Down, K, O, Q, Up, V};

pub(super) const FAMILY: Family = Family {
    name: "gpt2",
    models: "GPT-2, DistilGPT-2, and others of its type",
    model_types: &["gpt2"],
    supported: &[
        "learned positions",
        "Conv1D's layout and joined q, k, v",
        "scores that are not scaled, or divided by the layer's number",
        "files with and without the prefix `transformer.`",
    ],
    refused: &["texts longer than the learned positions", "`add_cross_attention`", "quantised weights"],
    spec,
};

const fn transposed(name: &'static str, parts: &'static [Part]) -> Stored {
    Stored { name, parts, arrangement: Arrangement::Transposed }
}

const NAMES: Names = Names {
    base: "transformer.",
    before: &[whole("transformer.wte.weight", &[Part::Embed]), whole("transformer.wpe.weight", &[Part::Positions])],
    block: &[&[
        whole("transformer.h.{}.ln_1.weight", &[Norm(NormAt::Attention)]),
        whole("transformer.h.{}.ln_1.bias", &[NormBias(NormAt::Attention)]),
        transposed("transformer.h.{}.attn.c_attn.weight", &[Weight(Q), Weight(K), Weight(V)]),
        transposed("transformer.h.{}.attn.c_attn.bias", &[Bias(Q), Bias(K), Bias(V)]),
        transposed("transformer.h.{}.attn.c_proj.weight", &[Weight(O)]),
        whole("transformer.h.{}.attn.c_proj.bias", &[Bias(O)]),
        whole("transformer.h.{}.ln_2.weight", &[Norm(NormAt::Mlp)]),
        whole("transformer.h.{}.ln_2.bias", &[NormBias(NormAt::Mlp)]),
        transposed("transformer.h.{}.mlp.c_fc.weight", &[Weight(Up)]),
        whole("transformer.h.{}.mlp.c_fc.bias", &[Bias(Up)]),
        transposed("transformer.h.{}.mlp.c_proj.weight", &[Weight(Down)]),
        whole("transformer.h.{}.mlp.c_proj.bias", &[Bias(Down)]),
    ]],
    after: &[
        whole("transformer.ln_f.weight", &[Norm(NormAt::Final)]),
        whole("transformer.ln_f.bias", &[NormBias(NormAt::Final)]),
        whole("lm_head.weight", &[Part::Head]),
    ],
    attention: "transformer.h.{}.attn.",
    // Masks.
    ignored: &[".attn.bias", ".attn.masked_bias"],
};

fn spec(fields: &Fields) -> Result<Spec> {
    let keys = Keys {
        width: "n_embd",
        layers: "n_layer",
        heads: "n_head",
        ffn: "n_inner",
        context: "n_positions",
        eps: "layer_norm_epsilon",
        ..KEYS
    };
    let mut spec = decoder(fields, FAMILY.name, NAMES, &keys, &Absent { eps: 1e-5, tied: true, ffn: 4, ..ABSENT })?;
    refuse_flag(fields, "add_cross_attention", "a decoder that reads an encoder cannot be converted")?;
    spec.norm.kind = NormKind::Layer;
    spec.activation = activation(fields, "activation_function", "gelu_new")?;
    spec.gated = false;
    spec.biases.extend(UNGATED);
    spec.positions = Some(Learned { rows: spec.context, offset: 0 });
    let (scaled, inverse) =
        (fields.flag_or("scale_attn_weights", true)?, fields.flag("scale_attn_by_inverse_layer_idx")?);
    for (layer, block) in spec.blocks.iter_mut().enumerate() {
        block.scale = if scaled { block.scale } else { 1.0 } / if inverse { layer as f64 + 1.0 } else { 1.0 };
    }
    Ok(spec)
}
