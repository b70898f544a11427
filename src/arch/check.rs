//! Holds the tensors in a checkpoint's headers to what the architecture asks for.

use std::collections::BTreeSet;

use safetensors::Dtype;

use super::{Names, Spec};
use crate::checkpoint::{Checkpoint, TensorInfo, shown};
use crate::error::{Error, Result};

/// Every tensor there, of the right shape, of a type that is read; none that would silently not be used.
pub(super) fn check(spec: &Spec, checkpoint: &Checkpoint, converted: bool) -> Result<()> {
    let expected = spec.tensors();
    let known: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
    for (name, shape) in &expected {
        let Some(info) = checkpoint.info(name) else {
            return Err(match name == spec.names.head {
                true => no_head(spec, checkpoint),
                false => checkpoint.missing(name, |other| !known.contains(other)),
            });
        };
        require(checkpoint, info, shape)?;
    }
    for info in checkpoint.tensors().iter().filter(|info| !known.contains(info.name.as_str())) {
        if info.name == spec.names.head {
            require(checkpoint, info, &[spec.vocab, spec.width])?;
        } else if !(info.name.ends_with(".rotary_emb.inv_freq") || converted && is_mixer(spec, &info.name)) {
            return Err(Error::checkpoint(
                checkpoint.path(),
                format!("the tensor `{}` has no place in the architecture `{}`", shown(&info.name), spec.family),
                "the model computes something that `config.json` does not say, so it is refused; choose another teacher",
            ));
        }
    }
    Ok(())
}

fn require(checkpoint: &Checkpoint, info: &TensorInfo, shape: &[usize]) -> Result<()> {
    if info.shape != shape {
        return Err(checkpoint.misshapen(info, shape));
    }
    match info.dtype {
        Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(()),
        other => Err(Error::checkpoint(
            checkpoint.files().place(&info.file),
            format!("tensor `{}` is stored as {other:?}; f32, f16 and bf16 are read", shown(&info.name)),
            "give the unquantised checkpoint",
        )),
    }
}

fn no_head(spec: &Spec, checkpoint: &Checkpoint) -> Error {
    Error::checkpoint(
        checkpoint.path(),
        format!("there is no tensor `{}`, and `tie_word_embeddings` is not true", spec.names.head),
        "if the head shares the embedding's weights, set `tie_word_embeddings` to true in `config.json`; else download the model again",
    )
}

/// Whether `name` is a tensor of a mixer of a layer that exists: beside the projections, under `mixer.`.
fn is_mixer(spec: &Spec, name: &str) -> bool {
    let Some((before, after)) = spec.names.q.split_once("{}") else { return false };
    let Some((layer, rest)) = name.strip_prefix(before).and_then(|n| n.split_once('.')) else { return false };
    let attention = after.trim_start_matches('.').split('.').next().unwrap_or_default();
    let exists = layer.parse().is_ok_and(|n: usize| n < spec.layers && Names::of_layer("{}", n) == layer);
    exists && rest.strip_prefix(attention).is_some_and(|r| r.starts_with(".mixer."))
}
