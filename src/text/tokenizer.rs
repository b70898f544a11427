//! The tokenizer of a model, from its `tokenizer.json`.

use std::path::{Path, PathBuf};

use super::StreamDecoder;
use super::split::splits_after_words;
use crate::checkpoint::Files;
use crate::{Error, Result};

const FILE: &str = "tokenizer.json";

/// Text to token ids and back. Adds no special tokens of its own; those that stand written out in a text (`<|endoftext|>`)
/// are recognised, as in transformers.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    eos: Option<u32>,
    splits_after_words: bool,
    path: PathBuf,
}

impl Tokenizer {
    /// Reads the tokenizer of a model whose embedding has `vocab` rows and whose end-of-text token is `eos`.
    pub fn open(files: &Files, vocab: usize, eos: Option<u32>) -> Result<Self> {
        let path = files.location().join(FILE);
        let Some(bytes) = files.read(FILE)? else {
            let hint = "copy the tokenizer.json of the model into its folder (a tokenizer.model alone is not read)";
            return Err(Error::tokenizer(path, "there is no tokenizer.json", hint));
        };
        let unreadable = |error: tokenizers::Error| {
            let hint = "the file is damaged or of another kind; copy it again from where the model came from";
            Error::tokenizer(&path, format!("cannot be read: {error}"), hint)
        };
        let mut inner = tokenizers::Tokenizer::from_bytes(&*bytes).map_err(unreadable)?;
        // Both would change the ids of a text without a word.
        inner.with_padding(None).with_truncation(None).map_err(unreadable)?;

        let mismatch = |what: String| {
            let what = format!("does not match the vocabulary of the model: {what}");
            Error::tokenizer(&path, what, "copy the tokenizer.json that belongs to this checkpoint")
        };
        let largest = inner.get_vocab(true).into_iter().map(|(token, id)| (id, token)).max();
        match largest {
            Some((id, token)) if id as usize >= vocab => {
                let what = format!("token {token:?} has id {id}, but the model has only {vocab} ids");
                return Err(mismatch(what));
            }
            None => return Err(mismatch("it has no tokens".into())),
            Some(_) => {}
        }
        if let Some(eos) = eos.filter(|&eos| inner.id_to_token(eos).is_none()) {
            return Err(mismatch(format!("the model's end-of-text id {eos} is no token of it")));
        }
        let splits_after_words = splits_after_words(&inner);
        Ok(Self { inner, eos, splits_after_words, path })
    }

    /// Ids of a text, without special tokens around it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|error| {
            Error::tokenizer(
                &self.path,
                format!("cannot encode a text: {error}"),
                "check that it belongs to this model",
            )
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Ids of a text that begins a session, with the special tokens that the model expects before one. What it expects
    /// after one is left out: the text is to go on.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, true).map_err(|error| {
            let hint = "check that it belongs to this model";
            Error::tokenizer(&self.path, format!("cannot encode a text: {error}"), hint)
        })?;
        let (mut ids, special) = (encoding.get_ids().to_vec(), encoding.get_special_tokens_mask());
        while ids.len() > 1 && ids.last().copied() == self.eos && special.get(ids.len() - 1) == Some(&1) {
            ids.pop();
        }
        Ok(ids)
    }

    /// Text of ids; special tokens and ids that are no token are left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|error| {
            Error::tokenizer(&self.path, format!("cannot decode: {error}"), "check that it belongs to this model")
        })
    }

    /// A decoder for tokens that arrive one at a time.
    pub fn decoder(&self) -> StreamDecoder<'_> {
        StreamDecoder::new(self)
    }

    /// The token between documents.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Where it was read, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The token of an id that has text: neither special nor unknown.
    pub(super) fn text_token(&self, id: u32) -> Option<String> {
        let token = self.inner.id_to_token(id)?;
        (!self.inner.get_added_vocabulary().is_special_token(&token)).then_some(token)
    }

    /// Whether a text may be encoded in parts that end after a word, see [`super::split`].
    pub(super) fn splits_after_words(&self) -> bool {
        self.splits_after_words
    }
}
