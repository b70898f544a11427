//! Types of values that only recipes have.

use serde_json::{Value as Json, json};

use super::types::KeepSoftmax;
use crate::config::{Amount, Diagnostics, Integer, List, Spanned, Table, Value, ValueType, describe, extend, read_at};
use crate::mixer::{OptionKind, OptionSpec};

/// Bytes; GB as the Hub counts them, GiB in powers of two.
pub(super) const BYTES: Amount = Amount {
    noun: "bytes",
    units: &[
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
    ],
    example: "5GB",
    max: (1_000_000_000_000_000, "1000TB"),
};

/// `keep_softmax`: a list of layers or `{ every = n }`.
pub(super) struct KeepLayers;

impl KeepLayers {
    fn list() -> List<Integer<usize>> {
        List { item: Integer { min: 0, max: 9_999 }, min: 0, max: 10_000, distinct: true, example: "[0, 11]" }
    }

    fn every(t: &mut Table) -> KeepSoftmax {
        let help = "The last of every so many layers keeps softmax: 3, 7, 11, ... for 4.";
        let every = t.required("every", Integer { min: 2, max: 10_000 }, "4", help);
        KeepSoftmax::Every { every }
    }
}

impl ValueType for KeepLayers {
    type Out = KeepSoftmax;

    fn read(&self, path: &str, given: &Spanned, diagnostics: &mut Diagnostics) -> Option<KeepSoftmax> {
        match &given.value {
            Value::Table(_) => Some(read_at(path, Some(given), diagnostics, &Self::every)),
            Value::Array(_) => Self::list().read(path, given, diagnostics).map(KeepSoftmax::Layers),
            other => {
                let what = format!("`{path}` must be a list of layers or a table, not {}", other.type_name());
                diagnostics.add(&given.span, what, "for example [0, 11] or { every = 4 }".to_string());
                None
            }
        }
    }

    fn schema(&self) -> Json {
        // Each constraint is about values of its own type.
        let mut schema = describe(&Self::every);
        extend(&mut schema, Self::list().schema());
        schema["type"] = json!(["array", "object"]);
        schema
    }

    fn show(&self, value: &KeepSoftmax) -> Json {
        serde_json::to_value(value).unwrap_or(Json::Null)
    }
}

/// An option of a mixer, by the mixer's own table.
pub(super) struct MixerOption(pub &'static OptionSpec);

impl ValueType for MixerOption {
    type Out = Json;

    fn read(&self, path: &str, given: &Spanned, diagnostics: &mut Diagnostics) -> Option<Json> {
        let value = json_of(given);
        let Some(mistake) = self.0.mistake(&value) else { return Some(value) };
        // The mixer's sentence begins with the bare name; here the whole path stands for it.
        let bare = format!("`{}`", self.0.name);
        let what = mistake.replacen(&bare, &format!("`{path}`"), 1);
        diagnostics.add(&given.span, what, self.0.help.to_string());
        None
    }

    fn schema(&self) -> Json {
        match self.0.kind {
            OptionKind::Integer { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
            OptionKind::Number { min, max } => json!({ "type": "number", "minimum": min, "maximum": max }),
            OptionKind::Choice(words) => json!({ "enum": words }),
            OptionKind::Flag => json!({ "type": "boolean" }),
        }
    }

    fn show(&self, value: &Json) -> Json {
        value.clone()
    }
}

fn json_of(given: &Spanned) -> Json {
    match &given.value {
        Value::String(text) => text.clone().into(),
        Value::Integer(number) => i64::try_from(*number).map_or(Json::Null, Json::from),
        Value::Float(number) => (*number).into(),
        Value::Boolean(flag) => (*flag).into(),
        Value::Datetime => Json::Null,
        Value::Array(items) => items.iter().map(json_of).collect(),
        Value::Table(entries) => {
            Json::Object(entries.iter().map(|entry| (entry.key.clone(), json_of(&entry.value))).collect())
        }
    }
}
