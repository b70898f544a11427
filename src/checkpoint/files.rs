//! The files of a model, on disk or in the binary, by plain name.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::ops::Deref;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::builtin::Builtin;
use super::links::{dangling, within};
use super::location::Location;
use super::words::shown;
use crate::error::{Error, Result};

/// Largest file that is read whole into memory: tokenizers have tens of megabytes. Weights are mapped, not read.
const MAX_READ: u64 = 1 << 30;
/// What the names of files of weights end with.
const SAFETENSORS: &str = ".safetensors";

/// The files of a folder or builtin, read by plain name: no separators, no `..`, so that no name leads elsewhere.
#[derive(Debug)]
pub struct Files {
    label: PathBuf,
    names: Vec<String>,
    source: Source,
    /// Files of which only the beginning is here, as of a model that was not downloaded.
    heads: BTreeMap<String, Head>,
}

/// The beginning of a file.
#[derive(Debug, Clone)]
pub struct Head {
    pub bytes: Vec<u8>,
    /// Of the whole file.
    pub length: u64,
}

#[derive(Debug)]
enum Source {
    Folder(PathBuf),
    Builtin(&'static Builtin),
}

/// A file's contents, mapped or embedded.
pub(super) enum Bytes {
    Mapped(Mmap),
    Embedded(&'static [u8]),
    Head(Head),
}

impl Bytes {
    /// Of the whole file, all of which is here unless this is a head.
    pub fn length(&self) -> u64 {
        match self {
            Bytes::Head(head) => head.length,
            whole => whole.len() as u64,
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Embedded(bytes) => bytes,
            Bytes::Head(head) => &head.bytes,
        }
    }
}

impl Files {
    /// The folder at `location`; a single file is an error.
    pub fn open(location: &Location) -> Result<Self> {
        let label = location.label();
        let (names, source) = match location {
            Location::Builtin(builtin) => {
                (builtin.files.iter().map(|(name, _)| name.to_string()).collect(), Source::Builtin(builtin))
            }
            Location::Hub(id) => {
                let what = "this is a model on the Hub that was not downloaded";
                return Err(Error::file(id.to_string(), what, "`hub::model` downloads it and gives its folder"));
            }
            Location::Path(path) => {
                if !path.is_dir() {
                    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                    return Err(Error::file(
                        path,
                        if path.exists() {
                            "this is a file, and a model is a folder"
                        } else {
                            "there is no such folder"
                        },
                        format!("give the folder that holds `config.json`, perhaps `{}`", folder.display()),
                    ));
                }
                (folder_names(path)?, Source::Folder(path.clone()))
            }
        };
        Ok(Files { label, names, source, heads: BTreeMap::new() })
    }

    /// The same with files of which only the beginning is known.
    pub fn with_heads(mut self, heads: BTreeMap<String, Head>) -> Self {
        self.names.extend(heads.keys().cloned());
        self.names.sort();
        self.names.dedup();
        self.heads = heads;
        self
    }

    /// Plain names of all files, sorted. Links count as the files that they point to; folders do not count.
    pub fn names(&self) -> Vec<String> {
        self.names.clone()
    }

    /// The contents of a file; `None` when there is no such file.
    pub fn read(&self, name: &str) -> Result<Option<Cow<'_, [u8]>>> {
        self.read_at_most(name, MAX_READ)
    }

    /// As [`Files::read`]; a file of more than `limit` bytes is an error.
    pub(crate) fn read_at_most(&self, name: &str, limit: u64) -> Result<Option<Cow<'_, [u8]>>> {
        self.require_plain(name)?;
        let too_large = |length: u64| {
            Error::file(
                self.place(name),
                format!("{length} bytes; at most {limit} are read"),
                "this is not the file that its name says: download or copy it again",
            )
        };
        match &self.source {
            Source::Builtin(builtin) => Ok(builtin.file(name).map(Cow::Borrowed)),
            Source::Folder(folder) => {
                let Some(path) = within(folder, name)? else { return Ok(None) };
                let Some((file, length)) = open(&path)? else { return Ok(None) };
                if length > limit {
                    return Err(too_large(length));
                }
                let mut bytes = Vec::new();
                file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io(&path, "read it"))?;
                if bytes.len() as u64 > limit {
                    return Err(too_large(bytes.len() as u64));
                }
                Ok(Some(Cow::Owned(bytes)))
            }
        }
    }

    /// The contents of a file without reading them; `None` when there is no such file. Weights may be links to anywhere,
    /// such as a larger disk: they are parsed, and never copied as they are.
    pub(super) fn map(&self, name: &str) -> Result<Option<Bytes>> {
        self.require_plain(name)?;
        if let Some(head) = self.heads.get(name) {
            return Ok(Some(Bytes::Head(head.clone())));
        }
        match &self.source {
            Source::Builtin(builtin) => Ok(builtin.file(name).map(Bytes::Embedded)),
            Source::Folder(folder) if name.ends_with(SAFETENSORS) => map(&folder.join(name)),
            Source::Folder(folder) => within(folder, name)?.map_or(Ok(None), |path| map(&path)),
        }
    }

    /// The folder, or `builtin:NAME`; for messages.
    pub fn location(&self) -> &Path {
        &self.label
    }

    /// A file's place, for messages.
    pub(crate) fn place(&self, name: &str) -> PathBuf {
        self.label.join(shown(name))
    }

    /// Whether the folder has a subfolder of that name.
    pub(super) fn has_folder(&self, name: &str) -> bool {
        matches!(&self.source, Source::Folder(folder) if folder.join(name).is_dir())
    }

    fn require_plain(&self, name: &str) -> Result<()> {
        match is_plain(name) {
            true => Ok(()),
            false => Err(Error::file(
                &self.label,
                format!("`{}` is not the plain name of a file", shown(name)),
                "names of files must lie in the model's own folder: no `/`, `\\`, `:` or `..`",
            )),
        }
    }
}

/// Whether `name` can only mean a file in the folder itself, on every system.
pub(super) fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', ':', '\0'])
}

/// The file at `path`, mapped; `None` when there is none.
pub(super) fn map(path: &Path) -> Result<Option<Bytes>> {
    let Some((file, length)) = open(path)? else { return Ok(None) };
    if length == 0 {
        return Ok(Some(Bytes::Embedded(&[])));
    }
    // SAFETY: the mapping is read-only. What memory maps cannot exclude is that another process shortens the file
    // meanwhile; files written by this crate are replaced by renaming, which leaves existing mappings whole.
    let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path, "map it into memory"))?;
    Ok(Some(Bytes::Mapped(map)))
}

/// Opens a regular file and gives its length. Anything else (a folder, a pipe that would block) is an error.
fn open(path: &Path) -> Result<Option<(File, u64)>> {
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == ErrorKind::NotFound && path.is_symlink() => {
            return Err(dangling(path));
        }
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, "look at it")(e)),
    };
    if !found.is_file() {
        return Err(Error::file(path, "this is not a regular file", "remove it, or give another folder"));
    }
    let file = File::open(path).map_err(Error::io(path, "open it"))?;
    Ok(Some((file, found.len())))
}

fn folder_names(folder: &Path) -> Result<Vec<String>> {
    let entries = folder.read_dir().map_err(Error::io(folder, "list it"))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            entry.path().is_file().then(|| entry.file_name().into_string().ok()).flatten()
        })
        .collect();
    names.sort();
    Ok(names)
}
