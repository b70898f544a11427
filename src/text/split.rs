//! Where a long document may be cut so that its parts encode to the very ids of the whole.
//!
//! A cut lies between an ASCII letter and the space or line end after it. Byte-level tokenizers first split a text by one of
//! the expressions below and then encode each match alone. No alternative of these expressions matches a letter *and*
//! white space after it; none looks behind; the one look-ahead stands after white space. So every cut is an edge between
//! matches, with or without the other side. Tokenizers for which this is not known are given documents whole.

use serde_json::Value;

/// The expressions of Llama 3 and of Qwen 2; that of GPT-2 is `ByteLevel`'s own.
const KNOWN: [&str; 2] = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// Whether `tokenizer` is known to encode a text in parts, cut after words, as it encodes the whole.
pub(super) fn splits_after_words(tokenizer: &tokenizers::Tokenizer) -> bool {
    let normalizer = tokenizer.get_normalizer().map(|normalizer| serde_json::to_value(normalizer).unwrap_or_default());
    // White space composes with nothing, so NFC of the parts is NFC of the whole.
    if normalizer.is_some_and(|normalizer| normalizer["type"] != "NFC") {
        return false;
    }
    let plain_tokens = tokenizer.get_added_tokens_decoder().values().all(|token| {
        !(token.lstrip || token.rstrip || token.single_word || token.content.contains(char::is_whitespace))
    });
    let pre_tokenizer = tokenizer.get_pre_tokenizer().map(serde_json::to_value);
    let Some(Ok(pre_tokenizer)) = pre_tokenizer else { return false };
    let steps = match pre_tokenizer["pretokenizers"].as_array() {
        Some(steps) => steps.as_slice(),
        None => std::slice::from_ref(&pre_tokenizer),
    };
    plain_tokens && byte_level_words(steps)
}

/// Whether these steps of pre-tokenization end a match after every word.
fn byte_level_words(steps: &[Value]) -> bool {
    let Some((last, before)) = steps.split_last() else { return false };
    if last["type"] != "ByteLevel" || last["add_prefix_space"] != false {
        return false;
    }
    match (last["use_regex"].as_bool(), before) {
        (Some(true), _) => before.iter().all(|step| step["type"] == "Digits"),
        (_, [step]) => {
            step["type"] == "Split"
                && step["behavior"] == "Isolated"
                && step["invert"] == false
                && KNOWN.iter().any(|known| step["pattern"]["Regex"] == *known)
        }
        _ => false,
    }
}

/// Parts of `text` of about `size` bytes, cut after words.
pub(super) fn after_words(mut text: &str, size: usize) -> Vec<&str> {
    let mut parts = Vec::with_capacity(text.len() / size + 1);
    while let Some(cut) = cut_from(text, size) {
        let (part, rest) = text.split_at(cut);
        parts.push(part);
        text = rest;
    }
    parts.push(text);
    parts
}

/// The first place at or after `from` where `text` may be cut. Both neighbours are ASCII: it is a character boundary.
fn cut_from(text: &str, from: usize) -> Option<usize> {
    let bytes = text.as_bytes().get(from.max(1) - 1..)?;
    let word_end =
        bytes.windows(2).position(|pair| pair[0].is_ascii_alphabetic() && matches!(pair[1], b' ' | b'\n'))?;
    Some(from.max(1) + word_end)
}
