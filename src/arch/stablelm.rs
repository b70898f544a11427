//! StableLM: Llama with LayerNorm, rotary positions on a part of the head, and attention and MLP side by side in some.

use super::common::{ABSENT, Absent, KEYS, Keys, activation, biases, decoder, refuse_flag};
use super::fields::Fields;
use super::names::{LLAMA, Target};
use super::ropes::{Positions, WHOLE, everywhere};
use super::spec::{Layout, NormKind};
use super::{Family, Spec};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "stablelm",
    models: "StableLM 3B and StableLM 2 1.6B",
    model_types: &["stablelm"],
    supported: &["LayerNorm", "RoPE on a part of the head", "biases of q, k and v", "parallel blocks"],
    refused: &["`qk_layernorm` (StableLM 2 12B): a norm of its own for every head", "quantised weights"],
    spec,
};

fn spec(fields: &Fields) -> Result<Spec> {
    let keys = Keys { eps: "layer_norm_eps", ..KEYS };
    let mut spec = decoder(fields, FAMILY.name, LLAMA, &keys, &Absent { eps: 1e-5, ..ABSENT })?;
    spec.norm.kind = NormKind::Layer;
    spec.activation = activation(fields, "hidden_act", "silu")?;
    refuse_flag(fields, "qk_layernorm", "a norm of its own for every head is not supported")?;
    if fields.flag("use_parallel_residual")? {
        spec.layout = Layout::ParallelShared;
    }
    biases(&mut spec, fields, "use_qkv_bias", false, &[Target::Q, Target::K, Target::V])?;
    everywhere(&mut spec, fields, &Positions { partial: Some(0.25), ..WHOLE })?;
    Ok(spec)
}
