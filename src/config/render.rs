//! Errors for people: what is wrong, the line of the recipe with a caret below, and what to do about it.

use unicode_width::UnicodeWidthChar;

use crate::error::{Error, Mistake};

/// Columns of a terminal that a source line may fill; longer ones are cut around the caret.
const WIDTH: usize = 100;
/// Columns shown before the caret of a cut line.
const BEFORE: usize = 30;
/// More mistakes than this are counted, not shown.
const SHOWN: usize = 50;

/// The error as text for a terminal, ending with a newline. `color`: with ANSI colours, which carry no meaning alone.
pub fn render(error: &Error, color: bool) -> String {
    let paint = Paint { color };
    let mut out = format!("{} {}\n", paint.red("error:"), printable(&error.to_string()));
    if let Error::Recipe { name, text, mistakes } = error {
        for mistake in mistakes.iter().take(SHOWN) {
            out.push('\n');
            render_mistake(&mut out, name, text, mistake, &paint);
        }
        if mistakes.len() > SHOWN {
            out.push_str(&format!("\n... and {} more\n", mistakes.len() - SHOWN));
        }
    }
    if let Some(hint) = error.hint() {
        out.push_str(&format!("\n{} {}\n", paint.cyan("hint:"), printable(&hint)));
    }
    out
}

fn render_mistake(out: &mut String, name: &str, text: &str, mistake: &Mistake, paint: &Paint) {
    let what = paint.bold(&printable(&mistake.what));
    let hint = mistake.hint.as_deref().map(printable);
    let line = mistake.line.checked_sub(1).and_then(|index| text.lines().nth(index));
    let place = if mistake.line == 0 { String::new() } else { format!(":{}:{}", mistake.line, mistake.column) };
    out.push_str(&format!("{}{place}: {what}\n", printable(name)));
    // A place just behind the last line has no text to show.
    let Some(line) = line else {
        if let Some(hint) = hint {
            out.push_str(&format!("  {} {hint}\n", paint.cyan("=")));
        }
        return;
    };
    let number = mistake.line.to_string();
    let margin = " ".repeat(number.len());
    let bar = paint.cyan("|");
    let excerpt = excerpt(line, mistake.column, mistake.length, WIDTH - number.len() - 3);
    out.push_str(&format!("{} {bar} {}\n", paint.cyan(&number), excerpt.line));
    out.push_str(&format!("{margin} {bar} {}{}\n", " ".repeat(excerpt.indent), paint.red(&"^".repeat(excerpt.carets))));
    if let Some(hint) = hint {
        out.push_str(&format!("{margin} {} {hint}\n", paint.cyan("=")));
    }
}

/// A source line as shown, and the columns of its caret line.
struct Excerpt {
    line: String,
    indent: usize,
    carets: usize,
}

fn excerpt(line: &str, column: usize, length: usize, width: usize) -> Excerpt {
    let cells: Vec<(String, usize)> = line.chars().map(cell).collect();
    let first = column.saturating_sub(1).min(cells.len());
    let last = (first + length).min(cells.len());
    let columns = |from: usize, to: usize| cells[from..to].iter().map(|(_, width)| width).sum::<usize>();
    let (mut from, mut to) = (0, cells.len());
    if columns(0, cells.len()) > width {
        // Two columns for the marks of what is cut off.
        let room = width - 2;
        from = (0..=first).find(|&from| columns(from, first) <= BEFORE).unwrap_or(first);
        // Near the end of the line the whole width still shows text.
        while from > 0 && columns(from - 1, cells.len()) <= room {
            from -= 1;
        }
        to = (from..=cells.len()).rev().find(|&to| columns(from, to) <= room).unwrap_or(from);
    }
    let cut_before = from > 0;
    let shown: String = cells[from..to].iter().map(|(text, _)| text.as_str()).collect();
    let line = format!("{}{shown}{}", if cut_before { "…" } else { "" }, if to < cells.len() { "…" } else { "" });
    let indent = usize::from(cut_before) + columns(from, first);
    let carets = columns(first, last.min(to).max(first)).max(1);
    Excerpt { line, indent, carets }
}

/// How a character is shown, and its columns. Tabs have a fixed width; control characters and those that reorder
/// text would disturb the terminal.
fn cell(c: char) -> (String, usize) {
    match c {
        '\t' => ("    ".into(), 4),
        c if disturbs(c) => ('\u{fffd}'.into(), 1),
        c => (c.into(), c.width().unwrap_or(0)),
    }
}

fn disturbs(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

fn printable(text: &str) -> String {
    text.chars().map(|c| if disturbs(c) && c != '\n' { '\u{fffd}' } else { c }).collect()
}

struct Paint {
    color: bool,
}

impl Paint {
    fn with(&self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
    }

    fn red(&self, text: &str) -> String {
        self.with("1;31", text)
    }

    fn cyan(&self, text: &str) -> String {
        self.with("36", text)
    }

    fn bold(&self, text: &str) -> String {
        self.with("1", text)
    }
}
