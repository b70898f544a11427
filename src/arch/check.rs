//! Holds the tensors in a checkpoint's headers to what the architecture asks for.

use std::collections::BTreeSet;

use safetensors::Dtype;

use super::{Part, Spec};
use crate::checkpoint::{Checkpoint, TensorInfo, shown};
use crate::error::{Error, Result};

/// Every tensor there, of the right shape, of a type that is read; none that would silently not be used.
pub(super) fn check(spec: &Spec, checkpoint: &Checkpoint, converted: bool) -> Result<()> {
    let expected = spec.stored();
    let known: BTreeSet<&str> = expected.iter().map(|stored| stored.name.as_str()).collect();
    for stored in &expected {
        let Some(info) = checkpoint.info(&stored.name) else {
            return Err(match stored.parts[..] {
                [(Part::Head, _)] => no_head(&stored.name, checkpoint),
                _ => checkpoint.missing(&stored.name, |other| !known.contains(other)),
            });
        };
        require(checkpoint, info, &stored.shape)?;
    }
    let heads: Vec<&str> = spec.heads().collect();
    let ignored = |name: &str| spec.names.ignored.iter().any(|end| name.ends_with(end));
    for info in checkpoint.tensors().iter().filter(|info| !known.contains(info.name.as_str())) {
        if heads.contains(&info.name.as_str()) {
            require(checkpoint, info, &[spec.vocab, spec.width])?;
        } else if !(ignored(&info.name) || converted && is_mixer(spec, &info.name)) {
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

fn no_head(name: &str, checkpoint: &Checkpoint) -> Error {
    Error::checkpoint(
        checkpoint.path(),
        format!("there is no tensor `{name}`, and `tie_word_embeddings` is not true"),
        "if the head shares the embedding's weights, set `tie_word_embeddings` to true in `config.json`; else download the model again",
    )
}

/// Whether `name` is a tensor of a mixer of a layer that exists.
fn is_mixer(spec: &Spec, name: &str) -> bool {
    let exists = |number: &str| {
        number.parse().is_ok_and(|layer: usize| {
            layer < spec.layers && layer.to_string() == number && name.starts_with(&spec.mixer_prefix(layer))
        })
    };
    name.split('.').any(exists)
}
