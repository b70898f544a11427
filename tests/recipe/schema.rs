//! The JSON Schema is fresh, and agrees with the reader.

use std::path::Path;

use serde_json::Value;
use subquad::recipe::schema;

use super::{VALID, errors};

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
        assert!(!errors(&text, &[]).is_empty(), "{to}");
        assert!(!violations(&schema, &json(&text), "").is_empty(), "{to}");
    }
}

fn json(text: &str) -> Value {
    serde_json::to_value(toml::from_str::<toml::Table>(text).unwrap()).unwrap()
}

/// An editor shows one error at the wrong key, whatever the form of the table.
#[test]
fn the_schema_names_the_wrong_key_alone() {
    let schema: Value = serde_json::from_str(&schema()).unwrap();
    for (from, to, expected) in [
        ("\"600K\"", "\"600K\"\nrank = 3", ".stage.0.rank: unknown"),
        ("\"600K\"", "\"600K\"\noptimizer = { lr = 0 }", ".stage.0.optimizer.lr: exclusiveMinimum"),
        ("\"600K\"", "\"600K\"\noptimizer = { lrr = 1 }", ".stage.0.optimizer.lrr: unknown"),
        ("\"600K\"", "\"600K\"\nloss = { labels = 1 }", ".stage.0.loss.labels: unknown"),
        ("\"600K\"", "\"600K\"\nschedule = { kind = \"cosine\", factor = 0.1 }", ".stage.0.schedule.factor: unknown"),
        ("\"600K\"", "\"600K\"\nschedule = { facto = 0.1 }", ".stage.0.schedule.facto: unknown"),
        ("\"600K\"", "\"600K\"\nschedule = { kind = \"cosin\", factor = 0.1 }", ".stage.0.schedule.kind: enum"),
        ("\"lora\"", "\"loar\"", ".stage.1.kind: enum"),
        ("kind = \"lora\"", "", ".stage.1: kind is required"),
        ("tokens = 300_000", "", ".stage.1: tokens is required"),
        ("kind = \"merge\"", "kind = \"merge\"\ntokens = 3", ".stage.2.tokens: unknown"),
        ("text = \"builtin:books-valid\"", "text = 3", ".stage.3.text: type"),
        ("\"hedgehog\"", "\"hedgehok\"", ".student.mixer: enum"),
        ("\"hedgehog\"", "\"hedgehog\"\nfeature_with = 3", ".student.feature_with: unknown"),
        ("\"hedgehog\"", "\"gla\"\nfeature_width = 3", ".student.feature_width: unknown"),
        ("\"hedgehog\"", "\"hedgehog\"\nfeature_width = 0", ".student.feature_width: minimum"),
        ("size = 64", "size = 0", ".student.window.size: minimum"),
    ] {
        assert_eq!(VALID.matches(from).count(), 1, "{from}");
        let text = VALID.replace(from, to);
        let text = if to.contains("\"gla\"") { text.replace("combine = \"joint\"", "sinks = 0") } else { text };
        assert_eq!(violations(&schema, &json(&text), ""), [expected], "{to}");
        assert_eq!(errors(&text, &[]).len(), 1, "{to}");
    }
}

#[test]
fn sixteen_errors_are_sixteen_in_the_schema_too() {
    let text = "sed = 7\n[teacher]\nmodle = \"x\"\n[student]\nmixer = \"hedgehog\"\nfeature_with = 3\n\
        window = { combine = \"liger\", sink = 4 }\n[data]\nsource = \"x\"\nsequence = \"512\"\n\
        [[stage]]\nkind = \"attention-transfer\"\nrank = 3\nbatch = { size = 0, acumulate = 2 }\n\
        [[stage]]\nkind = \"loar\"\n[[stage]]\nkind = \"lora\"\ntokens = 0\nlora = { on = [\"x\"] }\n\
        [[stage]]\nkind = \"evaluate\"\ntext = \"\"\n";
    let schema: Value = serde_json::from_str(&schema()).unwrap();
    assert_eq!(errors(text, &[]).len(), 16, "{:#?}", errors(text, &[]));
    let mut expected = vec![
        ".sed: unknown",
        ".teacher: model is required",
        ".teacher.modle: unknown",
        ".student.feature_with: unknown",
        ".student.window: size is required",
        ".student.window.combine: enum",
        ".student.window.sink: unknown",
        ".data.sequence: type",
        ".stage.0: tokens is required",
        ".stage.0.rank: unknown",
        ".stage.0.batch.size: minimum",
        ".stage.0.batch.acumulate: unknown",
        ".stage.1.kind: enum",
        ".stage.2.tokens: minimum",
        ".stage.2.lora.on.0: enum",
        ".stage.3.text: minLength",
    ];
    let mut found = violations(&schema, &json(text), "");
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected);
}

/// The part of JSON Schema that ours uses, without `pattern`.
pub fn violations(schema: &Value, data: &Value, path: &str) -> Vec<String> {
    let mut found = Vec::new();
    let fits = |schema: &Value| violations(schema, data, path).is_empty();
    let mut check = |holds: bool, what: &str| {
        if !holds {
            found.push(format!("{path}: {what}"));
        }
    };
    check(schema.get("const").is_none_or(|word| word == data), "const");
    check(schema["enum"].as_array().is_none_or(|words| words.contains(data)), "enum");
    let is = |kind: &Value| match kind.as_str() {
        Some("object") => data.is_object(),
        Some("array") => data.is_array(),
        Some("string") => data.is_string(),
        Some("boolean") => data.is_boolean(),
        Some("integer") => data.is_i64(),
        Some("number") => data.is_number(),
        _ => false,
    };
    let types = schema["type"].as_array().map_or(std::slice::from_ref(&schema["type"]), Vec::as_slice);
    check(schema["type"].is_null() || types.iter().any(is), "type");
    check(data.as_str().is_none_or(|text| text.len() as u64 >= schema["minLength"].as_u64().unwrap_or(0)), "minLength");
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
        for (name, value) in object {
            match schema["properties"].get(name) {
                Some(property) => found.extend(violations(property, value, &format!("{path}.{name}"))),
                None if schema["additionalProperties"] == false => found.push(format!("{path}.{name}: unknown")),
                None => (),
            }
        }
    }
    found.extend(schema["allOf"].as_array().into_iter().flatten().flat_map(|all| violations(all, data, path)));
    if let Some(condition) = schema.get("if") {
        let branch = if fits(condition) { "then" } else { "else" };
        found.extend(violations(&schema[branch], data, path));
    }
    found
}
