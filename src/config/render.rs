//! Errors for a terminal: what is wrong, the line of the file with a caret below, and what to do about it.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use crate::error::{Diagnostic, Error};

/// Columns of a terminal that a source line may fill; longer ones are cut around the caret.
const WIDTH: usize = 100;
/// More errors than this are counted, not shown.
const MAX_SHOWN: usize = 50;

/// The error as text for a terminal, ending with a newline. `color`: with ANSI colours, which carry no meaning alone.
pub fn render(error: &Error, color: bool) -> String {
    let renderer = if color { Renderer::styled().hyperlink(false) } else { Renderer::plain() }.term_width(WIDTH);
    let title = |level: Level, text: &str| {
        format!("{}\n", renderer.render(&[Group::with_title(level.primary_title(printable(text)))]))
    };
    let mut out = title(Level::ERROR, &error.to_string());
    if let Error::Recipe { name, text, diagnostics } = error {
        for diagnostic in diagnostics.iter().take(MAX_SHOWN) {
            out.push_str(&format!("\n{}\n", render_diagnostic(name, text, diagnostic, &renderer)));
        }
        if diagnostics.len() > MAX_SHOWN {
            out.push_str(&format!("\n... and {} more\n", diagnostics.len() - MAX_SHOWN));
        }
    }
    if let Some(hint) = error.hint() {
        out.push_str(&format!("\n{}", title(Level::HELP.with_name("hint"), &hint)));
    }
    out
}

fn render_diagnostic(name: &str, text: &str, diagnostic: &Diagnostic, renderer: &Renderer) -> String {
    let mut group = Group::with_title(Level::ERROR.no_name().primary_title(printable(&diagnostic.what)));
    if let Some(span) = &diagnostic.span {
        let (number, [before, inside, after]) = line_at(text, span);
        let marked = before.len()..before.len() + inside.len();
        let line = Snippet::source([before, inside, after].concat()).line_start(number).path(printable(name));
        group = group.element(line.annotation(AnnotationKind::Primary.span(marked)));
    }
    if let Some(hint) = &diagnostic.hint {
        group = group.element(Level::HELP.message(printable(hint)));
    }
    renderer.render(&[group])
}

/// The line in which `span` begins: its number from 1, and what stands before, in and after the span there.
fn line_at(text: &str, span: &Range<usize>) -> (usize, [String; 3]) {
    let start = text.floor_char_boundary(span.start);
    let end = text.ceil_char_boundary(span.end.max(start));
    let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
    let line_end = text[start..].find('\n').map_or(text.len(), |length| start + length);
    let end = end.min(line_end);
    let number = text[..start].matches('\n').count() + 1;
    let after = text[end..line_end].trim_end_matches('\r');
    (number, [&text[line_start..start], &text[start..end], after].map(printable))
}

/// Control characters and those that reorder text would disturb the terminal.
fn printable(text: &str) -> String {
    let disturbs = |c: char| {
        c.is_control() && !matches!(c, '\n' | '\t')
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    text.replace(disturbs, "\u{fffd}")
}
