//! Types of values: how each is read from the tree, what is wrong with it, and what it is in the JSON Schema.

use std::fmt::Display;

use serde_json::{Value as Json, json};

use super::diagnostics::{Diagnostics, shortened, suggestion};
use super::spanned::{Spanned, Value};

/// What a key holds. `read` reports every error to `diagnostics` and then gives `None`.
pub trait ValueType {
    type Out;

    fn read(&self, path: &str, given: &Spanned, diagnostics: &mut Diagnostics) -> Option<Self::Out>;

    /// JSON Schema without description and default.
    fn schema(&self) -> Json;

    /// A value (the default) as the file would write it.
    fn show(&self, value: &Self::Out) -> Json;
}

/// Says that `given` is not an `expected`. A string in place of a number may only have quotes too many.
fn wrong_type(path: &str, given: &Spanned, diagnostics: &mut Diagnostics, expected: &str, example: &str) {
    let hint = match &given.value {
        Value::String(text) if text.trim().parse::<f64>().is_ok() || text == "true" || text == "false" => {
            format!("write it without quotes: {}", shortened(text))
        }
        _ => format!("for example {example}"),
    };
    diagnostics.add(&given.span, format!("`{path}` must be {expected}, not {}", given.value.type_name()), hint);
}

/// Text that is not empty.
pub struct Text {
    pub example: &'static str,
}

impl ValueType for Text {
    type Out = String;

    fn read(&self, path: &str, given: &Spanned, diagnostics: &mut Diagnostics) -> Option<String> {
        let text = match (&given.value, &given.raw) {
            (Value::String(text), _) => text,
            // `--set data.source=1984` names a file; only text in quotes or a list was meant as something else.
            (Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime, Some(raw)) => raw,
            _ => {
                wrong_type(path, given, diagnostics, "a string", &format!("\"{}\"", self.example));
                return None;
            }
        };
        if text.trim().is_empty() {
            diagnostics.add(&given.span, format!("`{path}` is empty"), format!("for example \"{}\"", self.example));
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

/// A whole number in the inclusive range, of the type of the field that it is for.
pub struct Integer<N> {
    pub min: N,
    pub max: N,
}

impl<N: Copy + PartialOrd + Display + TryFrom<i128> + Into<Json>> ValueType for Integer<N> {
    type Out = N;

    fn read(&self, path: &str, given: &Spanned, diagnostics: &mut Diagnostics) -> Option<N> {
        let Value::Integer(number) = given.value else {
            wrong_type(path, given, diagnostics, "a whole number", &self.min.to_string());
            return None;
        };
        let within = N::try_from(number).ok().filter(|number| (self.min..=self.max).contains(number));
        if within.is_none() {
            let hint = format!("from {} to {}", self.min, self.max);
            diagnostics.add(&given.span, format!("`{path}` cannot be {}", shortened(&spell(number))), hint);
        }
        within
    }

    fn schema(&self) -> Json {
        json!({ "type": "integer", "minimum": self.min.into(), "maximum": self.max.into() })
    }

    fn show(&self, value: &N) -> Json {
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
pub struct Number {
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

impl ValueType for Number {
    type Out = f64;

    fn read(&self, path: &str, given: &Spanned, diagnostics: &mut Diagnostics) -> Option<f64> {
        let number = match given.value {
            Value::Integer(number) => number as f64,
            Value::Float(number) => number,
            _ => {
                wrong_type(path, given, diagnostics, "a number", &self.max.min(1.0).to_string());
                return None;
            }
        };
        if self.holds(number) {
            return Some(number);
        }
        diagnostics.add(&given.span, format!("`{path}` cannot be {number:?}"), self.range());
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
pub struct Flag;

impl ValueType for Flag {
    type Out = bool;

    fn read(&self, path: &str, given: &Spanned, diagnostics: &mut Diagnostics) -> Option<bool> {
        match given.value {
            Value::Boolean(flag) => Some(flag),
            _ => {
                wrong_type(path, given, diagnostics, "true or false", "true");
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
pub struct Choice<T>(pub Vec<(&'static str, T)>);

impl<T: Copy + PartialEq> ValueType for Choice<T> {
    type Out = T;

    fn read(&self, path: &str, given: &Spanned, diagnostics: &mut Diagnostics) -> Option<T> {
        let words: Vec<&str> = self.0.iter().map(|(word, _)| *word).collect();
        let Value::String(word) = &given.value else {
            wrong_type(path, given, diagnostics, "a string", &format!("\"{}\"", words[0]));
            return None;
        };
        let found = self.0.iter().find(|(known, _)| known == word).map(|(_, value)| *value);
        if found.is_none() {
            let what = format!("`{path}` cannot be `{}`", shortened(word));
            diagnostics.add(&given.span, what, suggestion(word, &words, "one of"));
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
pub struct List<V> {
    pub item: V,
    pub min: usize,
    pub max: usize,
    pub distinct: bool,
    pub example: &'static str,
}

impl<V: ValueType> ValueType for List<V>
where
    V::Out: PartialEq,
{
    type Out = Vec<V::Out>;

    fn read(&self, path: &str, given: &Spanned, diagnostics: &mut Diagnostics) -> Option<Self::Out> {
        let Value::Array(items) = &given.value else {
            wrong_type(path, given, diagnostics, "a list", self.example);
            return None;
        };
        let before = diagnostics.count();
        if !(self.min..=self.max).contains(&items.len()) {
            let count = items.len();
            let allowed = match (self.min, self.max) {
                (min, max) if min == max => format!("exactly {min}"),
                (min, max) if count < min => format!("at least {min} and at most {max}"),
                (_, max) => format!("at most {max}"),
            };
            let what = format!("`{path}` has {count} {}", if count == 1 { "item" } else { "items" });
            diagnostics.add(&given.span, what, format!("{allowed}, for example {}", self.example));
        }
        let mut values: Vec<V::Out> = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let Some(value) = self.item.read(&format!("{path}.{index}"), item, diagnostics) else { continue };
            if self.distinct && values.contains(&value) {
                let shown = self.item.show(&value);
                diagnostics.add(&item.span, format!("`{path}` names {shown} twice"), "remove one".to_string());
            } else {
                values.push(value);
            }
        }
        (diagnostics.count() == before).then_some(values)
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
