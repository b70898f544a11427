//! A model as commands open it: headers first, weights when all else is known to be right.

use std::path::Path;

use super::printer::Printer;
use super::progress::Works;
use crate::arch::Spec;
use crate::checkpoint::{CONFIG, Checkpoint, Location};
use crate::hub;
use crate::model::{Model, Student, View};
use crate::run::is_run;
use crate::text::Tokenizer;
use crate::{Error, Result};

/// A checkpoint and what its headers say.
pub(super) struct Opened {
    location: Location,
    pub checkpoint: Checkpoint,
    pub spec: Spec,
}

/// A model in memory: the weights, and the student that a converted model is.
pub(super) struct Loaded {
    pub model: Model,
    pub student: Option<Student>,
}

impl Opened {
    /// Opens a model by its headers. `text` is a folder, `builtin:NAME`, a Hub id, or a run folder with a finished model in
    /// it.
    pub fn open(text: &str, base: Option<&Path>) -> Result<Opened> {
        let location = inside_run(Location::resolve(text, base)?)?;
        let checkpoint = hub::open(&location)?;
        let spec = Spec::of(&checkpoint)?;
        tracing::debug!(model = %checkpoint.path().display(), family = spec.family, "opened");
        Ok(Opened { location, checkpoint, spec })
    }

    /// Downloads what is still on the Hub.
    pub fn fetched(self, printer: &Printer) -> Result<Opened> {
        let Location::Hub(_) = &self.location else { return Ok(self) };
        let location = hub::model(&self.location, &mut Works::new(printer))?;
        Ok(Opened { checkpoint: Checkpoint::open(&location)?, location, spec: self.spec })
    }

    /// What was opened: the path, `builtin:NAME`, or the Hub id.
    pub fn label(&self) -> String {
        self.location.to_string()
    }

    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::open(self.checkpoint.files(), self.spec.vocab, self.spec.eos.first().copied())
    }

    /// Reads all weights.
    pub fn load(&self) -> Result<Loaded> {
        let student = Student::load(&self.checkpoint, &self.spec)?;
        Ok(Loaded { model: Model::load(&self.checkpoint, &self.spec)?, student })
    }
}

impl Loaded {
    pub fn view(&self) -> View<'_> {
        match &self.student {
            Some(student) => View::student(&self.model, student),
            None => View::teacher(&self.model),
        }
    }
}

/// Who names a run means the model that it made.
pub(super) fn inside_run(location: Location) -> Result<Location> {
    match location {
        Location::Path(run) if !run.join(CONFIG).exists() && run.join("model").join(CONFIG).exists() => {
            Ok(Location::Path(run.join("model")))
        }
        Location::Path(run) if !run.join(CONFIG).exists() && is_run(&run) => {
            let hint = "run its `convert` command again to finish it";
            Err(Error::run(run, "this run has not finished, so there is no model in it yet", hint))
        }
        other => Ok(other),
    }
}
