//! `--set a.b.0.c=value`: overrides, applied to the tree before it is read, so that they are checked like the text.

use toml::de::DeValue;

use super::node::{Entry, Node, Place, Value};
use super::sink::{Sink, shortened};
use super::syntax::too_deep;

/// Parts of the longest key; the recipe's own keys have at most five.
const MOST_PARTS: usize = 16;

/// Applies `KEY=VALUE` arguments in order; a later one wins.
pub(super) fn apply(root: &mut Node, sets: &[String], sink: &mut Sink) {
    for argument in sets {
        let place = Place::Set(argument.clone());
        if let Err((what, hint)) = apply_one(root, argument, &place) {
            sink.add(&place, what, hint);
        }
    }
}

type Refusal = (String, Option<String>);

fn apply_one(root: &mut Node, argument: &str, place: &Place) -> Result<(), Refusal> {
    const EXAMPLE: &str = "for example `--set stage.0.tokens=1M`";
    let (key, text) =
        argument.split_once('=').ok_or_else(|| ("KEY=VALUE is expected".to_string(), Some(EXAMPLE.to_string())))?;
    let parts: Vec<&str> = key.trim().split('.').map(str::trim).collect();
    if parts.iter().any(|part| part.is_empty()) || parts.len() > MOST_PARTS {
        return Err(("this is not a dotted key".into(), Some(EXAMPLE.into())));
    }
    let text = text.trim();
    if text.is_empty() {
        return Err(("the value is missing".into(), Some(EXAMPLE.into())));
    }
    insert(root, &parts, value(text, place)?, place, "")
}

/// A TOML value; text that is none is a string, so that `tokens=1M` and `kind=cosine` need no quotes in a shell.
fn value(text: &str, place: &Place) -> Result<Node, Refusal> {
    if too_deep(text).is_some() {
        return Err(("this value nests too deep".into(), None));
    }
    let mut node = match DeValue::parse(text) {
        Ok(value) => Node::from_value(&value, &|_| place.clone()),
        Err(error) if text.starts_with(['[', '{', '"', '\'']) => {
            return Err((format!("the value is not valid TOML: {}", error.message()), None));
        }
        Err(_) => Node::new(place.clone(), Value::String(text.into())),
    };
    node.raw = Some(text.into());
    Ok(node)
}

fn insert(node: &mut Node, parts: &[&str], value: Node, place: &Place, path: &str) -> Result<(), Refusal> {
    let Some((&part, rest)) = parts.split_first() else {
        *node = value;
        return Ok(());
    };
    let here = shortened(path);
    let path = if path.is_empty() { part.to_string() } else { format!("{path}.{part}") };
    match &mut node.value {
        Value::Table(entries) => {
            let index = entries.iter().position(|entry| entry.key == part).unwrap_or_else(|| {
                entries.push(Entry { key: part.into(), place: place.clone(), node: Node::empty_table(place.clone()) });
                entries.len() - 1
            });
            insert(&mut entries[index].node, rest, value, place, &path)
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
            insert(item, rest, value, place, &path)
        }
        other => Err((format!("`{here}` is {}, it holds no `{}`", other.type_name(), shortened(part)), None)),
    }
}
