//! One file from the Hub into the cache: goes on where an earlier attempt ended, and gets its name only when its checksum
//! is that of the Hub.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::cache::{Cache, create_parent, is_file_of};
use super::entry::Entry;
use super::fault::Fault;
use super::session::Session;
use crate::Error;
use crate::checkpoint::open_or_create;
use crate::progress::Progress;

/// How often a file is asked for in vain before that is an error. Attempts that brought bytes do not count.
const ATTEMPTS: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// Bytes that are read at once.
const BLOCK: usize = 1 << 20;

/// Where files come from and go to.
pub(super) struct Fetch<'a> {
    pub session: &'a Session,
    pub cache: &'a Cache,
    pub commit: &'a str,
    /// Of the repository's files below the endpoint.
    pub address: &'a str,
}

/// What was counted so far.
pub(super) struct Counted<'a> {
    pub progress: &'a mut dyn Progress,
    /// Of the files before this one.
    pub before: u64,
}

impl Fetch<'_> {
    /// Brings a file into the cache, unless it is there.
    pub fn file(&self, entry: &Entry, counted: &mut Counted<'_>) -> Result<(), Fault> {
        if self.cache.has(self.commit, entry) {
            return Ok(());
        }
        let mut told = false;
        let _held = loop {
            match self.cache.lock(entry).map_err(Fault::Ours)? {
                Some(lock) => break lock,
                None if !told => {
                    counted.progress.say(&format!("{}: waiting for another process that fetches it", entry.path));
                    told = true;
                }
                None => self.session.sleep(FIRST_WAIT)?,
            }
        };
        let blob = self.cache.blob(entry);
        if !is_file_of(&blob, entry.size) {
            self.contents(entry, counted)?;
            let incomplete = self.cache.incomplete(entry);
            fs::rename(&incomplete, &blob).map_err(Error::io(&blob, "give it its name")).map_err(Fault::Ours)?;
        }
        self.cache.link(self.commit, entry).map_err(Fault::Ours)
    }

    /// All bytes of a file under its incomplete name, with the right checksum.
    fn contents(&self, entry: &Entry, counted: &mut Counted<'_>) -> Result<(), Fault> {
        let path = self.cache.incomplete(entry);
        create_parent(&path).map_err(Fault::Ours)?;
        let (mut failures, mut usual, mut damaged) = (0, FIRST_WAIT, false);
        loop {
            let mut partial = Partial::open(&path, entry).map_err(Fault::Ours)?;
            let start = partial.length;
            let fault = match self.session.run(self.rest(entry, &mut partial, counted), &mut || {}) {
                Ok(()) => {
                    let length = partial.length;
                    if partial.finish().map_err(Fault::Ours)? == entry.sum {
                        return Ok(());
                    }
                    // Whichever part of it is wrong: all of it is fetched again, once.
                    fs::remove_file(&path).map_err(Error::io(&path, "remove it")).map_err(Fault::Ours)?;
                    if damaged {
                        return Err(Fault::Nonsense(format!(
                            "the {length} bytes of `{}` do not have the checksum {}; they were thrown away",
                            entry.path, entry.sum
                        )));
                    }
                    damaged = true;
                    continue;
                }
                Err(fault) => fault,
            };
            if partial.length > start {
                (failures, usual) = (0, FIRST_WAIT);
            }
            failures += 1;
            // A part that the server does not want to continue is fetched from the beginning.
            let unfit = matches!(&fault, Fault::Answer { status: 416, .. }) || matches!(&fault, Fault::Nonsense(_));
            if unfit && start > 0 && failures < ATTEMPTS {
                fs::remove_file(&path).map_err(Error::io(&path, "remove it")).map_err(Fault::Ours)?;
                continue;
            }
            let Some(wait) = fault.wait(usual).filter(|_| failures < ATTEMPTS) else { return Err(fault) };
            counted.progress.advance(counted.before + partial.length, "waiting for the Hub");
            self.session.sleep(wait)?;
            usual *= 2;
        }
    }

    /// What is missing of a file.
    async fn rest(&self, entry: &Entry, partial: &mut Partial<'_>, counted: &mut Counted<'_>) -> Result<(), Fault> {
        if partial.length == entry.size && entry.size > 0 {
            return Ok(());
        }
        let mut response = self.session.stream(&address(self.address, &entry.path), partial.length, None).await?;
        while let Some(bytes) = response.chunk().await? {
            if partial.length + bytes.len() as u64 > entry.size {
                return Err(Fault::Nonsense(format!("`{}` has more than its {} bytes", entry.path, entry.size)));
            }
            partial.write(&bytes).map_err(Fault::Ours)?;
            counted.progress.advance(counted.before + partial.length, &entry.path);
        }
        match partial.length == entry.size {
            true => Ok(()),
            false => Err(Fault::Network(format!("`{}` ended after {} bytes", entry.path, partial.length))),
        }
    }

    /// The first bytes of a file, in memory.
    pub fn head(&self, entry: &Entry, bytes: u64) -> Result<Vec<u8>, Fault> {
        let bytes = bytes.min(entry.size);
        if bytes == 0 {
            return Ok(vec![]);
        }
        self.session.repeated(|| async move {
            let mut response = self.session.stream(&address(self.address, &entry.path), 0, Some(bytes)).await?;
            let mut head = Vec::with_capacity(bytes as usize);
            while (head.len() as u64) < bytes
                && let Some(part) = response.chunk().await?
            {
                head.extend_from_slice(&part);
            }
            head.truncate(bytes as usize);
            match head.len() as u64 == bytes {
                true => Ok(head),
                false => Err(Fault::Network(format!("`{}` ended after {} bytes", entry.path, head.len()))),
            }
        })
    }
}

fn address(base: &str, path: &str) -> String {
    format!("{base}/{}", super::session::encoded(path, true))
}

/// A file being written, and the checksum of what is there.
struct Partial<'a> {
    path: &'a Path,
    file: File,
    length: u64,
    sum: Sum,
}

impl<'a> Partial<'a> {
    /// What an earlier attempt left counts; what cannot be the beginning of the file does not.
    fn open(path: &'a Path, entry: &Entry) -> Result<Self, Error> {
        let mut file = open_or_create(path, OpenOptions::new().read(true).write(true))?;
        let mut length = file.metadata().map_err(Error::io(path, "look at it"))?.len();
        if length > entry.size {
            file.set_len(0).map_err(Error::io(path, "write it"))?;
            length = 0;
        }
        let mut sum = Sum::of(entry);
        read_all(&mut file, &mut |bytes| sum.update(bytes)).map_err(Error::io(path, "read it"))?;
        file.seek(SeekFrom::Start(length)).map_err(Error::io(path, "write it"))?;
        Ok(Partial { path, file, length, sum })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(Error::io(self.path, "write it"))?;
        self.sum.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Brings all of it to the disk and gives its checksum.
    fn finish(self) -> Result<String, Error> {
        self.file.sync_all().map_err(Error::io(self.path, "write it"))?;
        Ok(self.sum.digits())
    }
}

/// The two checksums of the Hub.
pub(super) enum Sum {
    /// Of a large file.
    Sha256(Sha256),
    /// Git's, of any other.
    Git(Sha1),
}

impl Sum {
    /// Of a file that the listing has, in the kind that it names there.
    fn of(entry: &Entry) -> Sum {
        Sum::new(entry.is_large(), entry.size)
    }

    fn new(large: bool, size: u64) -> Sum {
        match large {
            true => Sum::Sha256(Sha256::new()),
            false => Sum::Git(Sha1::new_with_prefix(format!("blob {size}\0"))),
        }
    }

    /// Of a file on disk.
    pub fn read(path: &Path, large: bool, size: u64) -> Result<String, Error> {
        let mut sum = Sum::new(large, size);
        let mut file = File::open(path).map_err(Error::io(path, "read it"))?;
        read_all(&mut file, &mut |bytes| sum.update(bytes)).map_err(Error::io(path, "read it"))?;
        Ok(sum.digits())
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Sum::Sha256(sum) => sum.update(bytes),
            Sum::Git(sum) => sum.update(bytes),
        }
    }

    fn digits(self) -> String {
        let bytes = match self {
            Sum::Sha256(sum) => sum.finalize().to_vec(),
            Sum::Git(sum) => sum.finalize().to_vec(),
        };
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Reads a file block by block.
fn read_all(file: &mut File, each: &mut dyn FnMut(&[u8])) -> std::io::Result<()> {
    let mut block = vec![0; BLOCK];
    loop {
        match file.read(&mut block)? {
            0 => return Ok(()),
            n => each(&block[..n]),
        }
    }
}
