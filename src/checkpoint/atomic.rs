//! Files that are either whole or not there: a temporary name beside the target, a flush to disk, a rename.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::own::{create_anew, partial};
use crate::error::{Error, Result};

/// Writes `path` at once: a reader sees the old contents or the new, and an interruption leaves no half of it.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut partial = Partial::create(path)?;
    partial.write(bytes)?;
    partial.place()
}

/// A file being written. Dropped before [`Partial::place`], it vanishes.
pub(super) struct Partial {
    target: PathBuf,
    temporary: PathBuf,
    /// `None` once closed.
    file: Option<File>,
    placed: bool,
}

impl Partial {
    /// Starts a file beside `target`.
    pub fn create(target: &Path) -> Result<Self> {
        let Some(temporary) = partial(target) else {
            return Err(Error::file(target, "this is not the name of a file", "give the path of a file to write"));
        };
        let file = create_anew(&temporary).map_err(Error::io(target, "write it"))?;
        Ok(Partial { target: target.into(), temporary, file: Some(file), placed: false })
    }

    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Appends.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.open()?.write_all(bytes).map_err(Error::io(&self.target, "write it"))
    }

    /// Writes at a place counted from the start.
    pub fn write_at(&mut self, start: u64, bytes: &[u8]) -> Result<()> {
        use std::io::{Seek, SeekFrom};
        let mut file = self.open()?;
        file.seek(SeekFrom::Start(start))
            .and_then(|_| file.write_all(bytes))
            .map_err(Error::io(&self.target, "write it"))
    }

    /// Brings all of it to the disk, still under the temporary name.
    pub fn close(&mut self) -> Result<()> {
        match self.file.take() {
            Some(file) => file.sync_all().map_err(Error::io(&self.target, "write it")),
            None => Ok(()),
        }
    }

    /// Gives the file its name, replacing what had it.
    pub fn place(mut self) -> Result<()> {
        self.close()?;
        fs::rename(&self.temporary, &self.target).map_err(Error::io(&self.target, "give it its name"))?;
        self.placed = true;
        sync_folder(&self.target);
        Ok(())
    }

    fn open(&self) -> Result<&File> {
        self.file.as_ref().ok_or_else(|| Error::Internal(format!("{} is already closed", self.target.display())))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.placed {
            // Nothing is left to be done about a failure: the error that led here is the one to report.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Makes a rename durable where the system can. Others keep their own order of writes.
fn sync_folder(file: &Path) {
    let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}
