//! Heads that are in the files and that nothing reads, because `config.json` says that the embedding serves in their place.
//!
//! Programs differ in what they do with one that holds other numbers: transformers 4 ties it and transformers 5 uses it.
//! Which of the two the teacher was trained as only its owner knows.

use super::{Part, Spec};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// Elements of each that are compared where no weights are read yet: what differs mostly does from the beginning.
const SAMPLE: usize = 1 << 18;

impl Spec {
    /// Refuses a head that is in the files and is not what a tied model would use in its place. Reads all of both.
    pub fn require_shared(&self, checkpoint: &Checkpoint) -> Result<()> {
        compare(self, checkpoint, usize::MAX)
    }
}

/// The same by the beginnings of both, where their numbers are here.
pub(super) fn glance(spec: &Spec, checkpoint: &Checkpoint) -> Result<()> {
    compare(spec, checkpoint, SAMPLE)
}

fn compare(spec: &Spec, checkpoint: &Checkpoint, most: usize) -> Result<()> {
    let Some((embed, _)) = spec.place(0, Part::Embed).filter(|_| spec.tied) else { return Ok(()) };
    for head in spec.heads() {
        let Some(info) = checkpoint.info(head) else { continue };
        let Some((place, [h, e])) = checkpoint.first_difference([head, &embed], most)? else { continue };
        let said = match checkpoint.config().get("tie_word_embeddings") {
            Some(serde_json::Value::Bool(true)) => "is true",
            _ => "is missing, which means true for this architecture",
        };
        return Err(Error::checkpoint(
            checkpoint.files().place(&info.file),
            format!(
                "`{head}` and `{embed}` differ, first at {place:?} ({h} and {e}), and `tie_word_embeddings` in \
                 `config.json` {said}"
            ),
            format!(
                "to use `{head}`, as transformers 5 does, set `\"tie_word_embeddings\": false` in `config.json`; to use \
                 the embedding for both, as transformers 4 does, remove the tensor `{head}` from the file"
            ),
        ));
    }
    Ok(())
}
