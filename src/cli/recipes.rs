//! `subquad recipes`

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::Value as Json;

use super::format::{Align, table};
use super::printer::Printer;
use crate::checkpoint::{nearest, write_atomically};
use crate::recipe::{self, EMBEDDED, description, embedded};
use crate::{Error, Result};

/// List, show and copy the recipes inside the binary
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the recipes
    Ls,
    /// Print a recipe
    Show {
        /// Its name
        name: String,
    },
    /// Copy a recipe to a file to edit, with the schema beside it for editors
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
                let text = find(name)?;
                let to = place(name, to.as_deref());
                let schema = schema_name(&to)?;
                write_new(&to, &text.replacen("#:schema ./schema.json", &format!("#:schema ./{schema}"), 1))?;
                write_atomically(&to.with_file_name(schema), recipe::schema().as_bytes())?;
                printer.note(format_args!(
                    "edit it, then run `subquad convert {}`; with {schema} beside it editors complete and check it",
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

/// The name of the schema beside the recipe `to`, which its `#:schema` line gives relative to itself. A file that holds
/// something else is left alone.
fn schema_name(to: &Path) -> Result<&'static str> {
    const NAMES: [&str; 2] = ["schema.json", "subquad.schema.json"];
    let is_schema = |path: &Path| {
        let json = std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice::<Json>(&bytes).ok());
        json.is_some_and(|json| json["title"] == recipe::SCHEMA_TITLE)
    };
    let free = |name: &&&str| {
        let path = to.with_file_name(name);
        path != to && (!path.exists() || is_schema(&path))
    };
    NAMES.iter().find(free).copied().ok_or_else(|| {
        let what = "this file is in the place of the schema of recipes and holds something else";
        Error::file(to.with_file_name(NAMES[1]), what, "copy the recipe to another folder")
    })
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
