//! The name of a repository on the Hub, as a user writes it.

use std::fmt;
use std::path::PathBuf;

/// Longest owner or name that the Hub gives.
const MAX_LENGTH: usize = 96;
/// Revisions with a `/` in them that are not branches: pull requests and the Hub's own conversions.
const REFS: [&str; 2] = ["refs/pr/", "refs/convert/"];

/// `OWNER/NAME`, `OWNER/NAME@REVISION`, and for texts `OWNER/NAME/FILE` or `OWNER/NAME@REVISION/FOLDER`.
///
/// A revision is a branch, a tag or a commit; a branch with a `/` in its name cannot be written so, `refs/pr/1` can.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HubId {
    pub owner: String,
    pub name: String,
    /// `None`: the main branch.
    pub revision: Option<String>,
    /// A file or folder in the repository.
    pub inside: Option<String>,
    /// What the same text would be as a path, where nothing is; empty where no path can be meant.
    pub path: PathBuf,
}

impl HubId {
    /// `text` as a Hub id; `None` where it cannot be one.
    pub fn parse(text: &str) -> Option<HubId> {
        let (owner, rest) = text.split_once('/')?;
        let end = rest.find(['@', '/']).unwrap_or(rest.len());
        let (name, rest) = rest.split_at(end);
        let (revision, inside) = match rest.strip_prefix('@') {
            Some(rest) => {
                let (revision, inside) = split_revision(rest)?;
                (Some(revision), inside)
            }
            None => (None, rest.strip_prefix('/')),
        };
        let whole = is_part(owner)
            && is_part(name)
            && revision.is_none_or(is_path)
            && inside.is_none_or(|inside| is_path(inside) && !inside.contains('\\'));
        whole.then(|| HubId {
            owner: owner.into(),
            name: name.into(),
            revision: revision.map(String::from),
            inside: inside.map(String::from),
            path: text.into(),
        })
    }

    /// `OWNER/NAME`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// The branch, tag or commit.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        self.inside.as_ref().map_or(Ok(()), |inside| write!(f, "/{inside}"))
    }
}

/// `OWNER/NAME` in the characters that the Hub allows.
pub fn is_hub_id(text: &str) -> bool {
    text.split_once('/').is_some_and(|(owner, name)| is_part(owner) && is_part(name))
}

fn is_part(part: &str) -> bool {
    !part.is_empty()
        && part.len() <= MAX_LENGTH
        && !part.starts_with(['.', '-'])
        && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// Whether this is a relative path that stays where it is: it becomes part of one in the cache.
fn is_path(text: &str) -> bool {
    !text.chars().any(char::is_control) && text.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

/// A revision, and what stands behind it.
fn split_revision(text: &str) -> Option<(&str, Option<&str>)> {
    let skip = REFS.iter().find(|prefix| text.starts_with(*prefix)).map_or(0, |prefix| prefix.len());
    let end = text[skip..].find('/').map(|at| at + skip);
    let (revision, inside) = end.map_or((text, None), |at| (&text[..at], Some(&text[at + 1..])));
    revision.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c)).then_some((revision, inside))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_paths() {
        let read = |text: &str| {
            let id = HubId::parse(text)?;
            assert_eq!(id.to_string(), text);
            Some((id.repository(), id.revision().to_string(), id.inside))
        };
        let id = |name: &str, revision: &str, inside: Option<&str>| {
            Some((name.to_string(), revision.to_string(), inside.map(String::from)))
        };
        assert_eq!(read("a/b"), id("a/b", "main", None));
        assert_eq!(read("a/b.c@v1.0"), id("a/b.c", "v1.0", None));
        assert_eq!(read("a/b/d/e.txt"), id("a/b", "main", Some("d/e.txt")));
        assert_eq!(read("a/b@v1/e.txt"), id("a/b", "v1", Some("e.txt")));
        assert_eq!(read("a/b@refs/pr/7/e.txt"), id("a/b", "refs/pr/7", Some("e.txt")));
        let not = [
            "",
            "a",
            "./a/b",
            "../a",
            "a/",
            "/a/b",
            "a/b/",
            "a/b@",
            "a//b",
            "a/b/../c",
            "a/b@../..",
            "a/b@..",
            "a b/c",
            "~/a",
            "a/b@x y",
            "a/b@v1/../x",
            "a/\u{e9}",
            "a/b/\n",
            "a/b@refs/pr/../x",
        ];
        not.iter().for_each(|text| assert_eq!(read(text), None, "{text}"));
    }
}
