//! Explanations of faults: what they mean for a user, and what to do.

use super::fault::Fault;
use super::session::Session;
use crate::Error;
use crate::checkpoint::HubId;

/// Characters of the Hub's own words that are shown.
const MAX_WORDS: usize = 200;

impl Fault {
    /// The same where the store of large files said it, which knows of no models and no tokens.
    pub fn of_store(self, id: &HubId, name: &str, session: &Session) -> Fault {
        match self {
            Fault::Answer { status, words, .. } => {
                let what = format!(
                    "the Hub's store of large files answers `{name}` with status {status}{}; nothing was committed",
                    said(&words, session)
                );
                let hint = "run the same command again: it sends only what is missing; if it stays so, see whether your \
                            token may write there, the clock of this machine is right, and no proxy stands between";
                Fault::Ours(Error::hub(id, what, hint))
            }
            Fault::Network(what) => Fault::Network(format!("`{name}` could not be sent: {what}")),
            other => other,
        }
    }

    /// Whether the Hub says that there is no such repository, or shows it to others only.
    pub fn is_absence(&self, session: &Session) -> bool {
        match self {
            Fault::Answer { status: 404, .. } => true,
            Fault::Answer { status: 401, code, .. } => code != "GatedRepo" && session.token.is_none(),
            _ => false,
        }
    }

    /// The message for people.
    pub fn explain(self, id: &HubId, kind: &str, session: &Session) -> Error {
        let (status, code, words, wait) = match self {
            Fault::Ours(error) => return error,
            Fault::Network(what) => {
                return Error::hub(
                    id,
                    format!("the Hub at {} cannot be reached: {}", session.endpoint, session.clean(&what)),
                    "check the network (and HF_ENDPOINT, if it is set), then run the same command again: it goes on where \
                     it ended; `--offline` uses what is in the cache",
                );
            }
            Fault::Nonsense(what) => {
                let hint = "run the same command again; if it stays so, HF_ENDPOINT may name something that is no Hub";
                return Error::hub(id, format!("the Hub's answer cannot be used: {}", session.clean(&what)), hint);
            }
            Fault::Answer { status, code, words, wait } => (status, code, words, wait),
        };
        let page = format!("{}/{}{}", session.endpoint, prefix(kind), id.repository());
        let said = said(&words, session);
        let login = "log in with `hf auth login`, or set HF_TOKEN";
        let (what, hint) = match (status, code.as_str(), session.token.is_some()) {
            (401 | 403, "GatedRepo", false) => (
                "this repository is gated: its owner gives it only to those who accept its terms, and no token was found"
                    .into(),
                format!("accept the terms at {page}, then {login}"),
            ),
            (401 | 403, "GatedRepo", true) => (
                format!("this repository is gated, and your token has no access to it{said}"),
                format!("accept the terms at {page} with the account of your token, and wait for the approval"),
            ),
            (404, "RevisionNotFound", _) => {
                (format!("there is no revision `{}`", id.revision()), format!("see the branches and tags at {page}"))
            }
            (404, "EntryNotFound", _) => (format!("a file is not there{said}"), format!("see the files at {page}")),
            (401, _, false) | (404, ..) | (401, "RepoNotFound", true) => (
                format!(
                    "{}the Hub shows no {kind} of this name{}",
                    no_path(id),
                    match session.token.is_some() {
                        true => " to the account of your token",
                        false => ": it does not exist, or is private",
                    }
                ),
                format!(
                    "{}check the spelling; for a private one {login}",
                    near(id)
                ),
            ),
            (401, _, true) => (
                format!("the Hub refuses your token{said}"),
                format!("it may have expired: make a new one and {login}; for what is public, unset it"),
            ),
            (403, _, has) => (
                format!("the Hub refuses this{said}"),
                match has {
                    true => format!("your token needs the right to do this at {page}: make one that has it, then {login}"),
                    false => login.to_string(),
                },
            ),
            (429, ..) => (
                match wait {
                    Some(wait) => format!("too many requests: the Hub asks to wait {} s{said}", wait.as_secs()),
                    None => format!("too many requests{said}"),
                },
                "run the same command again later: it goes on where it ended; a token raises the limit".into(),
            ),
            (409 | 412, ..) => (
                format!("the repository changed meanwhile{said}"),
                "run the same command again: it looks at the repository anew".into(),
            ),
            (500..=599, ..) => (
                format!("the Hub fails with status {status}{said}"),
                "run the same command again later: it goes on where it ended; `--offline` uses what is in the cache".into(),
            ),
            _ => (format!("the Hub answers with status {status}{said}"), format!("see {page}")),
        };
        Error::hub(id, what, hint)
    }
}

/// The Hub's own words, for a message.
fn said(words: &str, session: &Session) -> String {
    match words.is_empty() {
        true => String::new(),
        false => format!(" (it says: {})", session.clean(words).chars().take(MAX_WORDS).collect::<String>()),
    }
}

/// The other reading of a name, where it could be a path.
pub(super) fn no_path(id: &HubId) -> String {
    match id.path.as_os_str().is_empty() {
        true => String::new(),
        false => format!("there is no such file or folder (`{}`), and ", id.path.display()),
    }
}

/// What may have been meant instead.
pub(super) fn near(id: &HubId) -> String {
    id.near_miss().map(|near| format!("did you mean `{near}`? Otherwise ")).unwrap_or_default()
}

/// What stands before a repository's name in addresses.
pub(super) fn prefix(kind: &str) -> &'static str {
    if kind == "dataset" { "datasets/" } else { "" }
}
