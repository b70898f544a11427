//! Collects mistakes while the recipe is read, and turns byte places into lines and columns.

use super::node::Place;
use crate::checkpoint::nearest;
use crate::error::Mistake;

/// Mistakes found so far.
#[derive(Default)]
pub(super) struct Sink {
    found: Vec<Found>,
    /// Missing things that went unmentioned.
    unmentioned: usize,
    /// After a syntax error parts of the text are unread: what seems to be missing may be there.
    pub ignore_missing: bool,
}

struct Found {
    place: Place,
    what: String,
    hint: Option<String>,
}

impl Sink {
    pub fn add(&mut self, place: &Place, what: impl Into<String>, hint: impl Into<Option<String>>) {
        self.found.push(Found { place: place.clone(), what: what.into(), hint: hint.into() });
    }

    pub fn missing(&mut self, place: &Place, what: impl Into<String>, hint: impl Into<Option<String>>) {
        if self.ignore_missing {
            self.unmentioned += 1;
        } else {
            self.add(place, what, hint);
        }
    }

    /// Compared before and after reading something, it tells whether the value can be relied on.
    pub fn count(&self) -> usize {
        self.found.len() + self.unmentioned
    }

    /// In the order of the text; those of `--set` and those without a place follow.
    pub fn into_mistakes(self, text: &str) -> Vec<Mistake> {
        let mut found = self.found;
        found.sort_by_key(|f| match &f.place {
            Place::Text(span) => (0, span.start),
            Place::Set(_) => (1, 0),
            Place::Nowhere => (2, 0),
        });
        let mut mistakes: Vec<Mistake> = found.into_iter().map(|f| mistake(text, f.place, f.what, f.hint)).collect();
        mistakes.dedup();
        mistakes
    }
}

/// A mistake with its place worked out.
fn mistake(text: &str, place: Place, what: String, hint: Option<String>) -> Mistake {
    match place {
        Place::Text(span) => {
            let (line, column, length) = position(text, span);
            Mistake { line, column, length, what, hint }
        }
        Place::Set(argument) => {
            let what = format!("`--set {}`: {what}", shortened(&argument));
            Mistake { line: 0, column: 0, length: 0, what, hint }
        }
        Place::Nowhere => Mistake { line: 0, column: 0, length: 0, what, hint },
    }
}

/// 1-based line and column, and length, in characters; a place of several lines ends with its first line.
fn position(text: &str, span: std::ops::Range<usize>) -> (usize, usize, usize) {
    let start = floor(text, span.start);
    let end = floor(text, span.end.max(span.start));
    let before = &text[..start];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.matches('\n').count() + 1;
    let column = text[line_start..start].chars().count() + 1;
    let inside = text[start..end].lines().next().unwrap_or("");
    (line, column, inside.chars().count().max(1))
}

fn floor(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..=at).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0)
}

/// What a user wrote, fit for one line of a message.
pub(super) fn shortened(text: &str) -> String {
    const MOST: usize = 60;
    let clean: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    match clean.char_indices().nth(MOST) {
        Some((cut, _)) => format!("{}…", &clean[..cut]),
        None => clean,
    }
}

/// "did you mean ...?" when something is near, and always what there is.
pub(super) fn suggestion(word: &str, candidates: &[&str], among: &str) -> String {
    match nearest(word, candidates.iter().copied()) {
        Some(near) => format!("did you mean `{near}`? {among}: {}", list(candidates)),
        None => format!("{among}: {}", list(candidates)),
    }
}

/// Names for a message: "`a`, `b`".
pub(super) fn list(names: &[&str]) -> String {
    if names.is_empty() {
        return "nothing".into();
    }
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
