//! Keys: hashes of everything that a result depends on, chained from stage to stage.

use crate::checkpoint::Checkpoint;
use crate::{Error, Result};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// Changes when a training result for the same inputs would change.
const FORMAT: u32 = 1;

fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// The key of what follows `before` under the description `what`.
pub fn chain(before: &str, what: &impl Serialize) -> Result<String> {
    let json = serde_json::to_vec(&(FORMAT, before, what)).map_err(|e| Error::Internal(e.to_string()))?;
    Ok(hex(Sha256::digest(json)))
}

/// A teacher by its description, the headers of its tensors and a sample of its weights: hashing all of them would
/// read a whole large model before anything starts.
pub fn teacher(checkpoint: &Checkpoint, sample: &[&candle_core::Tensor]) -> Result<String> {
    let headers: Vec<_> = checkpoint.tensors().iter().map(|t| (&t.name, format!("{:?}", t.dtype), &t.shape)).collect();
    let norms = sample.iter().map(|t| crate::ops::statistics::square_sum(t)).collect::<Result<Vec<f64>>>()?;
    chain("teacher", &(checkpoint.config(), headers, norms))
}

/// A text by its bytes.
pub fn text(documents: &[String]) -> String {
    let mut hash = Sha256::new();
    for document in documents {
        hash.update((document.len() as u64).to_le_bytes());
        hash.update(document.as_bytes());
    }
    hex(hash.finalize())
}
