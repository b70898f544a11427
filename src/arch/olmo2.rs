//! OLMo 2: norms of what attention and MLP add rather than before them, and of queries and keys over all heads.

use super::common::{ABSENT, Absent, KEYS, QKVO, activation, biases, decoder};
use super::fields::Fields;
use super::names::SANDWICH;
use super::ropes::{WHOLE, everywhere};
use super::spec::{Layout, QkNorm};
use super::{Family, Spec};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "olmo2",
    models: "OLMo 2",
    model_types: &["olmo2"],
    supported: &["norms after attention and MLP", "norms of queries and keys over all heads", "biases of attention"],
    refused: &["OLMo 1, whose norms have no weights, and OLMo 3", "quantised weights"],
    spec,
};

fn spec(fields: &Fields) -> Result<Spec> {
    let mut spec = decoder(fields, FAMILY.name, SANDWICH, &KEYS, &Absent { eps: 1e-5, ..ABSENT })?;
    spec.activation = activation(fields, "hidden_act", "silu")?;
    spec.layout = Layout::Post;
    spec.qk_norm = Some(QkNorm::Full);
    biases(&mut spec, fields, "attention_bias", false, &QKVO)?;
    everywhere(&mut spec, fields, &WHOLE)?;
    Ok(spec)
}
