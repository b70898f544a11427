//! TOML text as a tree in which every value knows where it was written: in the text, or in a `--set`.

use std::ops::Range;

use toml::de::{DeTable, DeValue, Error as TomlError};

use super::diagnostics::{Diagnostics, shortened};
use super::span::Span;

/// Dots between two separators. Dotted keys nest one table per dot, and depth is stack.
const MAX_DOTS: usize = 200;

/// A value and its span.
#[derive(Debug, Clone)]
pub struct Spanned {
    pub span: Span,
    pub value: Value,
    /// The text behind `=` of a `--set`, which a key that takes text uses as it stands.
    pub raw: Option<String>,
}

#[derive(Debug, Clone)]
pub enum Value {
    String(String),
    /// Saturated at the ends of `i128`, far outside of every range that a key allows.
    Integer(i128),
    Float(f64),
    Boolean(bool),
    Datetime,
    Array(Vec<Spanned>),
    /// In the order of the text.
    Table(Vec<Entry>),
}

#[derive(Debug, Clone)]
pub struct Entry {
    pub key: String,
    pub span: Span,
    pub value: Spanned,
}

impl Value {
    /// For "must be ..., not ...".
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::String(_) => "a string",
            Value::Integer(_) => "a whole number",
            Value::Float(_) => "a floating-point number",
            Value::Boolean(_) => "true or false",
            Value::Datetime => "a date",
            Value::Array(_) => "a list",
            Value::Table(_) => "a table",
        }
    }
}

impl Spanned {
    pub fn new(span: Span, value: Value) -> Self {
        Spanned { span, value, raw: None }
    }

    pub fn empty_table(span: Span) -> Self {
        Spanned::new(span, Value::Table(Vec::new()))
    }

    /// The tree of a whole text. A text that is not TOML is one error, since what follows it cannot be relied on.
    pub fn parse(text: &str, diagnostics: &mut Diagnostics) -> Option<Spanned> {
        if let Some(at) = too_deep(text) {
            diagnostics.add(&Span::Text(at..at + 1), "this key has too many parts", None);
            return None;
        }
        match DeTable::parse(text) {
            Ok(table) => {
                let mut root = Spanned::from_table(table.get_ref(), &Span::Text, 0..0);
                root.span = Span::Nowhere;
                Some(root)
            }
            Err(error) => {
                syntax_error(text, &error, diagnostics);
                None
            }
        }
    }

    fn from_table(table: &DeTable<'_>, span: &dyn Fn(Range<usize>) -> Span, at: Range<usize>) -> Self {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let entries = entries.into_iter().map(|(key, value)| Entry {
            key: key.get_ref().to_string(),
            span: span(key.span()),
            value: Spanned::from_value(value, span),
        });
        Spanned::new(span(at), Value::Table(entries.collect()))
    }

    pub fn from_value(value: &toml::Spanned<DeValue<'_>>, span: &dyn Fn(Range<usize>) -> Span) -> Self {
        let converted = match value.get_ref() {
            DeValue::String(text) => Value::String(text.to_string()),
            DeValue::Integer(number) => Value::Integer(integer(number.as_str(), number.radix())),
            DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(flag) => Value::Boolean(*flag),
            DeValue::Datetime(_) => Value::Datetime,
            DeValue::Array(items) => Value::Array(items.iter().map(|item| Spanned::from_value(item, span)).collect()),
            DeValue::Table(table) => return Spanned::from_table(table, span, value.span()),
        };
        Spanned::new(span(value.span()), converted)
    }

    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Table(entries) => entries,
            _ => &[],
        }
    }

    pub fn get(&self, key: &str) -> Option<&Spanned> {
        match &self.value {
            Value::Table(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value),
            Value::Array(items) => key.parse::<usize>().ok().and_then(|index| items.get(index)),
            _ => None,
        }
    }

    /// The span of the value at a dotted path, or of the last table on the way that exists.
    pub fn span_of(&self, path: &str) -> Span {
        let mut value = self;
        for key in path.split('.').filter(|key| !key.is_empty()) {
            match value.get(key) {
                Some(next) => value = next,
                None => break,
            }
        }
        value.span.clone()
    }
}

fn integer(text: &str, radix: u32) -> i128 {
    let limit = if text.starts_with('-') { i128::MIN } else { i128::MAX };
    i128::from_str_radix(text, radix).unwrap_or(limit)
}

/// Where keys nest so deep that reading them would need too much stack.
pub fn too_deep(text: &str) -> Option<usize> {
    let mut dots = 0;
    text.bytes().position(|byte| {
        match byte {
            b'.' => dots += 1,
            b'=' | b',' | b'[' | b']' | b'{' | b'}' | b'#' | b'\n' => dots = 0,
            _ => (),
        }
        dots > MAX_DOTS
    })
}

/// The parser's own message at its span. The hint is read off the text there, not off the message.
fn syntax_error(text: &str, error: &TomlError, diagnostics: &mut Diagnostics) {
    let span = error.span().unwrap_or(text.len()..text.len());
    let found = text.get(span.clone()).unwrap_or("");
    let is_value = text.get(..span.start).is_some_and(|before| before.trim_end_matches([' ', '\t']).ends_with('='));
    let hint = match found.chars().next() {
        None if is_value => Some("write a value behind `=`".into()),
        Some(first) if is_value && first.is_alphabetic() => {
            Some(format!("text needs quotes: \"{}\"", shortened(found)))
        }
        _ => None,
    };
    diagnostics.add(&Span::Text(span), format!("not valid TOML: {}", error.message()), hint);
}
