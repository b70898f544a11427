//! `subquad evaluate`

use super::format::{self, Align, table};
use super::opened::{Loaded, Opened};
use super::printer::Printer;
use crate::checkpoint::Location;
use crate::evaluate::{self, EvaluationText, Report, Score};
use crate::hub;
use crate::model::{Model, Student};
use crate::progress::{Progress, Unit};
use crate::run::{has_teacher, teacher_of_run};
use crate::text::{Windows, documents, tokenize};
use crate::{Error, Result};
use std::path::Path;

/// Longest window that is chosen when none is asked for.
const LONGEST_DEFAULT: usize = 1024;

/// Measure perplexity, and the distance to a teacher, on a text
///
/// A converted model is compared with its teacher, and with controls that switch off a branch of its
/// mixers. Perplexity: the text is cut into consecutive windows, each token but the first of a window is
/// predicted.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A folder, a run, builtin:NAME, or OWNER/NAME[@REVISION] on the Hub
    model: String,
    /// A text that the model was not trained on: .txt, .jsonl, a folder of them, builtin:NAME, or
    /// OWNER/NAME[/FILE] on the Hub
    #[arg(long, value_name = "FILE")]
    text: String,
    /// Compare with this model [default: the one that a converted model was made from]
    #[arg(long, value_name = "MODEL")]
    teacher: Option<String>,
    /// Tokens of a window [default: the model's context, at most 1024]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..=1 << 24))]
    sequence: Option<u64>,
    /// How much of the text, from its start: 64K, 1M or a whole number [default: all]
    #[arg(long, value_name = "N", value_parser = tokens)]
    tokens: Option<usize>,
    /// Take --tokens as windows from all over the text rather than from its start
    #[arg(long, requires = "tokens")]
    spread: bool,
    /// Print JSON: tokens, perplexity, teacher_perplexity, kl, top1, controls
    #[arg(long)]
    json: bool,
}

fn tokens(text: &str) -> Result<usize, String> {
    let (digits, scale) = match text.strip_suffix(['K', 'M', 'B']) {
        Some(digits) if text.ends_with('K') => (digits, 1_000),
        Some(digits) if text.ends_with('M') => (digits, 1_000_000),
        Some(digits) => (digits, 1_000_000_000),
        None => (text, 1),
    };
    let tokens = digits.parse::<usize>().ok().and_then(|n| n.checked_mul(scale)).filter(|&n| n > 0);
    tokens.ok_or_else(|| "a number of tokens such as 64K or a whole number is expected".into())
}

impl Args {
    pub fn run(&self, printer: &Printer) -> Result<()> {
        let text = Location::resolve(&self.text, None)?;
        let opened = Opened::open(&self.model, None)?.fetched(printer)?;
        let sequence = self.sequence.map_or(opened.spec.context.min(LONGEST_DEFAULT), |n| n as usize);
        let name = text.to_string();
        let mut works = printer.works();
        let text = hub::text(&text, &mut works)?;
        let ids = self.ids(&opened, &text, &mut works)?;
        // Refuses a text that is too short before any weight is read.
        let all = Windows::new(ids, sequence, &name)?;
        let windows = match self.tokens {
            Some(tokens) if self.spread => all.spread(tokens as u64),
            _ => all,
        };

        let Loaded { model, student } = opened.load()?;
        let teacher = match (&self.teacher, &student) {
            (Some(teacher), _) => Some(load_teacher(teacher, &opened, None, printer)?),
            (None, Some(student)) => load_own_teacher(&opened, student, printer)
                .inspect_err(|error| {
                    printer.warn(format_args!(
                        "the teacher cannot be opened, so nothing is compared with it: {error}\n\
                         name it with `--teacher MODEL`"
                    ));
                })
                .ok(),
            (None, None) => None,
        };
        let text = EvaluationText { windows: &windows, name: &name };
        let report = evaluate::evaluate(&model, student.as_ref(), teacher.as_ref(), &text, &mut works)?;
        if self.json { printer.json(&report) } else { printer.data(rendered(&report, student.is_some())) }
    }

    fn ids(&self, opened: &Opened, text: &Location, works: &mut dyn Progress) -> Result<Vec<u32>> {
        let tokenizer = opened.tokenizer()?;
        let documents = documents(text)?;
        let bytes = documents.iter().map(|document| document.len() as u64).sum();
        works.begin("tokenize", 0, bytes, Unit::Bytes);
        let ids = tokenize(&documents, &tokenizer, self.tokens.filter(|_| !self.spread), &mut |done| {
            works.advance(done, "")
        })?;
        works.end(&format!("{} tokens", format::count(ids.len() as u64)));
        Ok(ids)
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
        && has_teacher(run, &opened.checkpoint, &mut printer.works())? == Some(false)
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
    let (tokens, sequence) = (format::count(report.tokens), report.sequence);
    format!("{}{}: {tokens} tokens predicted, windows of {sequence}\n", table(&columns, &rows), report.text)
}
