//! Typed reading of `config.json`: every refusal names the key, what it says, and what would be possible.

use std::path::Path;

use serde_json::{Map, Value};

use crate::checkpoint::shown;
use crate::error::{Error, Result};

/// One object of `config.json`, and its place for messages. `null` counts as absent everywhere.
pub(super) struct Fields<'a> {
    pub map: &'a Map<String, Value>,
    pub path: &'a Path,
}

impl<'a> Fields<'a> {
    /// What the key says, unless it is absent.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// A whole number from 1 to `most`.
    pub fn size(&self, key: &str, most: usize) -> Result<usize> {
        self.optional_size(key, most)?.ok_or_else(|| {
            self.wrong(format!("`{key}` is missing"), "every size of the model must be there: download the model again")
        })
    }

    /// As [`Fields::size`], where the key may be absent.
    pub fn optional_size(&self, key: &str, most: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if (1..=most).contains(&n) => Ok(Some(n)),
            _ => Err(self.impossible(key, value, &format!("a whole number from 1 to {most}"))),
        }
    }

    /// A number between the bounds, both included.
    pub fn number(&self, key: &str, least: f64, most: f64, absent: f64) -> Result<f64> {
        let Some(value) = self.get(key) else { return Ok(absent) };
        match value.as_f64() {
            Some(x) if (least..=most).contains(&x) => Ok(x),
            _ => Err(self.impossible(key, value, &format!("a number from {least} to {most}"))),
        }
    }

    /// `true` or `false`; absent means `false`.
    pub fn flag(&self, key: &str) -> Result<bool> {
        self.flag_or(key, false)
    }

    /// `true` or `false`.
    pub fn flag_or(&self, key: &str, absent: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(absent),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(self.impossible(key, value, "true or false")),
        }
    }

    /// A number above 0 and at most `most`, unless the key is absent.
    pub fn optional_positive(&self, key: &str, most: f64) -> Result<Option<f64>> {
        self.get(key).map(|_| self.number(key, f64::from(f32::MIN_POSITIVE), most, most)).transpose()
    }

    /// Whole numbers up to `most`; absent means none.
    pub fn list(&self, key: &str, most: usize) -> Result<Option<Vec<usize>>> {
        const MAX_LENGTH: usize = 1 << 12;
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n <= most);
        let list = value.as_array().filter(|list| list.len() <= MAX_LENGTH);
        let list = list.and_then(|list| list.iter().map(number).collect::<Option<Vec<usize>>>());
        list.map(Some).ok_or_else(|| self.impossible(key, value, &format!("a list of whole numbers up to {most}")))
    }

    /// A text.
    pub fn text(&self, key: &str, absent: &'a str) -> Result<&'a str> {
        match self.get(key) {
            None => Ok(absent),
            Some(Value::String(text)) => Ok(text),
            Some(value) => Err(self.impossible(key, value, "a text")),
        }
    }

    /// One token id or a list of them, each below `vocab`; absent means none.
    pub fn tokens(&self, key: &str, vocab: usize) -> Result<Vec<u32>> {
        const MAX_TOKENS: usize = 1000;
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let id = |v: &Value| v.as_u64().filter(|&id| id < vocab as u64).and_then(|id| u32::try_from(id).ok());
        let ids = match value {
            Value::Array(list) if list.len() <= MAX_TOKENS => list.iter().map(id).collect::<Option<Vec<u32>>>(),
            one => id(one).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.impossible(key, value, &format!("token ids below the vocabulary's {vocab}")))
    }

    /// The error for a key whose value cannot be.
    pub fn impossible(&self, key: &str, value: &Value, possible: &str) -> Error {
        self.wrong(
            format!("`{key}` is {}; it must be {possible}", shown(&value.to_string())),
            "`config.json` is damaged or of another kind of model: download or copy it again",
        )
    }

    /// The error for something that the decoder does not do.
    pub fn unsupported(&self, what: impl Into<String>) -> Error {
        self.wrong(what, "a conversion would compute something else than this teacher does, so it is refused; choose another teacher")
    }

    pub fn wrong(&self, what: impl Into<String>, hint: &str) -> Error {
        Error::config(self.path, what, hint)
    }
}
