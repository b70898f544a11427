//! JSON Schema (draft 7) of the functions that read tables.
//!
//! A table with forms lists the keys of all forms once, for completion, and then what each form allows, by `if` and
//! `then`: a validator names the wrong key rather than every form that does not fit. The conditions stand inside one
//! `then` since taplo, which completes TOML in editors, passes over a table that has `allOf` itself.

use serde_json::{Map, Value as Json, json};

use super::form::Form;

/// What a table has asked for.
#[derive(Default)]
pub struct Description {
    properties: Map<String, Json>,
    required: Vec<Json>,
    /// The form to describe; `None` on the first run, which only learns the forms.
    form: Option<&'static str>,
    selector: Option<Selector>,
}

/// A key that chooses the form of its table.
struct Selector {
    key: &'static str,
    default: Option<&'static str>,
    forms: Vec<&'static str>,
}

impl Description {
    /// A description of this form of the table alone.
    pub fn of_form(form: &'static str) -> Self {
        Description { form: Some(form), ..Description::default() }
    }

    /// The forms of the table; none if no key chooses among forms.
    pub fn forms(&self) -> &[&'static str] {
        self.selector.as_ref().map_or(&[], |selector| &selector.forms)
    }

    /// The schema, given the descriptions of each of the forms.
    pub fn schema(self, forms: Vec<Description>) -> Json {
        match &self.selector {
            None => self.of_keys(),
            Some(selector) => {
                let forms: Vec<Json> = forms.into_iter().map(Description::of_keys).collect();
                by_form(selector, &forms)
            }
        }
    }

    pub fn property(&mut self, name: &'static str, help: &str, required: bool, schema: Json) {
        let mut property = json!({ "description": help });
        extend(&mut property, schema);
        self.properties.insert(name.into(), property);
        if required {
            self.required.push(name.into());
        }
    }

    /// Notes the selector and gives the form that this run describes.
    pub fn variant<'f, F: Form>(
        &mut self,
        key: &'static str,
        forms: &'f [F],
        default: Option<&'static str>,
        help: &str,
    ) -> Option<&'f F> {
        let names: Vec<&'static str> = forms.iter().map(Form::name).collect();
        let about: Vec<String> = forms.iter().map(|form| format!("`{}`: {}", form.name(), form.about())).collect();
        // taplo's own keyword: a line for each value, shown as it is chosen.
        let mut schema = json!({ "enum": names, "x-taplo": { "docs": { "enumValues": about } } });
        if let Some(default) = default {
            schema["default"] = default.into();
        }
        self.property(key, help, false, schema);
        self.selector = Some(Selector { key, default, forms: names });
        forms.iter().find(|form| self.form.is_none_or(|wanted| form.name() == wanted))
    }

    fn of_keys(self) -> Json {
        let mut schema = json!({ "type": "object", "properties": self.properties, "additionalProperties": false });
        if !self.required.is_empty() {
            schema["required"] = self.required.into();
        }
        schema
    }
}

fn by_form(selector: &Selector, forms: &[Json]) -> Json {
    let properties = united(forms);
    let rules: Vec<Json> = forms.iter().map(|form| rule(form, &properties)).collect();
    let condition = |word: &&str| json!({ "properties": { selector.key: { "const": word } } });
    let conditions =
        selector.forms.iter().zip(&rules).map(|(word, rule)| json!({ "if": condition(word), "then": rule }));
    let mut schema = json!({
        "type": "object",
        "properties": properties,
        "if": { "required": [selector.key] },
        "then": { "allOf": conditions.collect::<Vec<_>>() },
    });
    match selector.forms.iter().position(|form| Some(*form) == selector.default) {
        Some(default) => schema["else"] = rules[default].clone(),
        None => schema["required"] = json!([selector.key]),
    }
    schema
}

/// The keys of all forms: what is the same in every form that has a key, and otherwise what an editor shows of it.
fn united(forms: &[Json]) -> Map<String, Json> {
    let mut all: Map<String, Json> = Map::new();
    for name in forms.iter().filter_map(|form| form["properties"].as_object()).flat_map(Map::keys) {
        if !all.contains_key(name) {
            let variants: Vec<&Json> = forms.iter().filter_map(|form| form["properties"].get(name)).collect();
            let same = variants.iter().all(|variant| *variant == variants[0]);
            all.insert(name.clone(), if same { variants[0].clone() } else { outline(&variants) });
        }
    }
    all
}

/// Descriptions and names of keys without constraints, which are those of the forms.
fn outline(variants: &[&Json]) -> Json {
    let mut outline = Map::new();
    for word in ["description", "default", "examples"] {
        let first = &variants[0][word];
        if !first.is_null() && variants.iter().all(|variant| variant[word] == *first) {
            outline.insert(word.into(), first.clone());
        }
    }
    let mut properties: Map<String, Json> = Map::new();
    for name in variants.iter().filter_map(|variant| variant["properties"].as_object()).flat_map(Map::keys) {
        if !properties.contains_key(name) {
            let inner: Vec<&Json> = variants.iter().filter_map(|variant| variant["properties"].get(name)).collect();
            properties.insert(name.clone(), self::outline(&inner));
        }
    }
    if !properties.is_empty() {
        outline.insert("properties".into(), properties.into());
    }
    outline.into()
}

/// A form with the keys that `common` has whole as `true`.
fn rule(form: &Json, common: &Map<String, Json>) -> Json {
    let mut rule = form.clone();
    for (name, property) in rule["properties"].as_object_mut().into_iter().flatten() {
        if common.get(name) == Some(property) {
            *property = true.into();
        }
    }
    rule
}

/// Adds the keywords of `more`.
pub fn extend(target: &mut Json, more: Json) {
    if let (Json::Object(target), Json::Object(more)) = (target, more) {
        target.extend(more);
    }
}

/// The tables of a schema from [`describe`] that know `key`, for a key that was written into another one.
pub fn owners_of(schema: &Json, key: &str) -> Vec<String> {
    let mut owners = Vec::new();
    search(schema, key, "", &mut owners);
    owners
}

fn search(schema: &Json, key: &str, path: &str, owners: &mut Vec<String>) {
    let forms: Vec<&Json> = schema["then"]["allOf"].as_array().into_iter().flatten().collect();
    let knows = |form: &&&Json| form["then"]["properties"].get(key).is_some();
    if !forms.is_empty() && forms.iter().filter(knows).count() < forms.len() {
        // The form is part of the answer.
        forms.iter().filter(knows).for_each(|form| add(owners, table_name(path, Some(&form["if"]))));
    } else if schema["properties"].get(key).is_some() {
        add(owners, table_name(path, None));
    }
    // What differs between forms stands in their rules, and here in outline only.
    let rules: Vec<&Json> = forms.iter().map(|form| &form["then"]["properties"]).collect();
    let whole = |name: &str| rules.is_empty() || rules.iter().any(|rule| rule[name] == true);
    let common = schema["properties"].as_object().into_iter().flatten().filter(|(name, _)| whole(name));
    for (name, property) in rules.iter().filter_map(|rule| rule.as_object()).flatten().chain(common) {
        let inner = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        search(property, key, &inner, owners);
    }
    if let Some(items) = schema.get("items") {
        search(items, key, path, owners);
    }
}

/// Once each: tables in several forms are the same table.
fn add(owners: &mut Vec<String>, owner: String) {
    if !owners.contains(&owner) {
        owners.push(owner);
    }
}

/// `stage.schedule`, with `kind = "plateau"` where a condition chooses the form.
fn table_name(path: &str, condition: Option<&Json>) -> String {
    let table = if path.is_empty() { "the top of the file".into() } else { format!("`{path}`") };
    let chosen = condition.and_then(|condition| condition["properties"].as_object()?.iter().next());
    chosen.map_or(table.clone(), |(name, word)| format!("{table} with `{name} = {}`", word["const"]))
}
