//! The adapter that a LoRA stage starts from.

use crate::Result;
use crate::arch::{Spec, Target};
use crate::export::read_adapter;
use crate::model::Adapter;
use crate::recipe::{LoraShape, Recipe};
use candle_core::Tensor;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Its tensors, and a digest of all that they are: another adapter is another start.
pub(super) struct Start {
    pub tensors: BTreeMap<String, Tensor>,
    pub digest: String,
}

/// Reads the adapter that stage `index` names, if it names one, and holds it to `wanted`.
pub(super) fn start(
    recipe: &Recipe,
    index: usize,
    shape: &LoraShape,
    wanted: &Adapter,
    spec: &Spec,
) -> Result<Option<Start>> {
    let Some(from) = &shape.from else { return Ok(None) };
    let folder = recipe.base.as_deref().map_or_else(|| PathBuf::from(from), |base| base.join(from));
    let (found, tensors) = read_adapter(&folder, spec)?;
    let sorted = |targets: &[Target]| {
        let mut targets = targets.to_vec();
        targets.sort();
        targets
    };
    if (found.rank, found.alpha, sorted(&found.targets)) != (wanted.rank, wanted.alpha, sorted(&wanted.targets)) {
        let words: Vec<String> = found.targets.iter().map(|target| format!("\"{}\"", target.word())).collect();
        let hint =
            format!("as the adapter is: rank = {}, alpha = {}, on = [{}]", found.rank, found.alpha, words.join(", "));
        let what = format!("the adapter in `{from}` is of another shape than this stage's");
        return Err(recipe.mistake(&format!("stage.{index}.lora.from"), what, hint));
    }
    let mut hash = Sha256::new();
    for (name, tensor) in &tensors {
        hash.update(name.as_bytes());
        for x in tensor.flatten_all()?.to_vec1::<f32>()? {
            hash.update(x.to_le_bytes());
        }
    }
    let digest = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Ok(Some(Start { tensors, digest }))
}
