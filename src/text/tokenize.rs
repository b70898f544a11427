//! All documents to one sequence of ids, on all cores.

use rayon::prelude::*;

use super::Tokenizer;
use super::split::after_words;
use crate::Result;
use crate::progress::check_interrupt;

/// Bytes of the parts into which long documents are cut, where they may be.
const PART: usize = 128 << 10;
/// Parts that each thread encodes between two reports of progress.
const PARTS_AT_ONCE: usize = 4;
/// Text that is encoded for each token that a limit still leaves, in bytes: a little more than tokens have.
const BYTES_PER_TOKEN: usize = 5;

/// The ids of all documents with the end-of-text token (if the model has one) between them; at most `limit` of them, the
/// first ones. `progress` hears how many bytes of text are done.
///
/// The ids do not depend on the number of threads.
pub fn tokenize(
    documents: &[String],
    tokenizer: &Tokenizer,
    limit: Option<usize>,
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<u32>> {
    let parts = parts(documents, tokenizer);
    let limit = limit.unwrap_or(usize::MAX);
    let (mut ids, mut done, mut next) = (Vec::new(), 0, 0);
    while next < parts.len() && ids.len() < limit {
        check_interrupt()?;
        let wanted = (limit - ids.len()).saturating_mul(BYTES_PER_TOKEN);
        let wave = wave(&parts[next..], wanted.min(rayon::current_num_threads() * PARTS_AT_ONCE * PART));
        let encoded: Vec<_> = wave.par_iter().map(|part| tokenizer.encode(part.text)).collect();
        for (part, encoded) in wave.iter().zip(encoded) {
            if part.follows_a_document {
                ids.extend(tokenizer.eos());
            }
            ids.extend(encoded?);
            done += part.text.len() as u64;
        }
        next += wave.len();
        progress(done);
    }
    ids.truncate(limit);
    Ok(ids)
}

/// A text that is encoded in one go.
struct Part<'a> {
    text: &'a str,
    /// It begins a document, and not the first one.
    follows_a_document: bool,
}

fn parts<'a>(documents: &'a [String], tokenizer: &Tokenizer) -> Vec<Part<'a>> {
    let mut parts = Vec::new();
    for (index, document) in documents.iter().enumerate() {
        let texts = if tokenizer.splits_after_words() { after_words(document, PART) } else { vec![document.as_str()] };
        let follows = |place: usize| index > 0 && place == 0;
        parts.extend(
            texts.into_iter().enumerate().map(|(place, text)| Part { text, follows_a_document: follows(place) }),
        );
    }
    parts
}

/// The first parts that hold `bytes` of text together; at least one.
fn wave<'p, 'a>(parts: &'p [Part<'a>], bytes: usize) -> &'p [Part<'a>] {
    let mut held = 0;
    let count = parts.iter().take_while(|part| {
        let take = held == 0 || held < bytes;
        held += part.text.len();
        take
    });
    &parts[..count.count()]
}
