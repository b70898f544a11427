//! One description per table, used twice.
//!
//! A table of the recipe is a function that takes a [`Table`], asks it for each key (name, kind, default, help) and
//! returns the typed value. Reading runs the function over a node of the text; keys that it did not ask for are
//! unknown. Describing runs it over nothing, and what it asked for becomes the JSON Schema. A key that chooses among
//! forms of the table ([`Table::variant`]) is described by running the function once for each form.

use serde_json::{Map, Value as Json, json};

use super::kinds::Kind;
use super::node::{Node, Place, Value};
use super::schema;
use super::sink::{Sink, list, shortened, suggestion};
use crate::checkpoint::nearest;

pub(super) struct Table<'a> {
    /// Dotted, as `--set` takes it; empty for the whole recipe.
    path: String,
    /// `None`: the table is absent, or is being described.
    node: Option<&'a Node>,
    sink: &'a mut Sink,
    /// Every key that was asked for.
    names: Vec<&'static str>,
    /// Unknown keys go unmentioned, since which keys are known is unknown itself.
    open: bool,
    /// Present while describing.
    description: Option<Description>,
}

#[derive(Default)]
struct Description {
    properties: Map<String, Json>,
    required: Vec<Json>,
    /// The form to describe; `None` on the first run, which only learns the forms.
    form: Option<&'static str>,
    forms: Vec<&'static str>,
}

/// Reads the table at `path`.
pub(super) fn read<T>(path: &str, node: Option<&Node>, sink: &mut Sink, table: &dyn Fn(&mut Table) -> T) -> T {
    let mut t = Table { path: path.into(), node, sink, names: Vec::new(), open: false, description: None };
    let value = table(&mut t);
    t.refuse_unknown_keys();
    value
}

/// The JSON Schema of a table.
pub(super) fn describe<T>(table: &dyn Fn(&mut Table) -> T) -> Json {
    let first = described(None, table);
    if first.forms.is_empty() {
        return object(first);
    }
    let forms: Vec<Json> = first.forms.iter().map(|&form| object(described(Some(form), table))).collect();
    json!({ "oneOf": forms })
}

fn described<T>(form: Option<&'static str>, table: &dyn Fn(&mut Table) -> T) -> Description {
    let mut unused = Sink::default();
    let description = Some(Description { form, ..Description::default() });
    let mut t =
        Table { path: String::new(), node: None, sink: &mut unused, names: Vec::new(), open: false, description };
    table(&mut t);
    t.description.unwrap_or_default()
}

fn object(description: Description) -> Json {
    let mut schema = json!({ "type": "object", "properties": description.properties, "additionalProperties": false });
    if !description.required.is_empty() {
        schema["required"] = description.required.into();
    }
    schema
}

impl<'a> Table<'a> {
    /// A key that must be there. `example` shows how to write it.
    pub fn required<K: Kind>(&mut self, name: &'static str, kind: K, example: &str, help: &str) -> K::Out
    where
        K::Out: Default,
    {
        self.property(name, help, true, &|| kind.schema());
        match self.take(name) {
            Some(node) => kind.read(&self.join(name), node, self.sink).unwrap_or_default(),
            None => {
                self.missing(name, &format!("write `{name} = {example}`"));
                K::Out::default()
            }
        }
    }

    /// A key with a default.
    pub fn optional<K: Kind>(&mut self, name: &'static str, kind: K, default: K::Out, help: &str) -> K::Out {
        self.property(name, help, false, &|| {
            let mut schema = kind.schema();
            schema["default"] = kind.show(&default);
            schema
        });
        match self.take(name) {
            Some(node) => kind.read(&self.join(name), node, self.sink).unwrap_or(default),
            None => default,
        }
    }

    /// A key that may be absent.
    pub fn maybe<K: Kind>(&mut self, name: &'static str, kind: K, help: &str) -> Option<K::Out> {
        self.property(name, help, false, &|| kind.schema());
        self.take(name).and_then(|node| kind.read(&self.join(name), node, self.sink))
    }

    /// A table whose keys all have defaults.
    pub fn table<T>(&mut self, name: &'static str, help: &str, table: impl Fn(&mut Table) -> T) -> T {
        self.property(name, help, false, &|| describe(&table));
        let node = self.take_table(name, "{ ... }");
        read(&self.join(name), node, self.sink, &table)
    }

    /// A table that may be absent.
    pub fn maybe_table<T>(&mut self, name: &'static str, help: &str, table: impl Fn(&mut Table) -> T) -> Option<T> {
        self.property(name, help, false, &|| describe(&table));
        let node = self.take_table(name, "{ ... }")?;
        Some(read(&self.join(name), Some(node), self.sink, &table))
    }

    /// A table that must be there; absent, it is one mistake and its own missing keys are none.
    pub fn required_table<T: Default>(
        &mut self,
        name: &'static str,
        example: &str,
        help: &str,
        table: impl Fn(&mut Table) -> T,
    ) -> T {
        self.property(name, help, true, &|| describe(&table));
        let written = self.node.is_some_and(|node| node.get(name).is_some());
        match self.take_table(name, "{ ... }") {
            Some(node) => read(&self.join(name), Some(node), self.sink, &table),
            None => {
                if !written {
                    let what = format!("the table `[{}]` is missing", self.join(name));
                    self.sink.missing(&Place::Nowhere, what, format!("add `[{name}]` with `{example}`"));
                }
                T::default()
            }
        }
    }

    /// One or more `[[name]]` tables; an item that is no table is a mistake and left out.
    pub fn tables<T>(
        &mut self,
        name: &'static str,
        example: &str,
        help: &str,
        table: impl Fn(&mut Table) -> T,
    ) -> Vec<T> {
        self.property(name, help, true, &|| json!({ "type": "array", "minItems": 1, "items": describe(&table) }));
        let path = self.join(name);
        let node = self.take(name);
        let hint = format!("write `[[{name}]]` and below it `{example}`");
        let Some(node) = node else {
            self.sink.missing(&Place::Nowhere, format!("there is no `[[{name}]]`"), hint);
            return Vec::new();
        };
        let Value::Array(items) = &node.value else {
            let double = format!("write `[[{name}]]`, with double brackets, before each one");
            self.sink.add(
                &node.place,
                format!("`{path}` must be a list of tables, not {}", node.value.type_name()),
                double,
            );
            return Vec::new();
        };
        if items.is_empty() {
            self.sink.add(&node.place, format!("there is no `[[{name}]]`"), hint);
        }
        let mut read_items = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let path = format!("{path}.{index}");
            match &item.value {
                Value::Table(_) => read_items.push(read(&path, Some(item), self.sink, &table)),
                other => {
                    let what = format!("`{path}` must be a table, not {}", other.type_name());
                    self.sink.add(&item.place, what, format!("write `[[{name}]]` and below it `{example}`"));
                }
            }
        }
        read_items
    }

    /// The key that chooses the form of this table, and the form. `None` after a mistake: nothing is known about the
    /// other keys then. Without a `default` the key must be there.
    pub fn variant(
        &mut self,
        name: &'static str,
        forms: &[(&'static str, &'static str)],
        default: Option<&'static str>,
        help: &str,
    ) -> Option<&'static str> {
        self.names.push(name);
        let words: Vec<&'static str> = forms.iter().map(|(word, _)| *word).collect();
        if let Some(description) = &mut self.description {
            description.forms.clone_from(&words);
            let form = description.form.or(words.first().copied())?;
            let about = forms.iter().find(|(word, _)| *word == form).map_or("", |(_, about)| *about);
            let mut schema = json!({ "description": format!("{help} `{form}`: {about}"), "const": form });
            if default == Some(form) {
                schema["default"] = form.into();
            } else {
                description.required.push(name.into());
            }
            description.properties.insert(name.into(), schema);
            return Some(form);
        }
        let path = self.join(name);
        let Some(node) = self.node.and_then(|node| node.get(name)) else {
            if default.is_none() {
                self.missing(name, &suggestion("", &words, "one of"));
                self.open = true;
            }
            return default;
        };
        let (what, hint) = match &node.value {
            Value::String(word) => match words.iter().find(|w| *w == word) {
                Some(form) => return Some(form),
                None => (format!("`{path}` is unknown: `{}`", shortened(word)), suggestion(word, &words, "there is")),
            },
            other => {
                (format!("`{path}` must be a string, not {}", other.type_name()), suggestion("", &words, "one of"))
            }
        };
        self.sink.add(&node.place, what, hint);
        self.open = true;
        None
    }

    /// A mistake of several keys together, shown at the one named by `path` (relative; the table when it is absent).
    pub fn wrong_at(&mut self, path: &str, what: impl Into<String>, hint: impl Into<String>) {
        let place = self.node.map_or(Place::Nowhere, |node| node.place_of(path));
        self.sink.add(&place, what, hint.into());
    }

    /// Where this table stands: `stage.0`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Compared before and after reading something, it tells whether there was a mistake.
    pub fn mistakes(&self) -> usize {
        self.sink.count()
    }

    fn join(&self, name: &str) -> String {
        if self.path.is_empty() { name.into() } else { format!("{}.{name}", self.path) }
    }

    fn take(&mut self, name: &'static str) -> Option<&'a Node> {
        self.names.push(name);
        self.node.and_then(|node| node.get(name))
    }

    fn take_table(&mut self, name: &'static str, example: &str) -> Option<&'a Node> {
        let node = self.take(name)?;
        if let Value::Table(_) = node.value {
            return Some(node);
        }
        let what = format!("`{}` must be a table, not {}", self.join(name), node.value.type_name());
        self.sink.add(&node.place, what, format!("write `{name} = {example}` or `[{}]`", self.join(name)));
        None
    }

    fn missing(&mut self, name: &str, hint: &str) {
        let place = self.node.map_or(Place::Nowhere, |node| node.place.clone());
        self.sink.missing(&place, format!("`{}` is missing", self.join(name)), hint.to_string());
    }

    fn property(&mut self, name: &'static str, help: &str, required: bool, schema: &dyn Fn() -> Json) {
        if let Some(description) = &mut self.description {
            let mut property = json!({ "description": help });
            merge(&mut property, schema());
            description.properties.insert(name.into(), property);
            if required {
                description.required.push(name.into());
            }
        }
    }

    fn refuse_unknown_keys(&mut self) {
        let Some(node) = self.node.filter(|_| !self.open) else { return };
        for entry in node.entries().iter().filter(|entry| !self.names.contains(&entry.key.as_str())) {
            let key = &entry.key;
            let what = format!("unknown key `{}`", shortened(&self.join(key)));
            let homes = match nearest(key, self.names.iter().copied()) {
                Some(_) => vec![],
                None => schema::homes_of(key),
            };
            let hint = match homes.is_empty() {
                true => suggestion(key, &self.names, "known here"),
                false => format!("`{key}` belongs to {}; known here: {}", homes.join(" or "), list(&self.names)),
            };
            self.sink.add(&entry.place, what, hint);
        }
    }
}

fn merge(target: &mut Json, more: Json) {
    if let (Json::Object(target), Json::Object(more)) = (target, more) {
        target.extend(more);
    }
}
