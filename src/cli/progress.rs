//! Long work as people see it: a bar on a terminal, a plain line every ten seconds anywhere else.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use unicode_width::UnicodeWidthStr;

use super::format;
use super::printer::Printer;
use crate::progress::{Progress, Unit};

/// Between two plain lines about the same work.
const BETWEEN_LINES: Duration = Duration::from_secs(10);
/// Between two pictures of a spinner.
const TICK: Duration = Duration::from_millis(200);
/// Columns of the shortest bar that is worth its place.
const SHORTEST_BAR: usize = 10;
/// Columns of a template besides prefix, bar and message: spinner, brackets, percentage, spaces.
const FRAME: usize = 11;

/// Listens to one work after another.
pub(super) struct Works {
    printer: Printer,
    work: Option<Work>,
}

struct Work {
    meter: Meter,
    /// When the last plain line was printed, or the work began.
    said: Instant,
    bar: Option<(ProgressBar, Form)>,
}

impl Works {
    pub fn new(printer: &Printer) -> Self {
        Works { printer: printer.clone(), work: None }
    }
}

impl Progress for Works {
    fn begin(&mut self, what: &str, start: u64, total: u64, unit: Unit) {
        let now = Instant::now();
        let meter = Meter { what: what.into(), start, done: start, total, unit, note: String::new(), began: now };
        let bar = self.printer.live().then(|| {
            let bar = self.printer.bars().add(ProgressBar::new(total));
            let form = meter.form(terminal_width(), now);
            dress(&bar, &meter, form, now);
            bar.enable_steady_tick(TICK);
            (bar, form)
        });
        self.work = Some(Work { meter, said: now, bar });
    }

    fn advance(&mut self, done: u64, note: &str) {
        let Some(work) = &mut self.work else { return };
        let now = Instant::now();
        work.meter.done = done;
        note.clone_into(&mut work.meter.note);
        if let Some((bar, form)) = &mut work.bar {
            let wanted = work.meter.form(terminal_width(), now);
            match wanted == *form {
                true => bar.set_message(work.meter.message(wanted, now)),
                false => dress(bar, &work.meter, wanted, now),
            }
            *form = wanted;
            bar.set_position(done);
        } else if now - work.said >= BETWEEN_LINES {
            work.said = now;
            self.printer.note(work.meter.line(now));
        }
    }

    fn end(&mut self, summary: &str) {
        if let Some(work) = self.work.take() {
            let line = work.meter.last_line(summary, Instant::now());
            drop(work);
            self.printer.note(line);
        }
    }

    fn say(&mut self, line: &str) {
        self.printer.note(line);
    }
}

impl Drop for Work {
    /// Work that fails leaves no bar behind under the error.
    fn drop(&mut self) {
        if let Some((bar, _)) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn terminal_width() -> usize {
    usize::from(console::Term::stderr().size().1)
}

/// What of a work fits on a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Name, bar, percentage, figures.
    Bar,
    /// Name, percentage, figures, cut at the edge.
    Figures,
    /// Nothing is known of the total: name and figures.
    Spinner,
}

fn dress(bar: &ProgressBar, meter: &Meter, form: Form, now: Instant) {
    let template = match form {
        Form::Bar => "{spinner} {prefix} [{wide_bar}] {percent:>3}% {msg}",
        Form::Figures | Form::Spinner => "{spinner} {wide_msg}",
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner());
    bar.set_style(style.progress_chars("=> "));
    bar.set_prefix(meter.what.clone());
    bar.set_message(meter.message(form, now));
}

/// The figures of a work.
struct Meter {
    what: String,
    /// Done by an earlier run: part of the whole, no part of the speed.
    start: u64,
    done: u64,
    total: u64,
    unit: Unit,
    note: String,
    began: Instant,
}

impl Meter {
    fn form(&self, width: usize, now: Instant) -> Form {
        let taken = FRAME + self.what.width() + self.figures(now).width();
        match (self.total, width.checked_sub(taken)) {
            (0, _) => Form::Spinner,
            (_, Some(rest)) if rest >= SHORTEST_BAR => Form::Bar,
            _ => Form::Figures,
        }
    }

    fn message(&self, form: Form, now: Instant) -> String {
        match form {
            Form::Bar => self.figures(now),
            // The end may be cut off; how long it still takes is what people want to know.
            Form::Figures => {
                let left = self.left(now).unwrap_or_default();
                let speed = self.speed(now).unwrap_or_default();
                join([format!("{} {}%", self.what, self.percent()), left, self.note.clone(), speed])
            }
            Form::Spinner => join([self.what.clone(), self.figures(now)]),
        }
    }

    /// One of the lines that replace a bar.
    fn line(&self, now: Instant) -> String {
        let done = match self.total {
            0 => self.amount(self.done),
            total => format!("{}%, {} of {}", self.percent(), self.number(self.done), self.amount(total)),
        };
        format!("{}: {}", self.what, join([done, self.figures(now)]))
    }

    /// The line that stays.
    fn last_line(&self, summary: &str, now: Instant) -> String {
        if self.total > 0 && self.start >= self.total {
            return format!("{}: finished by an earlier run", self.what);
        }
        let done = self.done.max(self.total);
        let time = format::duration(now - self.began);
        let time = match self.unit {
            // How many parts a work had is of no interest once it is done.
            Unit::Items => time,
            _ => format!("{} in {time}", self.amount(done - self.start.min(done))),
        };
        let note = if summary.is_empty() { self.note.clone() } else { summary.into() };
        format!("{}: {}", self.what, join([time, self.speed(now).unwrap_or_default(), note]))
    }

    fn figures(&self, now: Instant) -> String {
        join([self.note.clone(), self.speed(now).unwrap_or_default(), self.left(now).unwrap_or_default()])
    }

    fn percent(&self) -> u64 {
        (self.done.min(self.total) as u128 * 100 / u128::from(self.total.max(1))) as u64
    }

    /// Units per second of this run.
    fn rate(&self, now: Instant) -> Option<f64> {
        let seconds = (now - self.began).as_secs_f64();
        let done = self.done.saturating_sub(self.start);
        (done > 0 && seconds > 0.0).then(|| done as f64 / seconds)
    }

    /// Items are too few for their speed to say much.
    fn speed(&self, now: Instant) -> Option<String> {
        match self.unit {
            Unit::Tokens => self.rate(now).map(|rate| format!("{} tokens/s", format::short(rate))),
            Unit::Bytes => self.rate(now).map(|rate| format!("{}/s", format::bytes(rate as u64))),
            Unit::Items => None,
        }
    }

    fn left(&self, now: Instant) -> Option<String> {
        let seconds = self.total.saturating_sub(self.done) as f64 / self.rate(now)?;
        (self.total > 0).then(|| format!("{} left", format::seconds(seconds)))
    }

    fn number(&self, n: u64) -> String {
        match self.unit {
            Unit::Tokens => format::short(n as f64),
            Unit::Bytes => format::bytes(n),
            Unit::Items => format::count(n),
        }
    }

    fn amount(&self, n: u64) -> String {
        match self.unit {
            Unit::Tokens => format!("{} tokens", self.number(n)),
            _ => self.number(n),
        }
    }
}

fn join<const N: usize>(parts: [String; N]) -> String {
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter(start: u64, done: u64, total: u64) -> Meter {
        let note = "loss 1.2345".into();
        Meter { what: "attention transfer".into(), start, done, total, unit: Unit::Tokens, note, began: Instant::now() }
    }

    #[test]
    fn an_earlier_run_counts_for_the_share_and_not_for_the_speed() {
        let meter = meter(400_000, 500_000, 600_000);
        let now = meter.began + Duration::from_secs(50);
        let line = "attention transfer: 83%, 500K of 600K tokens, loss 1.2345, 2K tokens/s, 50 s left";
        assert_eq!(meter.line(now), line);
        let last = "attention transfer: 200K tokens in 50 s, 2K tokens/s, loss 1.2345";
        assert_eq!(meter.last_line("", now), last);
    }

    #[test]
    fn narrow_terminals_lose_the_bar_first() {
        let meter = meter(0, 300_000, 600_000);
        let now = meter.began + Duration::from_secs(100);
        assert_eq!(
            [120, 79, 40, 0].map(|width| meter.form(width, now)),
            [Form::Bar, Form::Bar, Form::Figures, Form::Figures]
        );
        assert_eq!(meter.message(Form::Figures, now), "attention transfer 50%, 1m 40s left, loss 1.2345, 3K tokens/s");
    }

    #[test]
    fn nothing_done_and_nothing_known_are_no_division_by_zero() {
        let meter = Meter { note: String::new(), ..meter(0, 0, 0) };
        assert_eq!(meter.line(meter.began), "attention transfer: 0 tokens");
        assert_eq!(meter.form(200, meter.began), Form::Spinner);
        assert_eq!(meter.percent(), 0);
    }
}
