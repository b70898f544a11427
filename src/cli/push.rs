//! `subquad push`

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::format::{self, Align, table};
use super::opened::inside_run;
use super::printer::Printer;
use super::progress::Works;
use crate::checkpoint::{HubId, Location};
use crate::hub::{self, Change, PushFile, PushPlan};
use crate::{Error, Result};

/// Send a model to the Hugging Face Hub, in one commit
///
/// Files that the repository already has are not sent again; weights of an earlier model in it are removed. A missing
/// repository is created, private unless --public. Prints the address of the commit.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The folder of a model, or a run
    folder: PathBuf,
    /// The repository
    #[arg(long, value_name = "OWNER/NAME")]
    repo: String,
    /// Make a repository that is created public
    #[arg(long)]
    public: bool,
    /// The message of the commit
    #[arg(long, value_name = "TEXT", default_value = "Upload a model converted by subquad")]
    message: String,
    /// Show what would be sent, and send nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON: repository, create, public, files, bytes, sent, commit
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Pushed<'a> {
    #[serde(flatten)]
    plan: &'a PushPlan,
    /// That are sent.
    bytes: u64,
    /// Whether anything was sent or removed.
    sent: bool,
    /// The address of the commit; null where there is none.
    commit: Option<&'a str>,
}

impl Args {
    pub fn run(&self, printer: &Printer) -> Result<()> {
        let id = HubId::parse(&self.repo).ok_or_else(|| {
            Error::usage(
                format!("`{}` is not the name of a repository", self.repo),
                "give `--repo OWNER/NAME`: letters, digits, `-`, `_` and `.`",
            )
        })?;
        // Nobody means a path here.
        let id = HubId { path: PathBuf::new(), ..id };
        let folder = folder(&self.folder)?;
        let plan = hub::compare(&folder, &id, self.public, &mut Works::new(printer))?;
        if self.public && !plan.create {
            printer.warn(format_args!("{}: it exists, and is as visible as it was", plan.repository));
        }
        let commit = match self.dry_run {
            true => None,
            false => hub::push(&plan, &self.message, &mut Works::new(printer))?,
        };
        if self.json {
            let (bytes, commit) = (plan.bytes(), commit.as_deref());
            return printer.json(&Pushed { plan: &plan, bytes, sent: commit.is_some(), commit });
        }
        match commit {
            Some(address) => printer.data(format_args!("{address}\n")),
            None if self.dry_run => printer.data(rendered(&plan)),
            None => {
                printer.note(format_args!("{}: all of it is there already; nothing was sent", plan.repository));
                Ok(())
            }
        }
    }
}

fn folder(path: &Path) -> Result<PathBuf> {
    if !path.exists() {
        return Err(Error::file(path, "there is no such folder", "give the folder that `convert` or `export` printed"));
    }
    match inside_run(Location::Path(path.into()))? {
        Location::Path(path) => Ok(path),
        _ => Err(Error::Internal("a path became something else".into())),
    }
}

fn rendered(plan: &PushPlan) -> String {
    let row = |file: &PushFile| {
        let change = match file.change {
            Change::Add => "add",
            Change::Replace => "replace",
            Change::Remove => "remove",
            Change::Keep => "there already",
        };
        vec![file.name.clone(), format::bytes(file.bytes), change.to_string()]
    };
    let rows: Vec<Vec<String>> = plan.files.iter().map(row).collect();
    let repository = match (plan.create, plan.public) {
        (false, _) => String::new(),
        (true, true) => " (new, public)".into(),
        (true, false) => " (new, private)".into(),
    };
    format!(
        "{}\n{} of {} files would be sent to {}{repository}\n",
        table(&[Align::Left, Align::Right, Align::Left], &rows),
        format::bytes(plan.bytes()),
        plan.changes().filter(|file| file.change != Change::Remove).count(),
        plan.repository,
    )
}
