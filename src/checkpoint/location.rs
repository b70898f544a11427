//! Where a model or a text lives, from what a user wrote.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::builtin::Builtin;
use super::hub_id::HubId;
use super::words::nearest;
use crate::error::{Error, Result};

/// What a name of an embedded asset starts with.
const PREFIX: &str = "builtin:";
/// Entries of a folder that are looked at for a near miss.
const NEIGHBOURS: usize = 10_000;

/// Where a model or text lives: a folder or file on disk, one of the assets embedded in the binary (`builtin:NAME`), or a
/// repository on the Hub, which [`crate::hub`] brings to a path.
#[derive(Debug, Clone)]
pub enum Location {
    Path(PathBuf),
    Builtin(&'static Builtin),
    Hub(HubId),
}

impl Location {
    /// What `text` means, seen from `base` (the recipe's folder; `None`: the working directory).
    ///
    /// A path that exists always wins. What is no path and could be a Hub id is one; whether the Hub has it shows when it
    /// is fetched, and the message then names both readings.
    pub fn resolve(text: &str, base: Option<&Path>) -> Result<Location> {
        if text.is_empty() {
            return Err(Error::usage("the name of a model or text is empty", expected("give a file or folder")));
        }
        let path = base.map_or_else(|| PathBuf::from(text), |base| base.join(text));
        match path.metadata() {
            Ok(_) => return Ok(Location::Path(path)),
            Err(e) if is_absence(e.kind()) => {}
            Err(e) => return Err(Error::io(&path, "look at it")(e)),
        }
        match text.strip_prefix(PREFIX) {
            Some(name) => Builtin::find(name).map(Location::Builtin).ok_or_else(|| no_builtin(text, name)),
            None => match HubId::parse(text) {
                Some(id) => Ok(Location::Hub(HubId { path, ..id })),
                None => Err(missing(text, path)),
            },
        }
    }

    /// For messages and records: the path, or `builtin:NAME`.
    pub fn label(&self) -> PathBuf {
        match self {
            Location::Path(path) => path.clone(),
            Location::Builtin(builtin) => format!("{PREFIX}{}", builtin.name).into(),
            Location::Hub(id) => id.to_string().into(),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.label().display().fmt(f)
    }
}

/// Errors that say "nothing is there", rather than "you may not look".
fn is_absence(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidInput | ErrorKind::InvalidFilename
    )
}

fn expected(advice: &str) -> String {
    format!("{advice}, or give one that is built in: {}", Builtin::list())
}

fn no_builtin(text: &str, name: &str) -> Error {
    let advice = match nearest(name, super::BUILTINS.iter().map(|b| b.name)) {
        Some(near) => format!("did you mean `{PREFIX}{near}`? Otherwise give a file or folder"),
        None => "give a file or folder".into(),
    };
    Error::file(text, "nothing of this name is built in, and no such path exists", expected(&advice))
}

fn missing(text: &str, path: PathBuf) -> Error {
    let near = near_miss(text, &path).map(|near| format!("did you mean `{near}`? Otherwise "));
    let what = "there is no such file or folder, and it is not a Hub id (`OWNER/NAME`) either";
    Error::file(path, what, expected(&format!("{}check the path", near.unwrap_or_default())))
}

impl HubId {
    /// What on disk or in the binary may have been meant instead.
    pub(crate) fn near_miss(&self) -> Option<String> {
        self.path.file_name().and_then(|_| near_miss(&self.to_string(), &self.path))
    }
}

/// A neighbour on disk or a builtin with a similar name, as the user would write it.
fn near_miss(text: &str, path: &Path) -> Option<String> {
    if let Some(near) = nearest(text, super::BUILTINS.iter().map(|b| b.name)) {
        return Some(format!("{PREFIX}{near}"));
    }
    let name = path.file_name()?.to_str()?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut neighbours: Vec<String> =
        parent.read_dir().ok()?.take(NEIGHBOURS).filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
    neighbours.sort();
    let near = nearest(name, neighbours.iter().map(String::as_str))?;
    Some(Path::new(text).with_file_name(near).display().to_string())
}
