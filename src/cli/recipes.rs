//! `subquad recipes`

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::format::{Align, table};
use super::printer::Printer;
use crate::checkpoint::nearest;
use crate::recipe::{EMBEDDED, description, embedded};
use crate::{Error, Result};

/// List, show and copy the recipes inside the binary
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List them
    Ls,
    /// Print one
    Show {
        /// Its name
        name: String,
    },
    /// Copy one to a file, to edit it
    Cp {
        /// Its name
        name: String,
        /// File or folder to write to [default: NAME.toml here]
        to: Option<PathBuf>,
    },
}

impl Args {
    pub fn run(&self, printer: &Printer) -> Result<()> {
        match &self.command {
            Command::Ls => {
                let row = |(name, text): &(&str, &str)| vec![name.to_string(), description(text).to_string()];
                printer.data(table(&[Align::Left, Align::Left], &EMBEDDED.iter().map(row).collect::<Vec<_>>()))
            }
            Command::Show { name } => printer.data(find(name)?),
            Command::Cp { name, to } => {
                let to = place(name, to.as_deref());
                write_new(&to, find(name)?)?;
                printer.note(format_args!(
                    "edit it, then run `subquad convert {}`; `subquad schema > schema.json` beside it lets editors complete it",
                    to.display()
                ));
                printer.data(format_args!("{}\n", to.display()))
            }
        }
    }
}

fn find(name: &str) -> Result<&'static str> {
    let bare = name.strip_suffix(".toml").unwrap_or(name);
    embedded(bare).ok_or_else(|| {
        let names = || EMBEDDED.iter().map(|(name, _)| *name);
        let near = nearest(bare, names()).map(|near| format!("did you mean `{near}`? "));
        let list = names().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        Error::usage(
            format!("there is no embedded recipe `{name}`"),
            format!("{}embedded: {list}", near.unwrap_or_default()),
        )
    })
}

fn place(name: &str, to: Option<&Path>) -> PathBuf {
    let file = format!("{}.toml", name.strip_suffix(".toml").unwrap_or(name));
    match to {
        None => file.into(),
        Some(folder) if folder.is_dir() => folder.join(file),
        Some(path) => path.into(),
    }
}

/// Never over a file that is there: it may have been edited.
fn write_new(path: &Path, text: &str) -> Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path).map_err(|e| match e.kind() {
        ErrorKind::AlreadyExists => {
            Error::file(path, "this file is already there", "name another file, or remove this one")
        }
        ErrorKind::NotFound => {
            Error::file(path, "there is no folder to write this file in", "make the folder, or name another file")
        }
        _ => Error::io(path, "write it")(e),
    })?;
    file.write_all(text.as_bytes()).map_err(Error::io(path, "write it"))
}
