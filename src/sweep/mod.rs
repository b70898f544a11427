//! One recipe with each mixer in turn, all else as it is: what every mechanism reaches, and what it costs.
//!
//! ```text
//! FOLDER/gla-window64/        the run of one combination; gla-alone/ is that without a window
//! FOLDER/gla-window64.json    what came of it: all that tables are made of
//! ```
//!
//! A combination is a run like any other, but for the export: one that was stopped goes on, and of one that is
//! finished nothing is done twice. A run folder is one process's, so several may work in one FOLDER.

mod combination;
mod record;
mod row;

use crate::plan::{Machine, Plan};
use crate::progress::{Progress, check_interrupt};
use crate::recipe::Recipe;
use crate::run::measure;
use crate::{Error, Result};
use std::path::Path;

pub use combination::Combination;
pub use record::{Record, Sizes};
pub use row::{Row, ZeroTokens};

/// What is to be compared.
pub struct Sweep<'a> {
    /// Its mixer, options and window are those of no combination.
    pub recipe: &'a Recipe,
    pub folder: &'a Path,
    pub combinations: &'a [Combination],
}

/// What the folder knows of the combinations of a [`Sweep`].
#[derive(Debug)]
pub struct Found {
    pub rows: Vec<Row>,
    /// Combinations of which there is nothing.
    pub missing: usize,
    /// Combinations of which there is something else: from other stages, texts, teacher or seed.
    pub other: usize,
}

impl Sweep<'_> {
    /// Runs every combination. One that cannot be run is left with the reason; what concerns all of them (a full disk,
    /// Ctrl-C) ends the sweep.
    pub fn run(&self, machine: Machine, progress: &mut dyn Progress) -> Result<()> {
        // What is wrong with teacher, texts or stages is wrong for every mixer, and said before anything is written.
        Plan::new(self.recipe, self.folder, machine)?;
        std::fs::create_dir_all(self.folder).map_err(Error::io(self.folder, "make the folder"))?;
        let all = self.combinations.len();
        for (index, combination) in self.combinations.iter().enumerate() {
            check_interrupt()?;
            progress.say(&format!("\n{combination}, {} of {all}", index + 1));
            match self.one(combination, machine, progress) {
                Ok(record) => {
                    if let Some(failure) = &record.failure {
                        progress.say(failure);
                    }
                    record.write(&combination.record(self.folder))?;
                }
                // Of the mixer this says nothing: another process is at it, or somebody touched its folder.
                Err(error @ Error::Run { .. }) => progress.say(&error.to_string()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What came of a combination; an error is one that says nothing of the combination.
    fn one(&self, combination: &Combination, machine: Machine, progress: &mut dyn Progress) -> Result<Record> {
        let mut record = Record::new(combination, self.recipe)?;
        let planned = combination.recipe(self.recipe).and_then(|recipe| {
            let plan = Plan::new(&recipe, &combination.folder(self.folder), machine)?;
            Ok((recipe, plan))
        });
        let end = planned.and_then(|(recipe, plan)| {
            record.sizes = Some(Sizes::of(&plan.student));
            let (stages, end) = measure(&recipe, &plan, progress);
            record.stages = stages;
            end
        });
        match end {
            Ok(()) => Ok(record),
            Err(error @ (Error::Interrupted | Error::Io { .. } | Error::Disk { .. } | Error::Run { .. })) => Err(error),
            Err(error) => Ok(Record { failure: Some(record::reason(&error)), ..record }),
        }
    }

    /// What is there of every combination.
    pub fn found(&self) -> Result<Found> {
        let mut found = Found { rows: vec![], missing: 0, other: 0 };
        let settings = record::settings(self.recipe)?;
        for combination in self.combinations {
            match Record::read(&combination.record(self.folder))? {
                None => found.missing += 1,
                Some(record) if record.settings != settings => found.other += 1,
                Some(record) => found.rows.push(Row::of(&record)),
            }
        }
        Ok(found)
    }
}
