//! Descriptions of a mixer's own options: one table per mixer, read by the recipe, its schema and the help.

use crate::checkpoint::{nearest, shown};
use serde_json::Value;

/// What values an option takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OptionKind {
    /// A whole number in the inclusive range.
    Integer { min: i64, max: i64 },
    /// A number in the inclusive range.
    Number { min: f64, max: f64 },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `true` or `false`.
    Flag,
}

/// One option of a mixer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptionSpec {
    pub name: &'static str,
    pub kind: OptionKind,
    /// The default as JSON text (`"64"`, `"\"identity\""`); `"null"`: derived from the teacher.
    pub default: &'static str,
    /// One sentence: effect, unit, and where the default comes from.
    pub help: &'static str,
}

impl OptionSpec {
    /// Why `value` cannot be used, or `None` when it can.
    pub fn mistake(&self, value: &Value) -> Option<String> {
        match self.kind {
            OptionKind::Integer { min, max } => match value.as_i64() {
                Some(v) if (min..=max).contains(&v) => None,
                _ => Some(format!("`{}` must be a whole number from {min} to {max}", self.name)),
            },
            OptionKind::Number { min, max } => match value.as_f64() {
                Some(v) if v >= min && v <= max => None,
                _ => Some(format!("`{}` must be a number from {min} to {max}", self.name)),
            },
            OptionKind::Choice(words) => match value.as_str() {
                Some(v) if words.contains(&v) => None,
                _ => Some(format!("`{}` must be one of {}", self.name, words.join(", "))),
            },
            OptionKind::Flag => {
                value.is_boolean().then_some(()).is_none().then(|| format!("`{}` must be true or false", self.name))
            }
        }
    }

    /// The default as a value.
    pub fn default_value(&self) -> Value {
        serde_json::from_str(self.default).expect("defaults in tables are valid JSON, held by a test")
    }
}

/// A mixer's options with defaults filled in, as they stand in an exported config.json too.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options(serde_json::Map<String, Value>);

impl Options {
    /// `given` over the defaults of `specs`; the first mistake as an error (recipes report all of them beforehand).
    pub fn new(specs: &[OptionSpec], given: &serde_json::Map<String, Value>) -> crate::Result<Self> {
        let bad = |what: String| crate::Error::usage(what, "`subquad mixers NAME` explains the options of a mixer");
        if let Some(name) = given.keys().find(|k| !specs.iter().any(|s| s.name == **k)) {
            let hint = suggestion(name, specs.iter().map(|s| s.name));
            return Err(crate::Error::usage(format!("unknown mixer option `{}`", shown(name)), hint));
        }
        let mut all = serde_json::Map::new();
        for spec in specs {
            match given.get(spec.name).filter(|v| !v.is_null()) {
                Some(value) => match spec.mistake(value) {
                    Some(what) => return Err(bad(what)),
                    None => all.insert(spec.name.into(), value.clone()),
                },
                None => all.insert(spec.name.into(), spec.default_value()),
            };
        }
        Ok(Options(all))
    }

    pub fn values(&self) -> &serde_json::Map<String, Value> {
        &self.0
    }

    /// A whole number, or `derived` when the option was left to the teacher's sizes.
    pub fn integer(&self, name: &str, derived: usize) -> usize {
        self.0.get(name).and_then(Value::as_u64).map_or(derived, |v| v as usize)
    }

    pub fn flag(&self, name: &str) -> bool {
        self.0.get(name).and_then(Value::as_bool).unwrap_or(false)
    }

    pub fn number(&self, name: &str) -> f64 {
        self.0.get(name).and_then(Value::as_f64).unwrap_or(0.0)
    }

    pub fn word(&self, name: &str) -> &str {
        self.0.get(name).and_then(Value::as_str).unwrap_or("")
    }
}

/// What `word` may have meant, and what there is.
pub(super) fn suggestion<'a>(word: &str, names: impl Iterator<Item = &'a str> + Clone) -> String {
    let list = names.clone().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let near = nearest(word, names).map(|near| format!("did you mean `{near}`? "));
    let list = if list.is_empty() { "none".into() } else { list };
    format!("{}there is: {list}", near.unwrap_or_default())
}
