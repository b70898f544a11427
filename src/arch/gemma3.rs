//! Gemma 3, the text models: Gemma 2 without caps, with norms of queries and keys, and rotary positions of one kind for
//! layers with a window and of another for those without.

use super::common::{layer_types, refuse_set, window};
use super::fields::Fields;
use super::ropes::{object, optional, rope_of_block};
use super::spec::QkNorm;
use super::{Family, Spec, gemma2};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "gemma3",
    models: "Gemma 3 270M and 1B, and other text models of its type",
    model_types: &["gemma3_text"],
    supported: &["norms of queries and keys", "local and global layers, each with its own RoPE", "as gemma2"],
    refused: &[
        "`gemma3`, the models that see images: give the text model, of the type `gemma3_text`",
        "`attn_logit_softcapping`, which transformers does not apply",
        "`use_bidirectional_attention`",
        "quantised weights",
    ],
    spec,
};

const WINDOW: usize = 4096;
const GLOBAL_THETA: f64 = 1e6;
const LOCAL_THETA: f64 = 1e4;

fn spec(fields: &Fields) -> Result<Spec> {
    let mut spec = gemma2::body(fields, FAMILY.name, (None, None))?;
    let unclear = "transformers reads it and does not apply it, so what this model was trained with is not known";
    refuse_set(fields, "attn_logit_softcapping", unclear)?;
    spec.qk_norm = Some(QkNorm::Head);
    let pattern = match fields.optional_size("sliding_window_pattern", 1 << 12)? {
        Some(pattern) => pattern,
        None => fields.optional_size("_sliding_window_pattern", 1 << 12)?.unwrap_or(6),
    };
    let window = window(fields, Some(WINDOW))?;
    let slides = layer_types(&mut spec, fields, window, |layer| !(layer + 1).is_multiple_of(pattern))?;

    // Either two blocks, or two keys at the top with the scaling of the global layers beside them.
    let both = object(fields, "rope_parameters")?;
    let one = |key: &str| both.and_then(|map| map.get(key)).and_then(|value| value.as_object());
    let global = one("full_attention").or(object(fields, "rope_scaling")?);
    let global_theta = optional(fields, "rope_theta")?.unwrap_or(GLOBAL_THETA);
    let local_theta = optional(fields, "rope_local_base_freq")?.unwrap_or(LOCAL_THETA);
    spec.ropes = vec![
        rope_of_block(&spec, fields, "rope_parameters.full_attention", global, global_theta)?,
        rope_of_block(&spec, fields, "rope_parameters.sliding_attention", one("sliding_attention"), local_theta)?,
    ];
    for (block, slides) in spec.blocks.iter_mut().zip(slides) {
        block.rope = Some(usize::from(slides));
    }
    Ok(spec)
}
