//! Gemma 2: Gemma with norms before and after, capped scores and logits, and a window in every other layer.

use super::common::{activation, layer_types, window};
use super::fields::Fields;
use super::names::SANDWICH;
use super::ropes::{WHOLE, everywhere};
use super::spec::Layout;
use super::{Family, Spec, gemma};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "gemma2",
    models: "Gemma 2",
    model_types: &["gemma2"],
    supported: &["capped scores and logits", "norms before and after", "local and global layers", "as gemma"],
    refused: &["`use_bidirectional_attention`", "quantised weights"],
    spec,
};

const WINDOW: usize = 4096;
const MAX_CAP: f64 = 1e9;

fn spec(fields: &Fields) -> Result<Spec> {
    let mut spec = body(fields, FAMILY.name, (Some(50.0), Some(30.0)))?;
    let window = window(fields, Some(WINDOW))?;
    layer_types(&mut spec, fields, window, |layer| layer.is_multiple_of(2))?;
    everywhere(&mut spec, fields, &WHOLE)?;
    Ok(spec)
}

/// What Gemma 2 and 3 share; `caps` are those of scores and of logits where the keys are absent.
pub(super) fn body(fields: &Fields, family: &'static str, caps: (Option<f64>, Option<f64>)) -> Result<Spec> {
    let mut spec = gemma::body(fields, family, SANDWICH)?;
    spec.layout = Layout::Sandwich;
    spec.activation = activation(fields, "hidden_activation", "gelu_pytorch_tanh")?;
    let scalar = fields.optional_positive("query_pre_attn_scalar", 1e9)?.unwrap_or(256.0);
    spec.blocks.iter_mut().for_each(|block| block.scale = 1.0 / scalar.sqrt());
    let cap = |key: &str, absent| match fields.map.contains_key(key) {
        true => fields.optional_positive(key, MAX_CAP),
        false => Ok(absent),
    };
    spec.score_cap = cap("attn_logit_softcapping", caps.0)?;
    spec.logit_cap = cap("final_logit_softcapping", caps.1)?;
    Ok(spec)
}
