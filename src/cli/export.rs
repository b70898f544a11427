//! `subquad export`

use std::path::{Path, PathBuf};

use clap::builder::NonEmptyStringValueParser;

use super::opened::Opened;
use super::printer::Printer;
use super::progress::Works;
use crate::checkpoint::CONFIG;
use crate::export::{ADAPTER, ExportOptions, NO_GGUF, copy, export, export_fla};
use crate::model::Student;
use crate::run::{Unmerged, is_run, unmerged};
use crate::{Error, Result};

/// Write a converted model to another folder, or in another format
///
/// `convert` has already written the model into its run; this command copies it. With --adapter the last low-rank update
/// of a run stays separate: the folder holds the converted model without it, and its subfolder `adapter` holds the update
/// in PEFT's format.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A run, or a converted model
    run: String,
    /// The folder to write
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Write the run's last low-rank update separately, in PEFT's format
    #[arg(long)]
    adapter: bool,
    /// Name of the base model to write into the adapter, OWNER/NAME or a path; with --adapter [default: the name of DIR]
    #[arg(long, value_name = "MODEL", value_parser = NonEmptyStringValueParser::new())]
    base: Option<String>,
    /// The format to write
    #[arg(long, value_enum, default_value_t = Format::Huggingface, conflicts_with = "adapter")]
    format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A folder that transformers loads with trust_remote_code=True
    Huggingface,
    /// flash-linear-attention's own model type, where it has one for exactly this model
    Fla,
    /// Always refused, with the reason
    Gguf,
}

impl Args {
    pub fn run(&self, printer: &Printer) -> Result<()> {
        let mut works = Works::new(printer);
        let run = Path::new(&self.run);
        if self.base.is_some() && !self.adapter {
            let hint = "add `--adapter`, or leave `--base` out";
            return Err(Error::usage("`--base` is the model below an update that is kept apart, and none is", hint));
        }
        let folder = match (self.format, self.adapter) {
            (Format::Gguf, _) => {
                let hint = "transformers, lm-eval and PEFT run the folder that `subquad export` writes";
                return Err(Error::usage(format!("`--format gguf` is refused: {NO_GGUF}"), hint));
            }
            (Format::Fla, _) => {
                let opened = Opened::open(&self.run, None)?;
                let student = Student::load(&opened.checkpoint, &opened.spec)?.ok_or_else(|| self.not_converted())?;
                let model = crate::model::Model::load(&opened.checkpoint, &opened.spec)?;
                export_fla(&model, &student, &opened.checkpoint, &self.to)?
            }
            (Format::Huggingface, true) => {
                if !is_run(run) {
                    let hint =
                        "a model holds its updates merged; the run that made it has them apart: give that folder";
                    return Err(Error::usage(format!("`{}` is no run", self.run), hint));
                }
                let Unmerged { recipe, teacher, model, student, reports } = unmerged(run, &mut works)?;
                let dtype = recipe.export.dtype.map(Into::into);
                let options = ExportOptions { shard_bytes: recipe.export.shard, dtype, base: self.base.clone() };
                let (text, to) = (&recipe.text, &self.to);
                let written = export(&model, &student, &teacher, text, &options, &reports, to, &mut works)?;
                printer.note(format_args!("the adapter is in {}", written.folder.join(ADAPTER).display()));
                written.folder
            }
            (Format::Huggingface, false) => {
                let inside = run.join("model");
                let from = if run.join(CONFIG).exists() || !inside.join(CONFIG).exists() { run.into() } else { inside };
                copy(&from, &self.to, &mut works)?.0
            }
        };
        printer.data(format!("{}\n", folder.display()))
    }

    fn not_converted(&self) -> Error {
        Error::usage(
            format!("`{}` is no converted model", self.run),
            "give a run, or a folder that `convert` has written",
        )
    }
}
