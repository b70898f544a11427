//! TOML text to a tree, with recovery: one broken statement does not hide the mistakes of the others.
//!
//! The parser's own recovery loses the rest of the document on some errors and reports a cascade on others, so a
//! text with errors is cut into statements (a header, or `key = value` over one or more lines). A statement that
//! does not parse is reported once and blanked out, bytes kept in place, and what remains is parsed as a whole.

use std::ops::Range;

use toml::de::{DeTable, Error as TomlError};

use super::node::{Node, Place};
use super::sink::{Sink, shortened};

/// More syntax errors than this come from a file that is no recipe.
const MOST_ERRORS: usize = 100;
/// A value is looked for over that many lines before its first line is called broken.
const MOST_LINES: usize = 50;
/// Dots between two separators. Dotted keys nest one table per dot, and depth is stack.
const MOST_DOTS: usize = 200;

/// The tree of `text`; mistakes go to `sink`.
pub(super) fn parse(text: &str, sink: &mut Sink) -> Node {
    if let Some(at) = too_deep(text) {
        sink.ignore_missing = true;
        sink.add(&Place::Text(at..at + 1), "this key has too many parts", None);
        return Node::empty_table(Place::Nowhere);
    }
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return tree(table.get_ref());
    }
    sink.ignore_missing = true;
    let blanked = blank_broken_statements(text, sink);
    let (table, errors) = DeTable::parse_recoverable(&blanked);
    for error in errors {
        report(text, 0, &error, sink);
    }
    tree(table.get_ref())
}

fn tree(table: &DeTable<'_>) -> Node {
    let mut root = Node::from_table(table, &Place::Text, 0..0);
    root.place = Place::Nowhere;
    root
}

/// Where keys nest so deep that reading them would need too much stack.
pub(super) fn too_deep(text: &str) -> Option<usize> {
    let mut dots = 0;
    text.bytes().position(|byte| {
        match byte {
            b'.' => dots += 1,
            b'=' | b',' | b'[' | b']' | b'{' | b'}' | b'#' | b'\n' => dots = 0,
            _ => (),
        }
        dots > MOST_DOTS
    })
}

fn blank_broken_statements(text: &str, sink: &mut Sink) -> String {
    let lines = line_ranges(text);
    let mut blanked = text.as_bytes().to_vec();
    let mut cut = text.len();
    let mut errors_left = MOST_ERRORS;
    let mut at = 0;
    while at < lines.len() {
        let start = lines[at].start;
        let whole =
            (at..lines.len().min(at + MOST_LINES)).find(|&last| errors_of(&text[start..lines[last].end]).is_empty());
        if let Some(last) = whole {
            at = last + 1;
            continue;
        }
        let next = (at + 1..lines.len()).find(|&l| starts_statement(&text[lines[l].clone()])).unwrap_or(lines.len());
        let end = lines[next - 1].end;
        let errors = errors_of(&text[start..end]);
        if let Some(first) = errors.iter().min_by_key(|e| e.span().map_or(0, |span| span.start)) {
            report(text, start, first, sink);
        }
        blank(&mut blanked[start..end]);
        errors_left -= 1;
        // What follows a broken header would be read into the wrong table, and later stages would change their number.
        if text[start..end].trim_start().starts_with('[') || errors_left == 0 {
            cut = cut.min(start);
        }
        if errors_left == 0 {
            break;
        }
        at = next;
    }
    blank(&mut blanked[cut..]);
    String::from_utf8_lossy(&blanked).into_owned()
}

/// Whole lines are blanked, hence whole characters.
fn blank(bytes: &mut [u8]) {
    for byte in bytes {
        if *byte != b'\n' {
            *byte = b' ';
        }
    }
}

fn errors_of(statement: &str) -> Vec<TomlError> {
    DeTable::parse_recoverable(statement).1
}

fn line_ranges(text: &str) -> Vec<Range<usize>> {
    let mut start = 0;
    text.split_inclusive('\n')
        .map(|line| {
            let range = start..start + line.len();
            start = range.end;
            range
        })
        .collect()
}

fn starts_statement(line: &str) -> bool {
    let line = line.trim_start();
    let key = line.split('=').next().unwrap_or("").trim_end();
    let is_key = |c: char| c.is_alphanumeric() || "_-.\"' ".contains(c);
    line.starts_with('[') || (line.contains('=') && !key.is_empty() && key.chars().all(is_key))
}

fn report(text: &str, offset: usize, error: &TomlError, sink: &mut Sink) {
    let span = error.span().unwrap_or(0..0);
    let span = span.start + offset..span.end + offset;
    let quoted = shortened(text.get(span.clone()).unwrap_or(""));
    let (what, hint) = explain(error.message(), &quoted);
    sink.add(&Place::Text(span), what, hint);
}

/// The parser's message in our words where they help more.
fn explain(message: &str, quoted: &str) -> (String, Option<String>) {
    let starts = |prefix: &str| message.starts_with(prefix);
    if starts("string values must be quoted") && quoted.is_empty() {
        return ("a value is missing here".into(), Some("write `key = value`".into()));
    }
    if starts("string values must be quoted") {
        let hint = format!("text needs quotes: \"{quoted}\"");
        return (format!("`{quoted}` is not a TOML value"), Some(hint));
    }
    if starts("duplicate key") {
        return (format!("`{quoted}` is already defined"), Some("keep one of the two".into()));
    }
    let hint = if starts("key with no value") {
        Some("write `key = value`")
    } else if starts("unclosed array") {
        Some("close the list with `]`")
    } else if starts("unclosed inline table") {
        Some("close the table with `}`")
    } else if starts("unclosed table") {
        Some("close the header with `]`")
    } else if starts("invalid basic string") || starts("invalid multi-line basic string") {
        Some("close the text with its quotes")
    } else {
        None
    };
    (format!("not valid TOML: {message}"), hint.map(String::from))
}
