//! The proof of an export: the folder opened again, its weights held bit by bit to those in memory, and its logits
//! compared on a batch of random tokens. That all weights are finite in their types was seen before (`range`).

use std::path::Path;

use candle_core::{DType, Tensor};
use rand::RngExt;

use crate::arch::Spec;
use crate::checkpoint::{Checkpoint, Location, values};
use crate::mixer::initial::generator;
use crate::model::{Model, Student, View};
use crate::ops::lm_head;
use crate::progress::{Progress, Unit, check_interrupt};
use crate::{Error, Result};

/// Largest absolute difference of logits in f32 that is taken for equality: weights are equal bit by bit, and sums may
/// be taken in another order.
pub const TOLERANCE: f32 = 1e-5;
/// Sequences of the batch.
const BATCH: usize = 2;
/// Tokens of a sequence, at least.
const TOKENS: usize = 48;
/// Tokens of a sequence beyond the window, so that both branches of a mixer take part.
const BEYOND: usize = 33;
/// Logits that are held at a time.
const LOGITS: usize = 1 << 22;

/// How an exported folder compares with the model in memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parity {
    /// Largest absolute difference of logits to the model in memory with its weights rounded as in the folder.
    pub largest_difference: f32,
    /// Largest absolute difference of logits that rounding makes; `None` when all weights are stored in f32.
    pub rounding: Option<f32>,
}

/// Opens `folder` and compares it with the model in memory. Any difference beyond [`TOLERANCE`], and any weight or logit
/// that is no number, is [`Error::Parity`].
pub fn compare(folder: &Path, model: &Model, student: &Student, progress: &mut dyn Progress) -> Result<Parity> {
    let unreadable = |e| different(format!("the exported folder cannot be opened again: {e}"));
    let (checkpoint, spec, mixers) = reopen(folder).map_err(unreadable)?;
    let mixers =
        mixers.ok_or_else(|| different("the exported config.json does not say that the model is converted"))?;
    if spec != model.spec {
        return Err(different("the exported config.json describes another architecture than the model in memory"));
    }
    let batch = Batch::new(&model.spec, student);
    let rounds = checkpoint.tensors().iter().any(|info| info.dtype != safetensors::Dtype::F32);
    progress.begin("export: reopen and compare", 0, if rounds { 3 } else { 2 }, Unit::Items);

    let memory = batch.answers(&View::student(model, student).without_adapter())?;
    progress.advance(1, "");
    check_interrupt()?;
    let written = {
        let reopened = Model::load(&checkpoint, &spec).map_err(unreadable)?;
        batch.answers(&View::student(&reopened, &mixers))?
    };
    progress.advance(2, "");
    check_interrupt()?;

    hold_mixers(student, &mixers)?;
    let rounded = Model::of(&model.spec, |stored| {
        let dtype = checkpoint.info(&stored.name).map(|info| DType::try_from(info.dtype)).transpose()?;
        let read = checkpoint.tensor(&stored.name, DType::F32)?;
        hold(&stored.name, &read, &model.stored(stored)?, dtype.unwrap_or(DType::F32))
    })?;
    let (expected, rounding) = match rounds {
        false => (memory, None),
        true => {
            let rounded = batch.answers(&View::student(&rounded, student).without_adapter())?;
            let rounding = difference(&memory, &rounded)?;
            progress.advance(3, "");
            (rounded, Some(rounding))
        }
    };
    let largest_difference = difference(&expected, &written)?;
    if !largest_difference.is_finite() || rounding.is_some_and(|r| !r.is_finite()) {
        return Err(not_finite("logits of the model"));
    }
    if largest_difference > TOLERANCE {
        return Err(different(format!(
            "logits of the exported model differ from those of the model in memory by up to {largest_difference:.1e}, \
             and at most {TOLERANCE:.0e} is taken for equal"
        )));
    }
    progress.end(&match rounding {
        None => format!("logits differ by at most {largest_difference:.1e}"),
        Some(rounding) => {
            format!(
                "logits differ by at most {largest_difference:.1e}; rounding the weights moved them by {rounding:.1e}"
            )
        }
    });
    Ok(Parity { largest_difference, rounding })
}

fn reopen(folder: &Path) -> Result<(Checkpoint, Spec, Option<Student>)> {
    let checkpoint = Checkpoint::open(&Location::Path(folder.into()))?;
    let spec = Spec::of(&checkpoint)?;
    let student = Student::load(&checkpoint, &spec)?;
    Ok((checkpoint, spec, student))
}

/// Random tokens, always the same for the same sizes.
struct Batch {
    ids: Vec<u32>,
}

/// What a model makes of a batch: hidden states [1, N, D] and the head that turns them into logits.
struct Answers {
    hidden: Tensor,
    head: lm_head::Head,
}

impl Batch {
    fn new(spec: &Spec, student: &Student) -> Batch {
        let window = student.conversion.window.map_or(0, |w| w.size);
        let most = spec.positions.map_or(usize::MAX, |learned| learned.tokens());
        let tokens = TOKENS.max(window.saturating_add(BEYOND)).min(most.max(1));
        let mut rng = generator(0, "parity");
        Batch { ids: (0..BATCH * tokens).map(|_| rng.random_range(0..spec.vocab as u32)).collect() }
    }

    fn answers(&self, view: &View) -> Result<Answers> {
        let hidden = view.hidden(&self.ids, BATCH)?.reshape((1, self.ids.len(), view.model.spec.width))?;
        Ok(Answers { hidden, head: view.model.head.clone() })
    }
}

/// Largest absolute difference of logits; not finite when any of them is not.
fn difference(a: &Answers, b: &Answers) -> Result<f32> {
    let (tokens, vocab) = (a.hidden.dim(1)?, a.head.weight.dim(0)?);
    let step = (LOGITS / vocab.max(1)).clamp(1, tokens);
    let mut largest = 0f32;
    for first in (0..tokens).step_by(step) {
        let logits = |x: &Answers| -> Result<Vec<f32>> {
            let part = x.hidden.narrow(1, first, step.min(tokens - first))?.contiguous()?;
            values(&lm_head::logits(&part, &x.head)?)
        };
        for (x, y) in logits(a)?.into_iter().zip(logits(b)?) {
            let d = (x - y).abs();
            // `max` would pass over NaN.
            if !d.is_finite() {
                return Ok(f32::NAN);
            }
            largest = largest.max(d);
        }
    }
    Ok(largest)
}

/// Every tensor of the mixers as in memory.
fn hold_mixers(student: &Student, read: &Student) -> Result<()> {
    for (name, tensor) in &read.tensors {
        match student.tensors.get(name) {
            Some(own) if own.dims() == tensor.dims() => hold(name, tensor, own, DType::F32).map(drop)?,
            _ => return Err(different(format!("the exported tensor `{name}` is not in memory, or of another shape"))),
        }
    }
    Ok(())
}

/// `own` rounded to the `stored` type, if `read` equals it bit by bit.
fn hold(name: &str, read: &Tensor, own: &Tensor, stored: DType) -> Result<Tensor> {
    let rounded = own.to_dtype(stored)?.to_dtype(DType::F32)?;
    let (got, want) = (values(read)?, values(&rounded)?);
    match got.iter().zip(&want).filter(|(a, b)| a.to_bits() != b.to_bits()).count() {
        0 => Ok(rounded),
        n => Err(different(format!(
            "{n} of {} numbers of the exported tensor `{name}` are not those in memory",
            want.len()
        ))),
    }
}

fn different(what: impl Into<String>) -> Error {
    Error::Parity {
        what: what.into(),
        hint: "nothing was exported; run the same command again, and report it if it happens again: the disk is at \
               fault, or subquad"
            .into(),
    }
}

fn not_finite(what: &str) -> Error {
    Error::Parity {
        what: format!("{what} are not finite numbers"),
        hint: "nothing was exported; the training has diverged: lower `optimizer.lr` or set `optimizer.clip`, and run \
               it afresh"
            .into(),
    }
}
