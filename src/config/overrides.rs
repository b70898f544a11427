//! `--set a.b.0.c=value`: overrides, applied to the tree before it is read, so that they are checked like the text.

use toml::de::DeValue;

use super::diagnostics::{Diagnostics, shortened};
use super::span::Span;
use super::spanned::{Entry, Spanned, Value, too_deep};

/// Parts of the longest key; those of real files have a handful.
const MAX_PARTS: usize = 16;

/// Applies `KEY=VALUE` arguments in order; a later one wins. `example` is one of them, for hints.
pub fn apply(root: &mut Spanned, sets: &[String], example: &str, diagnostics: &mut Diagnostics) {
    for argument in sets {
        let span = Span::Set(argument.clone());
        if let Err((what, hint)) = apply_one(root, argument, example, &span) {
            diagnostics.add(&span, what, hint);
        }
    }
}

type Refusal = (String, Option<String>);

fn apply_one(root: &mut Spanned, argument: &str, example: &str, span: &Span) -> Result<(), Refusal> {
    let refused = |what: &str| (what.to_string(), Some(format!("for example `--set {example}`")));
    let (key, text) = argument.split_once('=').ok_or_else(|| refused("KEY=VALUE is expected"))?;
    let parts: Vec<&str> = key.trim().split('.').map(str::trim).collect();
    if parts.iter().any(|part| part.is_empty()) || parts.len() > MAX_PARTS {
        return Err(refused("this is not a dotted key"));
    }
    let text = text.trim();
    if text.is_empty() {
        return Err(refused("the value is missing"));
    }
    insert(root, &parts, value(text, span)?, span, "")
}

/// A TOML value; text that is none is a string, so that `tokens=1M` and `kind=cosine` need no quotes in a shell.
fn value(text: &str, span: &Span) -> Result<Spanned, Refusal> {
    if too_deep(text).is_some() {
        return Err(("this value nests too deep".into(), None));
    }
    let mut value = match DeValue::parse(text) {
        Ok(value) => Spanned::from_value(&value, &|_| span.clone()),
        Err(error) if text.starts_with(['[', '{', '"', '\'']) => {
            return Err((format!("the value is not valid TOML: {}", error.message()), None));
        }
        Err(_) => Spanned::new(span.clone(), Value::String(text.into())),
    };
    value.raw = Some(text.into());
    Ok(value)
}

fn insert(target: &mut Spanned, parts: &[&str], value: Spanned, span: &Span, path: &str) -> Result<(), Refusal> {
    let Some((&part, rest)) = parts.split_first() else {
        *target = value;
        return Ok(());
    };
    let here = shortened(path);
    let path = if path.is_empty() { part.to_string() } else { format!("{path}.{part}") };
    match &mut target.value {
        Value::Table(entries) => {
            let index = entries.iter().position(|entry| entry.key == part).unwrap_or_else(|| {
                let table = Spanned::empty_table(span.clone());
                entries.push(Entry { key: part.into(), span: span.clone(), value: table });
                entries.len() - 1
            });
            insert(&mut entries[index].value, rest, value, span, &path)
        }
        Value::Array(items) => {
            let count = items.len();
            let item = part.parse::<usize>().ok().and_then(|index| items.get_mut(index)).ok_or_else(|| {
                let hint = match count {
                    0 => format!("`{here}` is empty"),
                    1 => format!("`{here}` has one item, number 0"),
                    n => format!("`{here}` has {n} items, numbers 0 to {}", n - 1),
                };
                (format!("there is no `{}`", shortened(&path)), Some(hint))
            })?;
            insert(item, rest, value, span, &path)
        }
        other => Err((format!("`{here}` is {}, it holds no `{}`", other.type_name(), shortened(part)), None)),
    }
}
