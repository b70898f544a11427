//! A mixer and the window beside it.

use crate::checkpoint::nearest;
use crate::mixer::{self, MIXERS};
use crate::recipe::{KeepSoftmax, Recipe};
use crate::{Error, Result};
use std::fmt;
use std::path::{Path, PathBuf};

/// One of the things that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Combination {
    /// A name in [`MIXERS`].
    pub mixer: &'static str,
    /// Keys of the window, which is combined as the mixer's default says.
    pub window: Option<usize>,
}

impl Combination {
    /// Every mixer (`all`, or their names) with every window (`none`, or numbers of keys): mixers in the order of
    /// [`MIXERS`], windows as given.
    pub fn all(mixers: &[String], windows: &[String]) -> Result<Vec<Combination>> {
        let mut wrong = vec![];
        for name in mixers.iter().filter(|name| *name != "all" && mixer::find(name).is_none()) {
            let near = nearest(name, MIXERS.iter().map(|m| m.name)).map(|near| format!(", did you mean `{near}`?"));
            wrong.push(format!("unknown mixer `{name}`{}", near.unwrap_or_default()));
        }
        let mut sizes = vec![];
        for text in windows {
            match (text.as_str(), text.parse::<usize>()) {
                ("none", _) => sizes.push(None),
                (_, Ok(size)) if size > 0 => sizes.push(Some(size)),
                _ => wrong.push(format!("`{text}` is no window")),
            }
        }
        if !wrong.is_empty() {
            let hint = "`--mixers` takes `all` or names that `subquad mixers` lists, `--windows` takes `none` and \
                        numbers of keys; both separated by commas";
            return Err(Error::usage(wrong.join("; "), hint));
        }
        let wanted = |name: &str| mixers.iter().any(|m| m == "all" || m == name);
        let mut all: Vec<Combination> = vec![];
        for mixer in MIXERS.iter().map(|m| m.name).filter(|name| wanted(name)) {
            for &window in &sizes {
                let combination = Combination { mixer, window };
                if !all.contains(&combination) {
                    all.push(combination);
                }
            }
        }
        Ok(all)
    }

    /// `recipe` with this mixer at its defaults and this window, all else as it is.
    pub fn recipe(&self, recipe: &Recipe) -> Result<Recipe> {
        let window = self.window.map(|size| format!(", window = {{ size = {size} }}")).unwrap_or_default();
        let keep = match &recipe.student.keep_softmax {
            KeepSoftmax::Layers(layers) => format!("{layers:?}"),
            KeepSoftmax::Every { every } => format!("{{ every = {every} }}"),
        };
        let student = format!("student={{ mixer = \"{}\"{window}, keep_softmax = {keep} }}", self.mixer);
        let sets: Vec<String> = recipe.sets.iter().cloned().chain([student]).collect();
        Recipe::parse(&recipe.name, &recipe.text, recipe.base.clone(), &sets)
    }

    /// Its run folder in that of the sweep.
    pub(super) fn folder(&self, sweep: &Path) -> PathBuf {
        sweep.join(self.name())
    }

    /// The file that says what came of it.
    pub(super) fn record(&self, sweep: &Path) -> PathBuf {
        sweep.join(format!("{}.json", self.name()))
    }

    fn name(&self) -> String {
        match self.window {
            Some(size) => format!("{}-window{size}", self.mixer),
            None => format!("{}-alone", self.mixer),
        }
    }
}

impl fmt::Display for Combination {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.window {
            Some(size) => write!(f, "{} beside a window of {size}", self.mixer),
            None => write!(f, "{} alone", self.mixer),
        }
    }
}
