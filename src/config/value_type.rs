//! Kinds of values: how each is read from the tree, what is wrong with it, and what it is in the JSON Schema.

use serde_json::{Value as Json, json};

use super::node::{Node, Value};
use super::sink::{Sink, shortened, suggestion};
use crate::mixer::{OptionKind, OptionSpec};

/// What a key holds. `read` reports every mistake to the sink and then gives `None`.
pub(super) trait Kind {
    type Out;

    fn read(&self, path: &str, node: &Node, sink: &mut Sink) -> Option<Self::Out>;

    /// JSON Schema without description and default.
    fn schema(&self) -> Json;

    /// A value (the default) as the recipe would write it.
    fn show(&self, value: &Self::Out) -> Json;
}

/// Says that `node` is not an `expected`. A string in place of a number may only have quotes too many.
fn wrong_type(path: &str, node: &Node, sink: &mut Sink, expected: &str, example: &str) {
    let hint = match &node.value {
        Value::String(text) if text.trim().parse::<f64>().is_ok() || text == "true" || text == "false" => {
            format!("write it without quotes: {}", shortened(text))
        }
        _ => format!("for example {example}"),
    };
    sink.add(&node.place, format!("`{path}` must be {expected}, not {}", node.value.type_name()), hint);
}

/// Text that is not empty.
pub(super) struct Text {
    pub example: &'static str,
}

impl Kind for Text {
    type Out = String;

    fn read(&self, path: &str, node: &Node, sink: &mut Sink) -> Option<String> {
        let text = match (&node.value, &node.raw) {
            (Value::String(text), _) => text,
            // `--set data.source=1984` names a file; only text in quotes or a list was meant as something else.
            (Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime, Some(raw)) => raw,
            _ => {
                wrong_type(path, node, sink, "a string", &format!("\"{}\"", self.example));
                return None;
            }
        };
        if text.trim().is_empty() {
            sink.add(&node.place, format!("`{path}` is empty"), format!("for example \"{}\"", self.example));
            return None;
        }
        Some(text.clone())
    }

    fn schema(&self) -> Json {
        json!({ "type": "string", "minLength": 1, "examples": [self.example] })
    }

    fn show(&self, value: &String) -> Json {
        value.as_str().into()
    }
}

/// A whole number in the inclusive range.
pub(super) struct Integer {
    pub min: u64,
    pub max: u64,
}

impl Kind for Integer {
    type Out = u64;

    fn read(&self, path: &str, node: &Node, sink: &mut Sink) -> Option<u64> {
        let Value::Integer(number) = node.value else {
            wrong_type(path, node, sink, "a whole number", &self.min.to_string());
            return None;
        };
        match u64::try_from(number) {
            Ok(number) if (self.min..=self.max).contains(&number) => Some(number),
            _ => {
                let hint = format!("from {} to {}", self.min, self.max);
                sink.add(&node.place, format!("`{path}` cannot be {}", shortened(&spell(number))), hint);
                None
            }
        }
    }

    fn schema(&self) -> Json {
        json!({ "type": "integer", "minimum": self.min, "maximum": self.max })
    }

    fn show(&self, value: &u64) -> Json {
        (*value).into()
    }
}

fn spell(number: i128) -> String {
    match number {
        i128::MAX | i128::MIN => "that large a number".into(),
        number => number.to_string(),
    }
}

/// A number in a range; whole numbers count as numbers.
pub(super) struct Number {
    min: f64,
    max: f64,
    min_open: bool,
    max_open: bool,
}

impl Number {
    pub fn from(min: f64) -> Self {
        Number { min, max: 1e12, min_open: false, max_open: false }
    }

    pub fn above(min: f64) -> Self {
        Number { min_open: true, ..Number::from(min) }
    }

    pub fn to(self, max: f64) -> Self {
        Number { max, ..self }
    }

    pub fn below(self, max: f64) -> Self {
        Number { max, max_open: true, ..self }
    }

    fn range(&self) -> String {
        let low = if self.min_open { "above" } else { "from" };
        let high = if self.max_open { "below" } else { "to" };
        match (self.min_open, self.max_open) {
            (true, false) => format!("above {} and at most {}", self.min, self.max),
            (true, true) => format!("above {} and below {}", self.min, self.max),
            _ => format!("{low} {} {high} {}", self.min, self.max),
        }
    }

    fn holds(&self, number: f64) -> bool {
        let low = if self.min_open { number > self.min } else { number >= self.min };
        let high = if self.max_open { number < self.max } else { number <= self.max };
        low && high
    }
}

impl Kind for Number {
    type Out = f64;

    fn read(&self, path: &str, node: &Node, sink: &mut Sink) -> Option<f64> {
        let number = match node.value {
            Value::Integer(number) => number as f64,
            Value::Float(number) => number,
            _ => {
                wrong_type(path, node, sink, "a number", &self.max.min(1.0).to_string());
                return None;
            }
        };
        if self.holds(number) {
            return Some(number);
        }
        sink.add(&node.place, format!("`{path}` cannot be {number:?}"), self.range());
        None
    }

    fn schema(&self) -> Json {
        let low = if self.min_open { "exclusiveMinimum" } else { "minimum" };
        let high = if self.max_open { "exclusiveMaximum" } else { "maximum" };
        json!({ "type": "number", low: self.min, high: self.max })
    }

    fn show(&self, value: &f64) -> Json {
        (*value).into()
    }
}

/// `true` or `false`.
pub(super) struct Flag;

impl Kind for Flag {
    type Out = bool;

    fn read(&self, path: &str, node: &Node, sink: &mut Sink) -> Option<bool> {
        match node.value {
            Value::Boolean(flag) => Some(flag),
            _ => {
                wrong_type(path, node, sink, "true or false", "true");
                None
            }
        }
    }

    fn schema(&self) -> Json {
        json!({ "type": "boolean" })
    }

    fn show(&self, value: &bool) -> Json {
        (*value).into()
    }
}

/// One of some words, each with the value it stands for.
pub(super) struct Choice<T>(pub Vec<(&'static str, T)>);

impl<T: Copy + PartialEq> Kind for Choice<T> {
    type Out = T;

    fn read(&self, path: &str, node: &Node, sink: &mut Sink) -> Option<T> {
        let words: Vec<&str> = self.0.iter().map(|(word, _)| *word).collect();
        let Value::String(word) = &node.value else {
            wrong_type(path, node, sink, "a string", &format!("\"{}\"", words[0]));
            return None;
        };
        let found = self.0.iter().find(|(known, _)| known == word).map(|(_, value)| *value);
        if found.is_none() {
            let what = format!("`{path}` cannot be `{}`", shortened(word));
            sink.add(&node.place, what, suggestion(word, &words, "one of"));
        }
        found
    }

    fn schema(&self) -> Json {
        json!({ "enum": self.0.iter().map(|(word, _)| *word).collect::<Vec<_>>() })
    }

    fn show(&self, value: &T) -> Json {
        self.0.iter().find(|(_, known)| known == value).map_or(Json::Null, |(word, _)| (*word).into())
    }
}

/// A list of at least `min` and at most `max` items; `distinct`: none twice.
pub(super) struct List<K> {
    pub item: K,
    pub min: usize,
    pub max: usize,
    pub distinct: bool,
    pub example: &'static str,
}

impl<K: Kind> Kind for List<K>
where
    K::Out: PartialEq,
{
    type Out = Vec<K::Out>;

    fn read(&self, path: &str, node: &Node, sink: &mut Sink) -> Option<Self::Out> {
        let Value::Array(items) = &node.value else {
            wrong_type(path, node, sink, "a list", self.example);
            return None;
        };
        let before = sink.count();
        if !(self.min..=self.max).contains(&items.len()) {
            let count = items.len();
            let allowed = match (self.min, self.max) {
                (min, max) if min == max => format!("exactly {min}"),
                (min, max) if count < min => format!("at least {min} and at most {max}"),
                (_, max) => format!("at most {max}"),
            };
            let what = format!("`{path}` has {count} {}", if count == 1 { "item" } else { "items" });
            sink.add(&node.place, what, format!("{allowed}, for example {}", self.example));
        }
        let mut values: Vec<K::Out> = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let Some(value) = self.item.read(&format!("{path}.{index}"), item, sink) else { continue };
            if self.distinct && values.contains(&value) {
                let shown = self.item.show(&value);
                sink.add(&item.place, format!("`{path}` names {shown} twice"), "remove one".to_string());
            } else {
                values.push(value);
            }
        }
        (sink.count() == before).then_some(values)
    }

    fn schema(&self) -> Json {
        let mut schema = json!({ "type": "array", "items": self.item.schema() });
        schema["minItems"] = self.min.into();
        schema["maxItems"] = self.max.into();
        if self.distinct {
            schema["uniqueItems"] = true.into();
        }
        schema
    }

    fn show(&self, value: &Self::Out) -> Json {
        value.iter().map(|item| self.item.show(item)).collect()
    }
}

/// An option of a mixer, by the mixer's own table.
pub(super) struct MixerOption(pub &'static OptionSpec);

impl Kind for MixerOption {
    type Out = Json;

    fn read(&self, path: &str, node: &Node, sink: &mut Sink) -> Option<Json> {
        let value = json_of(node);
        let Some(mistake) = self.0.mistake(&value) else { return Some(value) };
        // The mixer's sentence begins with the bare name; here the whole path stands for it.
        let bare = format!("`{}`", self.0.name);
        let what = mistake.replacen(&bare, &format!("`{path}`"), 1);
        sink.add(&node.place, what, self.0.help.to_string());
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

fn json_of(node: &Node) -> Json {
    match &node.value {
        Value::String(text) => text.clone().into(),
        Value::Integer(number) => i64::try_from(*number).map_or(Json::Null, Json::from),
        Value::Float(number) => (*number).into(),
        Value::Boolean(flag) => (*flag).into(),
        Value::Datetime => Json::Null,
        Value::Array(items) => items.iter().map(json_of).collect(),
        Value::Table(entries) => {
            Json::Object(entries.iter().map(|entry| (entry.key.clone(), json_of(&entry.node))).collect())
        }
    }
}
