//! The recipe's text as a tree in which every value knows its place: the text, or a `--set`.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Where a value was written.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Place {
    /// Bytes of the recipe's text.
    Text(Range<usize>),
    /// The `--set` argument, as typed.
    Set(String),
    /// Nowhere: something that is missing altogether.
    Nowhere,
}

/// A value and its place.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub place: Place,
    pub value: Value,
    /// The text behind `=` of a `--set`, which a key that takes text uses as it stands.
    pub raw: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    String(String),
    /// Saturated at the ends of `i128`, far outside of every range that a key allows.
    Integer(i128),
    Float(f64),
    Boolean(bool),
    Datetime,
    Array(Vec<Node>),
    /// In the order of the text.
    Table(Vec<Entry>),
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub key: String,
    pub place: Place,
    pub node: Node,
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

impl Node {
    pub fn new(place: Place, value: Value) -> Self {
        Node { place, value, raw: None }
    }

    pub fn empty_table(place: Place) -> Self {
        Node::new(place, Value::Table(Vec::new()))
    }

    pub fn from_table(table: &DeTable<'_>, place: &dyn Fn(Range<usize>) -> Place, span: Range<usize>) -> Self {
        let mut entries: Vec<(usize, Entry)> = table
            .iter()
            .map(|(key, value)| {
                let entry = Entry {
                    key: key.get_ref().to_string(),
                    place: place(key.span()),
                    node: Node::from_value(value, place),
                };
                (key.span().start, entry)
            })
            .collect();
        entries.sort_by_key(|(start, _)| *start);
        Node::new(place(span), Value::Table(entries.into_iter().map(|(_, entry)| entry).collect()))
    }

    pub fn from_value(value: &Spanned<DeValue<'_>>, place: &dyn Fn(Range<usize>) -> Place) -> Self {
        let converted = match value.get_ref() {
            DeValue::String(text) => Value::String(text.to_string()),
            DeValue::Integer(number) => Value::Integer(integer(number.as_str(), number.radix())),
            DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(flag) => Value::Boolean(*flag),
            DeValue::Datetime(_) => Value::Datetime,
            DeValue::Array(items) => Value::Array(items.iter().map(|item| Node::from_value(item, place)).collect()),
            DeValue::Table(table) => return Node::from_table(table, place, value.span()),
        };
        Node::new(place(value.span()), converted)
    }

    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Table(entries) => entries,
            _ => &[],
        }
    }

    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Table(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node),
            Value::Array(items) => key.parse::<usize>().ok().and_then(|index| items.get(index)),
            _ => None,
        }
    }

    /// The place of the value at a dotted path, or of the last table on the way that exists.
    pub fn place_of(&self, path: &str) -> Place {
        let mut node = self;
        for key in path.split('.').filter(|key| !key.is_empty()) {
            match node.get(key) {
                Some(next) => node = next,
                None => break,
            }
        }
        node.place.clone()
    }
}

fn integer(text: &str, radix: u32) -> i128 {
    let limit = if text.starts_with('-') { i128::MIN } else { i128::MAX };
    i128::from_str_radix(text, radix).unwrap_or(limit)
}
