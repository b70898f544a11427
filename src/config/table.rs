//! One description per table, used twice.
//!
//! A table of the file is a function that takes a [`Table`], asks it for each key (name, type, default, help) and
//! returns the typed value. Reading runs the function over the text's tree; keys that it did not ask for are unknown.
//! Describing runs it over nothing, and what it asked for becomes the JSON Schema ([`describe`]). A key that chooses
//! among forms of the table ([`Table::variant`]) is described by running the function once for each form.

use serde_json::{Value as Json, json};

use super::diagnostics::{Diagnostics, backticked, shortened, suggestion};
use super::form::Form;
use super::schema::Description;
use super::span::Span;
use super::spanned::{Spanned, Value};
use super::value_type::ValueType;
use crate::checkpoint::nearest;

/// A table while it is read or described.
pub struct Table<'a> {
    /// Dotted, as `--set` takes it; empty for the whole file.
    path: String,
    /// `None`: the table is absent, or is being described.
    given: Option<&'a Spanned>,
    diagnostics: &'a mut Diagnostics,
    /// Every key that was asked for.
    names: Vec<&'static str>,
    /// Unknown keys go unmentioned, since which keys are known is unknown itself.
    open: bool,
    /// Present while describing.
    description: Option<Description>,
}

/// Reads a whole file.
pub fn read<T>(root: &Spanned, diagnostics: &mut Diagnostics, table: &dyn Fn(&mut Table) -> T) -> T {
    read_at("", Some(root), diagnostics, table)
}

/// Reads the table at `path`; absent, its defaults.
pub fn read_at<T>(
    path: &str,
    given: Option<&Spanned>,
    diagnostics: &mut Diagnostics,
    table: &dyn Fn(&mut Table) -> T,
) -> T {
    let mut t = Table { path: path.into(), given, diagnostics, names: Vec::new(), open: false, description: None };
    let value = table(&mut t);
    t.refuse_unknown_keys();
    value
}

/// The JSON Schema of a table.
pub fn describe<T>(table: &dyn Fn(&mut Table) -> T) -> Json {
    let first = described(Description::default(), table);
    let forms = first.forms().iter().map(|&form| described(Description::of_form(form), table)).collect();
    first.schema(forms)
}

/// The JSON Schema of one or more `[[name]]` tables.
fn tables_schema<T>(table: &dyn Fn(&mut Table) -> T) -> Json {
    json!({ "type": "array", "minItems": 1, "items": describe(table) })
}

/// What `table` asks for.
fn described<T>(description: Description, table: &dyn Fn(&mut Table) -> T) -> Description {
    let mut unused = Diagnostics::new(|_| Vec::new());
    let mut t = Table {
        path: String::new(),
        given: None,
        diagnostics: &mut unused,
        names: Vec::new(),
        open: false,
        description: Some(description),
    };
    table(&mut t);
    t.description.unwrap_or_default()
}

impl<'a> Table<'a> {
    /// A key that must be there. `example` shows how to write it.
    pub fn required<V: ValueType>(&mut self, name: &'static str, value_type: V, example: &str, help: &str) -> V::Out
    where
        V::Out: Default,
    {
        self.property(name, help, true, &|| value_type.schema());
        match self.take(name) {
            Some(given) => value_type.read(&self.join(name), given, self.diagnostics).unwrap_or_default(),
            None => {
                self.missing(name, &format!("write `{name} = {example}`"));
                V::Out::default()
            }
        }
    }

    /// A key with a default.
    pub fn optional<V: ValueType>(&mut self, name: &'static str, value_type: V, default: V::Out, help: &str) -> V::Out {
        self.property(name, help, false, &|| {
            let mut schema = value_type.schema();
            schema["default"] = value_type.show(&default);
            schema
        });
        match self.take(name) {
            Some(given) => value_type.read(&self.join(name), given, self.diagnostics).unwrap_or(default),
            None => default,
        }
    }

    /// A key that may be absent.
    pub fn maybe<V: ValueType>(&mut self, name: &'static str, value_type: V, help: &str) -> Option<V::Out> {
        self.property(name, help, false, &|| value_type.schema());
        self.take(name).and_then(|given| value_type.read(&self.join(name), given, self.diagnostics))
    }

    /// A table whose keys all have defaults.
    pub fn table<T>(&mut self, name: &'static str, help: &str, table: impl Fn(&mut Table) -> T) -> T {
        self.property(name, help, false, &|| describe(&table));
        let given = self.take_table(name, "{ ... }");
        read_at(&self.join(name), given, self.diagnostics, &table)
    }

    /// A table that may be absent.
    pub fn maybe_table<T>(&mut self, name: &'static str, help: &str, table: impl Fn(&mut Table) -> T) -> Option<T> {
        self.property(name, help, false, &|| describe(&table));
        let given = self.take_table(name, "{ ... }")?;
        Some(read_at(&self.join(name), Some(given), self.diagnostics, &table))
    }

    /// A table that must be there; absent, it is one error and its own missing keys are none.
    pub fn required_table<T: Default>(
        &mut self,
        name: &'static str,
        example: &str,
        help: &str,
        table: impl Fn(&mut Table) -> T,
    ) -> T {
        self.property(name, help, true, &|| describe(&table));
        let written = self.given.is_some_and(|given| given.get(name).is_some());
        match self.take_table(name, "{ ... }") {
            Some(given) => read_at(&self.join(name), Some(given), self.diagnostics, &table),
            None => {
                if !written {
                    let what = format!("the table `[{}]` is missing", self.join(name));
                    self.diagnostics.add(&Span::Nowhere, what, format!("add `[{name}]` with `{example}`"));
                }
                T::default()
            }
        }
    }

    /// One or more `[[name]]` tables; an item that is no table is an error and left out.
    pub fn tables<T>(
        &mut self,
        name: &'static str,
        example: &str,
        help: &str,
        table: impl Fn(&mut Table) -> T,
    ) -> Vec<T> {
        self.property(name, help, true, &|| tables_schema(&table));
        let path = self.join(name);
        let given = self.take(name);
        let hint = format!("write `[[{name}]]` and below it `{example}`");
        let Some(given) = given else {
            self.diagnostics.add(&Span::Nowhere, format!("there is no `[[{name}]]`"), hint);
            return Vec::new();
        };
        let Value::Array(items) = &given.value else {
            let double = format!("write `[[{name}]]`, with double brackets, before each one");
            self.diagnostics.add(
                &given.span,
                format!("`{path}` must be a list of tables, not {}", given.value.type_name()),
                double,
            );
            return Vec::new();
        };
        if items.is_empty() {
            self.diagnostics.add(&given.span, format!("there is no `[[{name}]]`"), hint);
        }
        let mut read_items = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let path = format!("{path}.{index}");
            match &item.value {
                Value::Table(_) => read_items.push(read_at(&path, Some(item), self.diagnostics, &table)),
                other => {
                    let what = format!("`{path}` must be a table, not {}", other.type_name());
                    self.diagnostics.add(&item.span, what, format!("write `[[{name}]]` and below it `{example}`"));
                }
            }
        }
        read_items
    }

    /// The key that chooses the form of this table, and the form. `None` after an error: nothing is known about the
    /// other keys then. Without a `default` the key must be there.
    pub fn variant<'f, F: Form>(
        &mut self,
        name: &'static str,
        forms: &'f [F],
        default: Option<&'static str>,
        help: &str,
    ) -> Option<&'f F> {
        self.names.push(name);
        if let Some(description) = &mut self.description {
            return description.variant(name, forms, default, help);
        }
        let find = |word: &str| forms.iter().find(|form| form.name() == word);
        let words: Vec<&str> = forms.iter().map(Form::name).collect();
        let path = self.join(name);
        let Some(given) = self.given.and_then(|given| given.get(name)) else {
            if default.is_none() {
                self.missing(name, &suggestion("", &words, "one of"));
                self.open = true;
            }
            return default.and_then(find);
        };
        let (what, hint) = match &given.value {
            Value::String(word) => match find(word) {
                Some(form) => return Some(form),
                None => (format!("`{path}` is unknown: `{}`", shortened(word)), suggestion(word, &words, "there is")),
            },
            other => {
                (format!("`{path}` must be a string, not {}", other.type_name()), suggestion("", &words, "one of"))
            }
        };
        self.diagnostics.add(&given.span, what, hint);
        self.open = true;
        None
    }

    /// An error of several keys together, shown at the one named by `path` (relative; the table when it is absent).
    pub fn wrong_at(&mut self, path: &str, what: impl Into<String>, hint: impl Into<String>) {
        let span = self.given.map_or(Span::Nowhere, |given| given.span_of(path));
        self.diagnostics.add(&span, what, hint.into());
    }

    /// Where this table stands: `stage.0`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Compared before and after reading something, it tells whether there was an error.
    pub fn errors(&self) -> usize {
        self.diagnostics.count()
    }

    fn join(&self, name: &str) -> String {
        if self.path.is_empty() { name.into() } else { format!("{}.{name}", self.path) }
    }

    fn take(&mut self, name: &'static str) -> Option<&'a Spanned> {
        self.names.push(name);
        self.given.and_then(|given| given.get(name))
    }

    fn take_table(&mut self, name: &'static str, example: &str) -> Option<&'a Spanned> {
        let given = self.take(name)?;
        if let Value::Table(_) = given.value {
            return Some(given);
        }
        let what = format!("`{}` must be a table, not {}", self.join(name), given.value.type_name());
        self.diagnostics.add(&given.span, what, format!("write `{name} = {example}` or `[{}]`", self.join(name)));
        None
    }

    fn missing(&mut self, name: &str, hint: &str) {
        let span = self.given.map_or(Span::Nowhere, |given| given.span.clone());
        self.diagnostics.add(&span, format!("`{}` is missing", self.join(name)), hint.to_string());
    }

    fn property(&mut self, name: &'static str, help: &str, required: bool, schema: &dyn Fn() -> Json) {
        if let Some(description) = &mut self.description {
            description.property(name, help, required, schema());
        }
    }

    fn refuse_unknown_keys(&mut self) {
        let Some(given) = self.given.filter(|_| !self.open) else { return };
        for entry in given.entries().iter().filter(|entry| !self.names.contains(&entry.key.as_str())) {
            let key = &entry.key;
            let what = format!("unknown key `{}`", shortened(&self.join(key)));
            let owners = match nearest(key, self.names.iter().copied()) {
                Some(_) => vec![],
                None => self.diagnostics.owners(key),
            };
            let hint = if owners.is_empty() {
                suggestion(key, &self.names, "known here")
            } else {
                format!("`{key}` belongs to {}; known here: {}", owners.join(" or "), backticked(&self.names))
            };
            self.diagnostics.add(&entry.span, what, hint);
        }
    }
}
