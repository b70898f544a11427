//! The JSON Schema is fresh, and agrees with the reader.

use std::path::Path;

use serde_json::Value;
use subquad::recipe::schema;

use super::{VALID, mistakes};

/// `SUBQUAD_BLESS=1 cargo test` writes the file again.
#[test]
fn the_committed_schema_is_fresh() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/schema.json");
    if std::env::var_os("SUBQUAD_BLESS").is_some() {
        std::fs::write(&path, schema()).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == schema(), "recipes/schema.json is stale: run `SUBQUAD_BLESS=1 cargo test --test recipe`");
}

#[test]
fn the_schema_refuses_what_the_reader_refuses() {
    let schema: Value = serde_json::from_str(&schema()).unwrap();
    let json = |text: &str| serde_json::to_value(toml::from_str::<toml::Table>(text).unwrap()).unwrap();
    assert_eq!(violations(&schema, &json(VALID), ""), Vec::<String>::new());
    for (from, to) in [
        ("seed = 7", "seed = -1"),
        ("seed = 7", "sed = 7"),
        ("model = \"builtin:books-llama-7m\"", ""),
        ("\"hedgehog\"", "\"hedgehok\""),
        ("size = 64", "size = 0"),
        ("joint", "liger"),
        ("[0, 5]", "[0, 0]"),
        ("[0, 5]", "{ every = 1 }"),
        ("\"600K\"", "0"),
        ("\"600K\"", "\"600K\"\noptimizer = { lr = 0 }"),
        ("\"600K\"", "\"600K\"\noptimizer = { betas = [0.9, 1.0] }"),
        ("\"600K\"", "\"600K\"\nschedule = { kind = \"cosine\", factor = 0.1 }"),
        ("300_000", "300_000\nlora = { on = [\"x\"] }"),
        ("kind = \"merge\"", "kind = \"merge\"\ntokens = 3"),
        ("text = \"builtin:books-valid\"", ""),
    ] {
        let text = VALID.replace(from, to);
        assert!(!mistakes(&text, &[]).is_empty(), "{to}");
        assert!(!violations(&schema, &json(&text), "").is_empty(), "{to}");
    }
}

/// The part of JSON Schema that ours uses, without `pattern`.
pub fn violations(schema: &Value, data: &Value, path: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |holds: bool, what: &str| {
        if !holds {
            found.push(format!("{path}: {what}"));
        }
    };
    let forms = |word: &str| {
        schema[word].as_array().map(|forms| forms.iter().filter(|f| violations(f, data, path).is_empty()).count())
    };
    check(forms("oneOf").is_none_or(|count| count == 1), "oneOf");
    check(forms("anyOf").is_none_or(|count| count > 0), "anyOf");
    check(schema.get("const").is_none_or(|word| word == data), "const");
    check(schema["enum"].as_array().is_none_or(|words| words.contains(data)), "enum");
    check(
        schema["type"].as_str().is_none_or(|kind| match kind {
            "object" => data.is_object(),
            "array" => data.is_array(),
            "string" => data.is_string(),
            "boolean" => data.is_boolean(),
            "integer" => data.is_i64(),
            "number" => data.is_number(),
            _ => false,
        }),
        "type",
    );
    if let Some(number) = data.as_f64() {
        check(schema["minimum"].as_f64().is_none_or(|min| number >= min), "minimum");
        check(schema["maximum"].as_f64().is_none_or(|max| number <= max), "maximum");
        check(schema["exclusiveMinimum"].as_f64().is_none_or(|min| number > min), "exclusiveMinimum");
        check(schema["exclusiveMaximum"].as_f64().is_none_or(|max| number < max), "exclusiveMaximum");
    }
    if let Some(items) = data.as_array() {
        let count = items.len() as u64;
        check(schema["minItems"].as_u64().is_none_or(|min| count >= min), "minItems");
        check(schema["maxItems"].as_u64().is_none_or(|max| count <= max), "maxItems");
        let distinct = (1..items.len()).all(|i| !items[..i].contains(&items[i]));
        check(schema["uniqueItems"] != true || distinct, "uniqueItems");
        for (index, item) in items.iter().enumerate().filter(|_| schema.get("items").is_some()) {
            found.extend(violations(&schema["items"], item, &format!("{path}.{index}")));
        }
    } else if let Some(object) = data.as_object() {
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            check(object.contains_key(name), &format!("{name} is required"));
        }
        for (name, value) in object.iter().filter(|_| schema.get("properties").is_some()) {
            match schema["properties"].get(name) {
                Some(property) => found.extend(violations(property, value, &format!("{path}.{name}"))),
                None => found.push(format!("{path}.{name}: unknown")),
            }
        }
    }
    found
}
