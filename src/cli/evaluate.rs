//! `subquad evaluate`

use super::format::{self, Align, table};
use super::opened::{Loaded, Opened};
use super::printer::Printer;
use super::progress::Works;
use crate::checkpoint::Location;
use crate::evaluate::{self, EvaluationText, Report, Score, Selection, beyond_training};
use crate::model::{Conversion, Model, Student};
use crate::run::{evaluations_of_run, has_teacher, teacher_of_run};
use crate::{Error, Result};
use std::path::Path;

/// Longest window that is chosen for a model of which no training length is known.
const MAX_DEFAULT_SEQUENCE: usize = 1024;

/// Measure perplexity and the distance to the teacher on a text
///
/// A converted model is compared with its teacher, and with controls that switch off a branch of its
/// mixers. Perplexity: the text is cut into consecutive windows, each token but the first of a window is
/// predicted. The model of a run is evaluated as its recipe evaluated it: the options change that.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A folder, a run, builtin:NAME, or OWNER/NAME[@REVISION] on the Hub
    model: String,
    /// A text that the model was not trained on: .txt, .jsonl, a folder of them, builtin:NAME, or
    /// OWNER/NAME[/FILE] on the Hub [default: the text of the run's last evaluation]
    #[arg(long, value_name = "FILE")]
    text: Option<String>,
    /// Compare with this model [default: the one that a converted model was made from]
    #[arg(long, value_name = "MODEL")]
    teacher: Option<String>,
    /// Tokens of a window [default: as in the run's evaluation; else the length that a converted model was
    /// trained at; else the model's context, at most 1024]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..=1 << 24))]
    sequence: Option<u64>,
    /// Tokens to evaluate: 64K, 1M, a whole number, or `all` [default: as in the run's evaluation of this
    /// text, else all]
    #[arg(long, value_name = "N", value_parser = amount)]
    tokens: Option<Amount>,
    /// Take --tokens as windows from all over the text, or with --spread=false from its start [default: as in
    /// the run's evaluation of this text, else false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    spread: Option<bool>,
    /// Print JSON: tokens, perplexity, teacher_perplexity, kl, top1, controls
    #[arg(long)]
    json: bool,
}

/// The value of `--tokens`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Amount {
    All,
    Tokens(u64),
}

fn amount(text: &str) -> Result<Amount, String> {
    if text == "all" {
        return Ok(Amount::All);
    }
    let (digits, scale) = match text.strip_suffix(['K', 'M', 'B']) {
        Some(digits) if text.ends_with('K') => (digits, 1_000),
        Some(digits) if text.ends_with('M') => (digits, 1_000_000),
        Some(digits) => (digits, 1_000_000_000),
        None => (text, 1),
    };
    let tokens = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(scale)).filter(|&n| n > 0);
    tokens.map(Amount::Tokens).ok_or_else(|| "expected a number of tokens such as 64K, a whole number, or `all`".into())
}

/// The text to evaluate on, and the windows of it.
struct Choice {
    name: String,
    location: Location,
    selection: Selection,
}

impl Args {
    pub fn run(&self, printer: &Printer) -> Result<()> {
        let opened = Opened::open(&self.model, None)?;
        let Choice { name, location, selection } = self.choice(&opened, printer)?;
        let opened = opened.fetched(printer)?;
        let mut works = Works::new(printer);
        // Refuses a text that is too short before any weight is read.
        let text = EvaluationText::read(&name, &location, selection, &opened.tokenizer()?, &mut works)?;
        let Loaded { model, student } = opened.load()?;
        let teacher = self.teacher(&opened, student.as_ref(), printer)?;
        let report = evaluate::evaluate(&model, student.as_ref(), teacher.as_ref(), &text, &mut works)?;
        if self.json { printer.json(&report) } else { printer.data(rendered(&report, student.is_some())) }
    }

    /// The options where they are given, else what the run that holds the model evaluated, else defaults.
    fn choice(&self, opened: &Opened, printer: &Printer) -> Result<Choice> {
        let evaluations = opened.checkpoint.path().parent().map(evaluations_of_run).unwrap_or_default();
        let same_text =
            |report: &&Report| self.text.as_ref().is_none_or(|t| *t == report.text || *t == report.location);
        let own = evaluations.iter().rev().find(same_text);
        let (name, place) = match (&self.text, own) {
            (Some(text), _) => (text.clone(), text.as_str()),
            (None, Some(own)) => (own.text.clone(), own.location.as_str()),
            (None, None) => {
                let hint = "name one with `--text FILE`; only a run that has evaluated its student knows one by itself";
                return Err(Error::usage("there is no text to evaluate on", hint));
            }
        };
        let location = Location::resolve(place, None)?;
        let as_in_run = own.map(Report::selection);
        let trained = Conversion::of(&opened.checkpoint)?.and_then(|conversion| conversion.trained_sequence);
        let selection = Selection {
            tokens: match self.tokens {
                Some(Amount::Tokens(tokens)) => Some(tokens),
                Some(Amount::All) => None,
                None => as_in_run.and_then(|own| own.tokens),
            },
            sequence: (self.sequence.map(|n| n as usize))
                .or(own.or(evaluations.last()).map(|report| report.sequence))
                .or(trained)
                .unwrap_or(opened.spec.context.min(MAX_DEFAULT_SEQUENCE)),
            spread: self.spread.unwrap_or(as_in_run.is_some_and(|own| own.spread)),
        };
        if self.spread == Some(true) && selection.tokens.is_none() {
            return Err(Error::usage("`--spread` chooses a part of a text", "say how much of it with `--tokens N`"));
        }
        if let Some((trained, warning)) = trained.and_then(|t| Some((t, beyond_training(selection.sequence, t)?))) {
            printer.warn(format_args!("{warning}; `--sequence {trained}` measures what was trained"));
        }
        Ok(Choice { name, location, selection })
    }

    fn teacher(&self, opened: &Opened, student: Option<&Student>, printer: &Printer) -> Result<Option<Model>> {
        match (&self.teacher, student) {
            (Some(teacher), _) => load_teacher(teacher, opened, None, printer).map(Some),
            (None, Some(student)) => Ok(load_own_teacher(opened, student, printer)
                .inspect_err(|error| {
                    printer.warn(format_args!(
                        "the teacher cannot be opened, so nothing is compared with it: {error}\n\
                         name it with `--teacher MODEL`"
                    ));
                })
                .ok()),
            (None, None) => Ok(None),
        }
    }
}

/// The teacher as the run that holds the model knows it, or as the model names it.
fn load_own_teacher(opened: &Opened, student: &Student, printer: &Printer) -> Result<Model> {
    let run = opened.checkpoint.path().parent();
    match run.and_then(teacher_of_run) {
        Some(teacher) => load_teacher(&teacher, opened, run, printer),
        None => load_teacher(&student.conversion.teacher, opened, None, printer),
    }
}

/// `run`: the one whose teacher it should still be.
fn load_teacher(text: &str, student: &Opened, run: Option<&Path>, printer: &Printer) -> Result<Model> {
    let opened = Opened::open(text, None)?;
    if opened.spec.vocab != student.spec.vocab {
        return Err(Error::usage(
            format!(
                "teacher and model have different vocabularies, of {} and {} tokens",
                opened.spec.vocab, student.spec.vocab
            ),
            "name the model that it was converted from",
        ));
    }
    let opened = opened.fetched(printer)?;
    if let Some(run) = run
        && has_teacher(run, &opened.checkpoint, &mut Works::new(printer))? == Some(false)
    {
        printer.warn(format_args!(
            "`{text}` is not the teacher that the run has used: its weights or configuration have changed since\n\
             the comparison is with what is there now"
        ));
    }
    let Loaded { model, student } = opened.load()?;
    match student {
        None => Ok(model),
        Some(_) => Err(Error::usage(
            format!("`{text}` is a converted model, not a teacher"),
            "name the model that it was converted from",
        )),
    }
}

/// A report as a table. `converted`: of a student.
pub(super) fn rendered(report: &Report, converted: bool) -> String {
    let dash = || "-".to_string();
    let row = |name: &str, score: &Score| {
        let ratio = report.teacher_perplexity.map(|teacher| format!("{:.3}", score.perplexity / teacher));
        vec![
            name.to_string(),
            format!("{:.2}", score.perplexity),
            ratio.unwrap_or_else(dash),
            score.kl.map_or_else(dash, |kl| format!("{kl:.4}")),
            score.top1.map_or_else(dash, |share| format!("{:.1}%", 100.0 * share)),
        ]
    };
    let mut rows = vec![["", "perplexity", "ratio", "KL", "top1"].map(String::from).to_vec()];
    rows.push(row(if converted { "student" } else { "model" }, &report.model));
    if let Some(perplexity) = report.teacher_perplexity {
        rows.push(vec!["teacher".into(), format!("{perplexity:.2}"), format!("{:.3}", 1.0), dash(), dash()]);
    }
    rows.extend(report.controls.iter().map(|control| row(&control.name, &control.score)));
    let columns = [Align::Left, Align::Right, Align::Right, Align::Right, Align::Right];
    let tokens = format::count(report.tokens);
    format!("{}{}: {tokens} tokens predicted in {}\n", table(&columns, &rows), report.text, report.windows_in_words())
}
