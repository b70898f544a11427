//! Keys: hashes of everything that a result depends on, chained from stage to stage.

use crate::checkpoint::hex;
use crate::text::Windows;
use crate::{Error, Result};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// Changes when a training result for the same inputs would change, or when keys come to hold more.
const FORMAT: u32 = 2;

/// The key of what follows `before` under the description `what`.
pub fn chain(before: &str, what: &impl Serialize) -> Result<String> {
    let json = serde_json::to_vec(&(FORMAT, before, what)).map_err(|e| Error::Internal(e.to_string()))?;
    Ok(hex(Sha256::digest(json)))
}

/// A text by the token ids that are read of it.
pub fn text(windows: &Windows) -> String {
    let mut hash = Sha256::new();
    hash.update((windows.sequence() as u64).to_le_bytes());
    for window in 0..windows.len() {
        let bytes: Vec<u8> = windows.get(window).iter().flat_map(|id| id.to_le_bytes()).collect();
        hash.update(bytes);
    }
    hex(hash.finalize())
}
