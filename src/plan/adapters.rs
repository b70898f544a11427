//! The adapters that LoRA stages start from, by their settings: refused, or warned of, before anything runs.

use std::fs;
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::Result;
use crate::arch::MODEL_TYPE;
use crate::checkpoint::{CONFIG, Checkpoint, Files, Location};
use crate::export::Settings;
use crate::recipe::Recipe;

/// Largest config.json of a base that is looked at.
const MAX_CONFIG: u64 = 1 << 20;

/// Warnings about them. One whose folder is gone is passed over: a stage that has begun does without.
pub(super) fn notes(recipe: &Recipe, teacher: &Location, checkpoint: &Checkpoint) -> Result<Vec<String>> {
    let mut notes = vec![];
    for (index, stage) in recipe.stages.iter().enumerate() {
        let Some(from) = stage.needs().adapter.and_then(|shape| shape.from.as_ref()) else { continue };
        let folder = recipe.base.as_deref().map_or_else(|| PathBuf::from(from), |base| base.join(from));
        if !folder.exists() {
            continue;
        }
        let Some(base) = Settings::open(&folder)?.base else { continue };
        let what = if is_teacher(&base, recipe, teacher, checkpoint) {
            "the teacher of this recipe"
        } else if is_softmax(&base) {
            "a model that is not converted"
        } else {
            continue;
        };
        notes.push(format!(
            "`stage.{index}.lora.from`: the adapter in `{from}` belongs to `{base}`, {what}: its update was learned beside \
             softmax attention and may do harm beside other mixers; `subquad export --adapter` writes one that was not"
        ));
    }
    Ok(notes)
}

/// Whether what an adapter names as the model below it is the teacher: by the same name, as the same folder, or by the
/// name on the Hub that the teacher's folder or config.json has.
fn is_teacher(base: &str, recipe: &Recipe, teacher: &Location, checkpoint: &Checkpoint) -> bool {
    let without_revision = |name: &str| name.split('@').next().unwrap_or_default().to_string();
    let own = checkpoint.config().get("_name_or_path").and_then(Value::as_str).filter(|name| !name.is_empty());
    if base == recipe.teacher.model || own == Some(base) {
        return true;
    }
    match teacher {
        Location::Hub(id) => without_revision(base) == id.repository(),
        Location::Builtin(_) => false,
        Location::Path(path) => {
            let Ok(real) = fs::canonicalize(path) else { return false };
            let cached = base.split_once('/').map(|(owner, name)| format!("models--{owner}--{name}"));
            let in_cache = cached.is_some_and(|cached| real.iter().any(|part| part == cached.as_str()));
            in_cache || fs::canonicalize(base).is_ok_and(|base| base == real)
        }
    }
}

/// Whether a model on disk is one that this crate has not converted; one that is not there may be anything.
fn is_softmax(base: &str) -> bool {
    let Ok(files) = Files::open(&Location::Path(base.into())) else { return false };
    let config = files.read_at_most(CONFIG, MAX_CONFIG).ok().flatten();
    let config = config.and_then(|bytes| serde_json::from_slice::<Map<String, Value>>(&bytes).ok());
    config.is_some_and(|config| config.get("model_type").and_then(Value::as_str) != Some(MODEL_TYPE))
}
