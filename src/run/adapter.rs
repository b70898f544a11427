//! The adapter that a LoRA stage starts from.
//!
//! It is part of what the stage's result depends on, as teacher and text are: with another one the stage starts again.
//! Once the stage has saved something, that holds all that came of the adapter, and its folder may go: the ledger knows
//! the digest, and with it the key.

use crate::arch::{Spec, Target};
use crate::checkpoint::{hex, values};
use crate::export::read_adapter;
use crate::recipe::Recipe;
use crate::stage::LoraShape;
use crate::{Error, Result};
use candle_core::Tensor;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Its tensors, and a digest of all that they are: another adapter is another start.
pub struct Start {
    pub tensors: BTreeMap<String, Tensor>,
    pub digest: String,
}

/// Reads the adapter that stage `index` names, if it names one, and holds it to the stage's shape. A stage that has
/// `begun` can do without.
pub fn start(recipe: &Recipe, index: usize, shape: &LoraShape, spec: &Spec, begun: bool) -> Result<Option<Start>> {
    let Some(from) = &shape.from else { return Ok(None) };
    let folder = recipe.base.as_deref().map_or_else(|| PathBuf::from(from), |base| base.join(from));
    if !folder.exists() {
        return if begun { Ok(None) } else { Err(absent(recipe, index)) };
    }
    let (found, tensors) = read_adapter(&folder, spec)?;
    let wanted = shape.adapter();
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
        return Err(recipe.error_at(&format!("stage.{index}.lora.from"), what, hint));
    }
    let mut hash = Sha256::new();
    for (name, tensor) in &tensors {
        hash.update(name.as_bytes());
        for x in values(tensor)? {
            hash.update(x.to_le_bytes());
        }
    }
    Ok(Some(Start { tensors, digest: hex(hash.finalize()) }))
}

/// Neither the folder is there, nor anything that a stage saved which began with it.
pub fn absent(recipe: &Recipe, index: usize) -> Error {
    let hint = "give a folder as PEFT or `subquad export --adapter` writes it; once this stage has saved a checkpoint, \
                the folder may go";
    recipe.error_at(&format!("stage.{index}.lora.from"), "there is no such folder", hint)
}
