//! Numbers for people, and aligned columns.

use std::time::Duration;

use unicode_width::UnicodeWidthStr;

/// `6,524,160`
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `840`, `12.3K`, `6M`, `1.5B`: three digits, as recipes write budgets.
pub(super) fn short(n: f64) -> String {
    scaled(n, 1000.0, &["", "K", "M", "B", "T"])
}

/// `512 B`, `788 KB`, `13 MB`, `5 GB`; powers of ten, as recipes and the Hub count.
pub(super) fn bytes(n: u64) -> String {
    scaled(n as f64, 1000.0, &[" B", " KB", " MB", " GB", " TB"])
}

fn scaled(n: f64, step: f64, units: &[&str]) -> String {
    let mut value = n.max(0.0);
    let mut unit = 0;
    // 999.5 and more would be shown as four digits.
    while value >= 0.9995 * step && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let decimals = match value {
        _ if unit == 0 => 0,
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    let text = format!("{value:.decimals$}");
    let text = if decimals > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{}", units[unit])
}

/// `0.4 s`, `12 s`, `1m 23s`, `2h 05m`, `3d 04h`
pub(super) fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{}m {:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h {:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d {:02}h", s / 86_400, s % 86_400 / 3600),
    }
}

/// [`duration`] of what a plan says; a year stands for anything longer.
pub(super) fn seconds(seconds: f64) -> String {
    const YEAR: f64 = 365.0 * 86_400.0;
    match seconds {
        s if s >= YEAR => "over a year".into(),
        s => duration(Duration::try_from_secs_f64(s.max(0.0)).unwrap_or_default()),
    }
}

/// `0-3, 7`: numbers in ascending order, runs joined.
pub(super) fn ranges(numbers: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &n in numbers {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == n => *last = n,
            _ => parts.push((n, n)),
        }
    }
    let words = parts.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
    words.collect::<Vec<_>>().join(", ")
}

/// Columns that texts for people fill.
const WIDTH: usize = 80;

/// `text` in lines of at most 80 columns where words allow it, the first behind `indent`, the others behind `deeper`.
/// What is separated by a semicolon and two spaces, as formulas are, breaks there first.
pub(super) fn wrapped(text: &str, indent: &str, deeper: &str) -> String {
    let mut lines: Vec<String> = vec![];
    for part in text.split_inclusive(";  ").map(str::trim_end) {
        match lines.last_mut() {
            Some(last) if last.width() + 2 + part.width() <= WIDTH => last.extend(["  ", part]),
            _ => {
                let start = lines.len();
                for word in part.split_whitespace() {
                    match lines.get_mut(start..).and_then(<[String]>::last_mut) {
                        Some(last) if last.width() + 1 + word.width() <= WIDTH => last.extend([" ", word]),
                        _ => lines.push(format!("{}{word}", if lines.is_empty() { indent } else { deeper })),
                    }
                }
            }
        }
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// Columns of a table.
pub(super) enum Align {
    Left,
    Right,
}

/// Rows in aligned columns, two spaces apart, each line ended; nothing trails.
pub(super) fn table(columns: &[Align], rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.width()).max();
    let widths: Vec<usize> = (0..columns.len()).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for ((cell, &width), align) in row.iter().zip(&widths).zip(columns) {
            let gap = " ".repeat(width - cell.width());
            match align {
                Align::Left => line.extend([cell, gap.as_str(), "  "]),
                Align::Right => line.extend([gap.as_str(), cell, "  "]),
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        let shorts = [0.0, 7.4, 840.0, 999.6, 12_345.0, 600_000.0, 6e6, 1.5e9, 2e16].map(short);
        assert_eq!(shorts, ["0", "7", "840", "1K", "12.3K", "600K", "6M", "1.5B", "20000T"]);
        assert_eq!([0, 512, 1000, 13_048_320, u64::MAX].map(bytes), ["0 B", "512 B", "1 KB", "13 MB", "18446744 TB"]);
        assert_eq!([0, 999, 1000, 6_524_160].map(count), ["0", "999", "1,000", "6,524,160"]);
    }

    #[test]
    fn times() {
        let times = [0.04, 9.94, 9.96, 59.4, 59.6, 83.0, 7500.0, 273_600.0];
        let expected = ["0.0 s", "9.9 s", "10 s", "59 s", "1m 00s", "1m 23s", "2h 05m", "3d 04h"];
        assert_eq!(times.map(seconds), expected);
        assert_eq!([f64::INFINITY, f64::NAN, -1.0].map(seconds), ["over a year", "0.0 s", "0.0 s"]);
    }

    #[test]
    fn texts_are_wrapped() {
        let a = "a".repeat(39);
        assert_eq!(wrapped(&format!("{a} {a} {a} b"), " ", "  "), format!(" {a} {a}\n  {a} b\n"));
        assert_eq!(wrapped(&format!("{a};  {a};  b c"), "", " "), format!("{a};\n {a};  b c\n"));
        assert_eq!(wrapped(&a.repeat(3), " ", ""), format!(" {}\n", a.repeat(3)));
    }

    #[test]
    fn runs_are_joined() {
        assert_eq!(ranges(&[0, 1, 2, 3, 7, 9, 10]), "0-3, 7, 9-10");
        assert_eq!(ranges(&[]), "");
    }
}
