//! Perplexity of a model beside its teacher and its controls.
//!
//! A text is tokenised once and cut into consecutive windows of `sequence` tokens; each predicts its last
//! `sequence - 1`. All models see a batch of windows together, so that one pass over the logits serves them all.

mod layers;
pub mod report;
mod text;

pub use report::{Control, LayerError, Report, Score};
pub(crate) use text::tokenized;
pub use text::{EvaluationText, Part, Selection, beyond_training};

use crate::mixer::Branches;
use crate::model::{Model, Student, View};
use crate::ops::lm_head::{self, Sums};
use crate::progress::{Progress, Unit, check_interrupt};
use crate::{Error, Result};
use candle_core::Tensor;

/// Tokens that are run at once.
const BATCH_TOKENS: usize = 4096;

/// Scores `student` on `model`'s weights (or `model` alone), the teacher, and the controls of a student: its window
/// only, its linear branch only, the teacher with nothing but the window, nothing trained, and its mixers silent. With
/// a teacher also how far each layer is from the teacher's, on the first 4096 tokens of the text (at least
/// one window).
pub fn evaluate(
    model: &Model,
    student: Option<&Student>,
    teacher: Option<&Model>,
    text: &EvaluationText,
    progress: &mut dyn Progress,
) -> Result<Report> {
    let main = View::of(model, student);
    let mut views = vec![];
    views.extend(teacher.map(|t| ("teacher", View::teacher(t))));
    views.push(("student", main));
    if let Some(student) = student {
        if student.conversion.window.is_some() {
            views.push(("window only", main.with(Branches::WindowOnly)));
            views.push(("linear only", main.with(Branches::LinearOnly)));
            views.extend(teacher.map(|t| ("bare window", bare(t, student))));
        }
        views.push(("silent mixer", main.silent()));
    }
    if let Some(teacher) = teacher.filter(|t| t.spec.vocab != model.spec.vocab) {
        return Err(Error::usage(
            format!("the teacher has {} tokens, the model {}", teacher.spec.vocab, model.spec.vocab),
            "give the teacher that this model was converted from with `--teacher`",
        ));
    }

    let windows = &text.windows;
    let sequence = windows.sequence();
    let batch = (BATCH_TOKENS / sequence).max(1);
    let mut sums = vec![Sums::default(); views.len()];
    let mut layer_errors = vec![];
    progress.begin(&format!("evaluate on {}", text.name), 0, (windows.len() * sequence) as u64, Unit::Tokens);
    for first in (0..windows.len()).step_by(batch) {
        check_interrupt()?;
        let rows = first..(first + batch).min(windows.len());
        let ids: Vec<u32> = rows.clone().flat_map(|i| windows.get(i).iter().copied()).collect();
        let targets = lm_head::next_tokens(&ids, sequence);
        if let (0, Some(teacher), Some(student)) = (first, teacher, student) {
            layer_errors = layers::errors(teacher, student, &main, &ids, rows.len())?;
        }
        let hidden: Vec<Tensor> = views.iter().map(|(_, v)| v.hidden(&ids, rows.len())).collect::<Result<_>>()?;
        let part = score(&views, &hidden, &targets)?;
        for (sum, part) in sums.iter_mut().zip(&part) {
            *sum += part;
        }
        let note = format!("perplexity {:.3}", scored(&sums[usize::from(teacher.is_some())], false).perplexity);
        progress.advance((rows.end * sequence) as u64, &note);
    }
    let named = |name: &str| views.iter().position(|(n, _)| *n == name).map(|i| sums[i]);
    let own = named("student").unwrap_or_default();
    let report = Report {
        text: text.name.clone(),
        location: text.location.clone(),
        tokens: own.tokens,
        sequence,
        windows: windows.len(),
        part: text.part,
        model: scored(&own, teacher.is_some()),
        teacher_perplexity: named("teacher").map(|s| scored(&s, false).perplexity),
        layer_errors,
        controls: views
            .iter()
            .zip(&sums)
            .filter(|((name, _), _)| !matches!(*name, "teacher" | "student"))
            .map(|((name, _), s)| Control { name: name.to_string(), score: scored(s, teacher.is_some()) })
            .collect(),
    };
    let teacher = report.teacher_perplexity.map(|t| format!(", teacher {t:.3}")).unwrap_or_default();
    progress.end(&format!("perplexity {:.3}{teacher}", report.model.perplexity));
    Ok(report)
}

/// The teacher's weights under the student's window.
fn bare<'a>(teacher: &'a Model, student: &'a Student) -> View<'a> {
    View::student(teacher, student).with(Branches::UntrainedWindow).without_adapter()
}

/// Sums of every view on one batch; views on one head share its pass.
fn score(views: &[(&str, View)], hidden: &[Tensor], targets: &[u32]) -> Result<Vec<Sums>> {
    let heads: Vec<&lm_head::Head> = views.iter().map(|(_, v)| &v.model.head).collect();
    let models: Vec<(&Tensor, &lm_head::Head)> = hidden.iter().zip(heads).collect();
    lm_head::compare(&models, targets)
}

fn scored(sums: &Sums, against_teacher: bool) -> Score {
    let n = sums.tokens.max(1) as f64;
    Score {
        perplexity: (sums.nll / n).exp(),
        kl: against_teacher.then_some(sums.kl / n),
        top1: against_teacher.then_some(sums.agree as f64 / n),
    }
}
