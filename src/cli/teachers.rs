//! `subquad teachers`

use serde::Serialize;

use super::format;
use super::printer::Printer;
use crate::Result;
use crate::arch::{FAMILIES, Family};

/// List the supported families of teachers, with the features that are supported and refused
#[derive(clap::Args)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` prints of a family.
#[derive(Serialize)]
struct Listed {
    name: &'static str,
    models: &'static str,
    /// Of `model_type` in config.json.
    model_types: &'static [&'static str],
    supported: &'static [&'static str],
    refused: &'static [&'static str],
}

impl From<&'static Family> for Listed {
    fn from(family: &'static Family) -> Listed {
        let Family { name, models, model_types, supported, refused, .. } = *family;
        Listed { name, models, model_types, supported, refused }
    }
}

const HEADING: &str = "A model is read if its config.json has one of these types as its `model_type`, and refused with \
    the reason where it does what its family here does not. `subquad inspect MODEL` shows what was read.";

impl Args {
    pub fn run(&self, printer: &Printer) -> Result<()> {
        let all: Vec<Listed> = FAMILIES.iter().map(Listed::from).collect();
        if self.json {
            return printer.json(&all);
        }
        let mut out = format::wrapped(HEADING, "", "");
        for family in all {
            out += &format!("\n{}\n", family.model_types.join(", "));
            for (name, text) in [
                ("", family.models.to_string()),
                ("keeps: ", family.supported.join("; ")),
                ("refuses: ", family.refused.join("; ")),
            ] {
                out += &format::wrapped(&format!("{name}{text}"), "  ", "    ");
            }
        }
        printer.data(out)
    }
}
