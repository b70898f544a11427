//! Models and texts from the Hub, or from the cache alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::cache::{Cache, is_commit};
use super::choice;
use super::entry::{Entry, Kind};
use super::explain::{near, no_path, prefix};
use super::fault::Fault;
use super::fetch::{Counted, Fetch};
use super::listing::Listing;
use super::session::Session;
use super::{Weight, is_offline};
use crate::checkpoint::{CONFIG, Checkpoint, Files, Head, HubId, INDEX, Location, TEXTS, WEIGHTS};
use crate::progress::{Progress, Silent, Unit};
use crate::{Error, Result};

/// Bytes of a file of weights that are fetched for its header at first; most headers are shorter.
const FIRST_HEAD: u64 = 128 << 10;
/// Longest header, as in `checkpoint`.
const MAX_HEAD: u64 = 25_000_000;

/// A repository as this machine sees it.
struct Repository<'a> {
    id: &'a HubId,
    kind: Kind,
    session: &'static Session,
    cache: Cache,
}

/// The folder of a model, all of which is there.
pub(super) fn model(id: &HubId, progress: &mut dyn Progress) -> Result<PathBuf> {
    let repository = Repository::new(id, Kind::Model)?;
    let Some(listing) = repository.listing(progress)? else { return repository.offline_model() };
    // The index says which weights there are.
    repository.small(&listing)?;
    let files = repository.model_files(&listing)?;
    repository.fetch(&listing, &files, progress)?;
    Ok(repository.cache.snapshot(&listing.commit))
}

/// A text, or a folder of texts.
pub(super) fn text(id: &HubId, progress: &mut dyn Progress) -> Result<PathBuf> {
    let repository = Repository::new(id, Kind::Dataset)?;
    let Some(listing) = repository.listing(progress)? else { return repository.offline_text() };
    let files = choice::texts(id, &listing, &repository.session.endpoint)?;
    repository.fetch(&listing, &files, progress)?;
    let snapshot = repository.cache.snapshot(&listing.commit);
    Ok(match (&files[..], &id.inside) {
        ([one], _) => snapshot.join(&one.path),
        (_, Some(inside)) => snapshot.join(inside),
        (_, None) => snapshot,
    })
}

/// A model by its headers: from the cache where all of it is there, otherwise from the first bytes of its weights.
pub(super) fn open(id: &HubId) -> Result<Checkpoint> {
    let repository = Repository::new(id, Kind::Model)?;
    let Some(listing) = repository.listing(&mut Silent)? else {
        return Checkpoint::open(&Location::Path(repository.offline_model()?));
    };
    let folder = repository.small(&listing)?;
    let weights = choice::weights(id, &listing, read(&folder.join(INDEX)).as_deref())?;
    let files = Files::open(&Location::Path(folder))?;
    let mut heads = BTreeMap::new();
    for entry in weights.iter().filter(|entry| !repository.cache.has(&listing.commit, entry)) {
        heads.insert(entry.path.clone(), repository.head(&listing, entry)?);
    }
    Checkpoint::of(files.with_heads(heads))
}

pub(super) fn weigh_model(id: &HubId) -> Result<Weight> {
    let repository = Repository::new(id, Kind::Model)?;
    let Some(listing) = repository.listing(&mut Silent)? else { return Ok(Weight::default()) };
    repository.small(&listing)?;
    Ok(repository.weight(&listing, &repository.model_files(&listing)?))
}

pub(super) fn weigh_text(id: &HubId) -> Result<Weight> {
    let repository = Repository::new(id, Kind::Dataset)?;
    match repository.listing(&mut Silent)? {
        Some(listing) => {
            let files = choice::texts(id, &listing, &repository.session.endpoint)?;
            Ok(repository.weight(&listing, &files))
        }
        None => Ok(Weight { bytes: bytes_of(&repository.offline_text()?), absent: 0 }),
    }
}

impl<'a> Repository<'a> {
    fn new(id: &'a HubId, kind: Kind) -> Result<Self> {
        let session = Session::get()?;
        Ok(Repository { id, kind, session, cache: Cache::of(id, kind, session) })
    }

    fn explain(&self, fault: Fault) -> Error {
        fault.explain(self.id, self.kind.word(), self.session)
    }

    /// What the Hub has; `None` when the cache must do: offline, or with a commit that is all there, or with a Hub that
    /// cannot be reached while the cache has what an earlier run fetched.
    fn listing(&self, progress: &mut dyn Progress) -> Result<Option<std::sync::Arc<Listing>>> {
        let here = || match self.kind {
            Kind::Model => self.offline_model().is_ok(),
            Kind::Dataset => self.offline_text().is_ok(),
        };
        let fixed = is_commit(self.id.revision()) && self.kind == Kind::Model;
        if is_offline() || fixed && here() {
            return Ok(None);
        }
        match Listing::of(self.id, self.kind, self.session) {
            Ok(listing) => Ok(Some(listing)),
            Err(fault) if fault.is_network() && here() => {
                progress.say(&format!("{}: {}; the cache has what was fetched before", self.id, self.explain(fault)));
                Ok(None)
            }
            // Who meant a path has to hear of that reading too.
            Err(fault) if fault.is_network() => match self.explain(fault) {
                Error::Hub { repository, what, hint } => {
                    let hint = format!("{}{hint}", near(self.id));
                    Err(Error::hub(repository, format!("{}{what}", no_path(self.id)), hint))
                }
                other => Err(other),
            },
            Err(fault) => Err(self.explain(fault)),
        }
    }

    fn fetcher<'b>(&'b self, listing: &'b Listing, address: &'b str) -> Fetch<'b> {
        Fetch { session: self.session, cache: &self.cache, commit: &listing.commit, address }
    }

    fn address(&self, listing: &Listing) -> String {
        format!("{}{}/resolve/{}", prefix(self.kind.word()), self.id.repository(), listing.commit)
    }

    /// Fetches all that is no weights, and gives the model's folder.
    fn small(&self, listing: &Listing) -> Result<PathBuf> {
        if listing.find(CONFIG).is_none() {
            let hint = "a model has `config.json`, safetensors and `tokenizer.json`: give the repository of one";
            return Err(Error::hub(self.id, "this repository is no model: it has no `config.json`", hint));
        }
        self.fetch(listing, &choice::small(listing), &mut Silent)?;
        Ok(self.cache.snapshot(&listing.commit))
    }

    /// All files of a model whose index, if it has one, is there.
    fn model_files<'b>(&self, listing: &'b Listing) -> Result<Vec<&'b Entry>> {
        let index = read(&self.cache.snapshot(&listing.commit).join(INDEX));
        let mut files = choice::small(listing);
        files.extend(choice::weights(self.id, listing, index.as_deref())?);
        Ok(files)
    }

    fn weight(&self, listing: &Listing, files: &[&Entry]) -> Weight {
        let absent = files.iter().filter(|entry| !self.cache.has(&listing.commit, entry));
        Weight { bytes: files.iter().map(|entry| entry.size).sum(), absent: absent.map(|entry| entry.size).sum() }
    }

    /// Fetches what is missing of these files, one after another.
    fn fetch(&self, listing: &Listing, files: &[&Entry], progress: &mut dyn Progress) -> Result<()> {
        let missing: Vec<&Entry> =
            files.iter().copied().filter(|entry| !self.cache.has(&listing.commit, entry)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let size =
            |entry: &Entry| fs::metadata(self.cache.incomplete(entry)).map_or(0, |found| found.len().min(entry.size));
        let total: u64 = missing.iter().map(|entry| entry.size).sum();
        let start: u64 = missing.iter().map(|entry| size(entry)).sum();
        if let Some(free) = self.cache.free().filter(|&free| free < total - start) {
            let what = format!(
                "{} bytes are to be downloaded, {free} are free in {}",
                total - start,
                self.cache.root().display()
            );
            return Err(Error::hub(self.id, what, "free some space, or set HF_HOME to a folder on a larger disk"));
        }
        let address = self.address(listing);
        let fetcher = self.fetcher(listing, &address);
        progress.begin(&format!("download {}", self.id.repository()), start, total, Unit::Bytes);
        let mut before = 0;
        for entry in &missing {
            fetcher.file(entry, &mut Counted { progress, before }).map_err(|fault| self.explain(fault))?;
            before += entry.size;
        }
        progress.advance(total, "");
        progress.end(&format!("{} files", missing.len()));
        Ok(())
    }

    /// The first bytes of a file of weights, its whole header among them.
    fn head(&self, listing: &Listing, entry: &Entry) -> Result<Head> {
        let address = self.address(listing);
        let fetcher = self.fetcher(listing, &address);
        let mut bytes = fetcher.head(entry, FIRST_HEAD).map_err(|fault| self.explain(fault))?;
        if let Some(length) = bytes.first_chunk::<8>().map(|length| u64::from_le_bytes(*length)) {
            let needed = 8 + length.min(MAX_HEAD);
            if needed > FIRST_HEAD {
                bytes = fetcher.head(entry, needed).map_err(|fault| self.explain(fault))?;
            }
        }
        Ok(Head { bytes, length: entry.size })
    }

    /// The folder of the commit that the cache knows.
    fn offline_folder(&self) -> Result<PathBuf> {
        let folder = self.cache.commit(self.id.revision()).map(|commit| self.cache.snapshot(&commit));
        folder.filter(|folder| folder.is_dir()).ok_or_else(|| {
            let near = near(self.id);
            let what = format!(
                "{}of the {} of this name the cache at {} has nothing",
                no_path(self.id),
                self.kind.word(),
                self.cache.root().display()
            );
            Error::hub(self.id, what, format!("{near}check the path, or {}", online()))
        })
    }

    /// The folder of a model in the cache, if all that is read of it is there.
    fn offline_model(&self) -> Result<PathBuf> {
        let folder = self.offline_folder()?;
        let has = |name: &str| folder.join(name).is_file();
        let mut missing: Vec<String> =
            [CONFIG, "tokenizer.json"].iter().filter(|name| !has(name)).map(|name| name.to_string()).collect();
        if !has(WEIGHTS) {
            match read(&folder.join(INDEX)).as_deref().and_then(choice::shards) {
                Some(shards) => missing.extend(shards.into_iter().filter(|shard| !has(shard))),
                None => missing.push(format!("{WEIGHTS} (or {INDEX})")),
            }
        }
        if missing.is_empty() {
            return Ok(folder);
        }
        let what = format!("the cache lacks {} of this model, in {}", missing.join(", "), folder.display());
        Err(Error::hub(self.id, what, online()))
    }

    /// The text in the cache.
    fn offline_text(&self) -> Result<PathBuf> {
        let folder = self.offline_folder()?;
        let path = self.id.inside.as_ref().map_or(folder.clone(), |inside| folder.join(inside));
        match path.exists() {
            true => self.only_text(path),
            false => Err(Error::hub(self.id, format!("the cache lacks this text, {}", path.display()), online())),
        }
    }

    /// A folder with one text in it means that text, as on the Hub.
    fn only_text(&self, path: PathBuf) -> Result<PathBuf> {
        let Ok(entries) = path.read_dir() else { return Ok(path) };
        let is_text = |path: &PathBuf| {
            path.is_file()
                && path.file_name().is_some_and(|name| name != "README.md")
                && path.extension().and_then(|e| e.to_str()).is_some_and(|e| TEXTS.contains(&e))
        };
        let texts: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_text).collect();
        match (&texts[..], &self.id.inside) {
            ([one], _) => Ok(one.clone()),
            ([], _) => Err(Error::hub(self.id, format!("the cache has no text in {}", path.display()), online())),
            (_, Some(_)) => Ok(path),
            (_, None) => {
                let what = format!("the cache has {} texts in {}", texts.len(), path.display());
                Err(Error::hub(self.id, what, format!("name one of them, as `{}/FILE`", self.id)))
            }
        }
    }
}

/// How to get what the cache lacks.
fn online() -> String {
    match is_offline() {
        true => "run it once with the network (without `--offline` and HF_HUB_OFFLINE)".into(),
        false => "run it once with the network".into(),
    }
}

fn read(path: &Path) -> Option<Vec<u8>> {
    fs::read(path).ok()
}

fn bytes_of(path: &Path) -> u64 {
    let length = |path: &Path| fs::metadata(path).ok().filter(|found| found.is_file()).map_or(0, |found| found.len());
    match path.read_dir() {
        Ok(entries) => entries.flatten().map(|entry| length(&entry.path())).sum(),
        Err(_) => length(path),
    }
}
