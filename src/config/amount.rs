//! Amounts with a unit: `"6M"`, `"5GB"`.

use serde_json::{Value as Json, json};

use super::diagnostics::{Diagnostics, shortened};
use super::spanned::{Spanned, Value};
use super::value_type::ValueType;

/// What is counted, and by which units.
pub struct Amount {
    pub noun: &'static str,
    pub units: &'static [(&'static str, u64)],
    pub example: &'static str,
    /// The largest amount, and how it is written.
    pub max: (u64, &'static str),
}

enum Refused {
    Unreadable(Option<String>),
    Zero,
    Negative,
    TooLarge,
    Fraction,
}

impl Amount {
    fn parse(&self, text: &str) -> Result<u64, Refused> {
        match text.strip_prefix('-') {
            Some(positive) => self.parse_positive(positive).and(Err(Refused::Negative)),
            None => self.parse_positive(text),
        }
    }

    fn parse_positive(&self, text: &str) -> Result<u64, Refused> {
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (digits, unit) = text.split_at(split);
        let Some(scale) = self.scale(unit) else {
            let wished = unit.trim();
            let near = self.units.iter().find(|(known, _)| known.eq_ignore_ascii_case(wished));
            let written = near.filter(|_| !digits.is_empty()).map(|(known, _)| format!("{digits}{known}"));
            return Err(Refused::Unreadable(written));
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
        if whole.is_empty() || fraction.is_empty() || fraction.contains('.') || fraction.len() > 12 {
            return Err(Refused::Unreadable(None));
        }
        let number = |digits: &str| digits.parse::<u128>().map_err(|_| Refused::TooLarge);
        let whole = number(whole)?.checked_mul(u128::from(scale)).ok_or(Refused::TooLarge)?;
        let part = number(fraction)? * u128::from(scale);
        let tenths = 10u128.pow(fraction.len() as u32);
        if part % tenths != 0 {
            return Err(Refused::Fraction);
        }
        self.within(whole.saturating_add(part / tenths))
    }

    fn scale(&self, unit: &str) -> Option<u64> {
        if unit.is_empty() {
            return Some(1);
        }
        self.units.iter().find(|(known, _)| *known == unit).map(|(_, scale)| *scale)
    }

    fn within(&self, number: u128) -> Result<u64, Refused> {
        match u64::try_from(number) {
            Ok(0) => Err(Refused::Zero),
            Ok(number) if number <= self.max.0 => Ok(number),
            _ => Err(Refused::TooLarge),
        }
    }

    fn usage(&self) -> String {
        format!("a number of {} such as \"{}\" or a whole number", self.noun, self.example)
    }
}

impl ValueType for Amount {
    type Out = u64;

    fn read(&self, path: &str, given: &Spanned, diagnostics: &mut Diagnostics) -> Option<u64> {
        let (result, written) = match &given.value {
            Value::String(text) => (self.parse(text.trim()), format!("\"{}\"", shortened(text))),
            Value::Integer(number) if *number < 0 => (Err(Refused::Negative), number.to_string()),
            Value::Integer(number) => (self.within(*number as u128), number.to_string()),
            other => {
                let what = format!("`{path}` must be {}, not {}", self.usage(), other.type_name());
                diagnostics.add(&given.span, what, format!("for example \"{}\"", self.example));
                return None;
            }
        };
        let noun = self.noun;
        let (what, hint) = match result {
            Ok(number) => return Some(number),
            Err(Refused::Unreadable(Some(meant))) => {
                (format!("`{path}` cannot be {written}"), format!("did you mean \"{meant}\"?"))
            }
            Err(Refused::Unreadable(None)) => (format!("`{path}` cannot be {written}"), self.usage()),
            Err(Refused::Zero) => (format!("`{path}` cannot be zero"), format!("for example \"{}\"", self.example)),
            Err(Refused::Negative) => {
                (format!("`{path}` cannot be negative"), format!("for example \"{}\"", self.example))
            }
            Err(Refused::TooLarge) => {
                (format!("`{path}` cannot be {}", shortened(&written)), format!("at most {} {noun}", self.max.1))
            }
            Err(Refused::Fraction) => {
                (format!("`{path}` is not a whole number of {noun}"), format!("for example \"{}\"", self.example))
            }
        };
        diagnostics.add(&given.span, what, hint);
        None
    }

    fn schema(&self) -> Json {
        let units: Vec<&str> = self.units.iter().map(|(unit, _)| *unit).collect();
        let pattern = format!("^[0-9]+(\\.[0-9]+)?({})?$", units.join("|"));
        // Each constraint is about values of its own type.
        json!({
            "type": ["integer", "string"], "minimum": 1, "maximum": self.max.0, "pattern": pattern,
            "examples": [self.example],
        })
    }

    fn show(&self, value: &u64) -> Json {
        let unit = self.units.iter().filter(|(_, scale)| value.is_multiple_of(*scale)).max_by_key(|(_, scale)| *scale);
        unit.map_or((*value).into(), |(unit, scale)| format!("{}{unit}", value / scale).into())
    }
}
