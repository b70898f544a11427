//! Repositories and their files.

/// Digits of a SHA-256.
pub(super) const LARGE: usize = 64;

/// What kind of repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Model,
    Dataset,
}

impl Kind {
    /// In messages.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Model => "model",
            Kind::Dataset => "dataset",
        }
    }

    /// In addresses of the Hub's interface, and in names of the cache.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        }
    }
}

/// One file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub path: String,
    pub size: u64,
    /// SHA-256 of a large file, git's SHA-1 of any other; its name in the cache.
    pub sum: String,
}

impl Entry {
    /// Whether it is stored apart from git, under another kind of checksum.
    pub fn is_large(&self) -> bool {
        self.sum.len() == LARGE
    }
}
