//! `subquad mixers`

use serde_json::{Value, json};

use super::format::{Align, table};
use super::printer::Printer;
use crate::checkpoint::nearest;
use crate::mixer::{self, MIXERS, OptionKind, OptionSpec, Registration};
use crate::{Error, Result};

/// List the mechanisms that can replace softmax attention, or explain one with its options
#[derive(clap::Args)]
pub(super) struct Args {
    /// Explain this one
    name: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(&self, printer: &Printer) -> Result<()> {
        let one = self.name.as_deref().map(find).transpose()?;
        match (one, self.json) {
            (Some(mixer), true) => printer.json(&as_json(mixer)),
            (None, true) => printer.json(&MIXERS.iter().map(as_json).collect::<Vec<_>>()),
            (Some(mixer), false) => printer.data(explained(mixer)),
            (None, false) => {
                let row = |mixer: &Registration| vec![mixer.name.to_string(), mixer.summary.to_string()];
                printer.data(table(&[Align::Left, Align::Left], &MIXERS.iter().map(row).collect::<Vec<_>>()))
            }
        }
    }
}

fn find(name: &str) -> Result<&'static Registration> {
    mixer::find(name).ok_or_else(|| {
        let near = nearest(name, MIXERS.iter().map(|mixer| mixer.name)).map(|near| format!("did you mean `{near}`? "));
        Error::usage(
            format!("unknown mixer `{name}`"),
            format!("{}`subquad mixers` lists the mixers", near.unwrap_or_default()),
        )
    })
}

fn explained(mixer: &Registration) -> String {
    let mut out = format!("{}: {}\n\n  {}\n\n{}\n", mixer.name, mixer.summary, mixer.formula, mixer.paper);
    if !mixer.options.is_empty() {
        out.push_str("\noptions, under [student]:\n");
    }
    for option in mixer.options {
        let default = match option.default {
            "null" => String::new(),
            default => format!(", default {default}"),
        };
        out.push_str(&format!("\n  {}  {}{default}\n", option.name, values(option)));
        for line in wrapped(option.help, 76) {
            out.push_str(&format!("    {line}\n"));
        }
    }
    out
}

fn values(option: &OptionSpec) -> String {
    match option.kind {
        OptionKind::Integer { min, max } => format!("a whole number from {min} to {max}"),
        OptionKind::Number { min, max } => format!("a number from {min} to {max}"),
        OptionKind::Choice(words) => words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" or "),
        OptionKind::Flag => "true or false".into(),
    }
}

/// Lines of at most `width` characters, where words allow it.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("starts with one");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.extend([" ", word]);
        } else {
            lines.push(word.into());
        }
    }
    lines
}

fn as_json(mixer: &Registration) -> Value {
    let option = |option: &OptionSpec| {
        let mut described = match option.kind {
            OptionKind::Integer { min, max } => json!({ "type": "integer", "min": min, "max": max }),
            OptionKind::Number { min, max } => json!({ "type": "number", "min": min, "max": max }),
            OptionKind::Choice(words) => json!({ "type": "string", "values": words }),
            OptionKind::Flag => json!({ "type": "boolean" }),
        };
        described["name"] = option.name.into();
        described["default"] = option.default_value();
        described["help"] = option.help.into();
        described
    };
    json!({
        "name": mixer.name,
        "summary": mixer.summary,
        "formula": mixer.formula,
        "paper": mixer.paper,
        "options": mixer.options.iter().map(option).collect::<Vec<_>>(),
    })
}
