//! Text from tokens that arrive one at a time.

use super::Tokenizer;
use crate::{Error, Result};

/// Turns tokens into text as they come, for generation.
///
/// Pieces hold whole characters only, and all pieces together equal [`Tokenizer::decode`] of all tokens. What can still
/// change with the next token, such as half a character, is held back; [`StreamDecoder::finish`] gives it out.
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    /// The tokens of the last piece, then those that are held back. Decoders treat the first token of a text in its own
    /// way (they strip its space), so new tokens are decoded together with some that came before them.
    ids: Vec<u32>,
    /// How many of `ids` were given out.
    given: usize,
}

impl<'a> StreamDecoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), given: 0 }
    }

    /// Takes the next token; gives the text that is certain now, often one word, sometimes nothing.
    pub fn push(&mut self, id: u32) -> Result<String> {
        // Special and unknown tokens have no text, whatever stands around them.
        let Some(token) = self.tokenizer.text_token(id) else { return Ok(String::new()) };
        self.ids.push(id);
        // A run of byte tokens is decoded as one: a later byte can still make all of it invalid.
        if is_byte(&token) {
            return Ok(String::new());
        }
        let text = self.tokenizer.decode(&self.ids)?;
        // Decoding ends so when the bytes of a character are not all there.
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        let new = self.rest(&text)?.to_owned();
        if !new.is_empty() {
            self.ids.drain(..self.given);
            self.given = self.ids.len();
        }
        Ok(new)
    }

    /// Gives out what was held back, at the end of the tokens.
    pub fn finish(self) -> Result<String> {
        let text = self.tokenizer.decode(&self.ids)?;
        Ok(self.rest(&text)?.to_owned())
    }

    /// The part of `text` that was not given out.
    fn rest<'t>(&self, text: &'t str) -> Result<&'t str> {
        let given = self.tokenizer.decode(&self.ids[..self.given])?;
        text.strip_prefix(&given).ok_or_else(|| {
            let what = "its decoder changes earlier text when later tokens arrive";
            Error::tokenizer(self.tokenizer.path(), what, "such a tokenizer cannot be used to generate text")
        })
    }
}

/// `<0x0A>`: the form of a token that stands for one byte.
fn is_byte(token: &str) -> bool {
    let hex = token.strip_prefix("<0x").and_then(|token| token.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && hex.bytes().all(|digit| digit.is_ascii_hexdigit()))
}
