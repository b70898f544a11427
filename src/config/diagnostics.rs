//! Collects errors while a file is read.

use super::span::Span;
use crate::checkpoint::nearest;
use crate::error::Diagnostic;

/// The errors found so far.
pub struct Diagnostics {
    found: Vec<(Span, String, Option<String>)>,
    /// The tables that know a key, for the hint of one that was written into another table.
    owners: fn(&str) -> Vec<String>,
}

impl Diagnostics {
    /// `owners`: the names of the tables that know a key, such as [`owners_of`](super::owners_of) gives.
    pub fn new(owners: fn(&str) -> Vec<String>) -> Self {
        Diagnostics { found: Vec::new(), owners }
    }

    pub fn add(&mut self, span: &Span, what: impl Into<String>, hint: impl Into<Option<String>>) {
        self.found.push((span.clone(), what.into(), hint.into()));
    }

    /// Compared before and after reading something, it tells whether the value can be relied on.
    pub fn count(&self) -> usize {
        self.found.len()
    }

    pub fn owners(&self, key: &str) -> Vec<String> {
        (self.owners)(key)
    }

    /// In the order of the text; those of `--set` and those without a span follow.
    pub fn into_vec(self) -> Vec<Diagnostic> {
        let mut found = self.found;
        found.sort_by_key(|(span, ..)| match span {
            Span::Text(span) => (0, span.start),
            Span::Set(_) => (1, 0),
            Span::Nowhere => (2, 0),
        });
        let diagnostic = |(span, what, hint)| match span {
            Span::Text(span) => Diagnostic { span: Some(span), what, hint },
            Span::Set(argument) => {
                Diagnostic { span: None, what: format!("`--set {}`: {what}", shortened(&argument)), hint }
            }
            Span::Nowhere => Diagnostic { span: None, what, hint },
        };
        let mut diagnostics: Vec<Diagnostic> = found.into_iter().map(diagnostic).collect();
        diagnostics.dedup();
        diagnostics
    }
}

/// What a user wrote, fit for one line of a message.
pub fn shortened(text: &str) -> String {
    const MAX: usize = 60;
    let clean: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    match clean.char_indices().nth(MAX) {
        Some((cut, _)) => format!("{}…", &clean[..cut]),
        None => clean,
    }
}

/// "did you mean ...?" when something is near, and always what there is.
pub fn suggestion(word: &str, candidates: &[&str], among: &str) -> String {
    match nearest(word, candidates.iter().copied()) {
        Some(near) => format!("did you mean `{near}`? {among}: {}", backticked(candidates)),
        None => format!("{among}: {}", backticked(candidates)),
    }
}

/// Names for a message: "`a`, `b`".
pub fn backticked(names: &[&str]) -> String {
    if names.is_empty() {
        return "nothing".into();
    }
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
