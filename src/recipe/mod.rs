//! The recipe: a TOML file that says all of a conversion.
//!
//! Text becomes a tree that knows its places (`syntax`), `--set` arguments change the tree (`set`), one function
//! per table reads it (`fields`, `stages`), and every mistake is reported at once, with line and column. The same
//! functions describe themselves as a JSON Schema ([`schema()`]).

mod amount;
mod embedded;
mod fields;
mod kinds;
mod node;
mod render;
mod schema;
mod set;
mod sink;
mod stages;
mod syntax;
mod table;
mod types;

use std::path::PathBuf;

pub use embedded::{EMBEDDED, description, embedded};
pub use render::render;
pub use schema::schema;
pub use stages::stage_kinds;
pub use types::*;

use crate::error::{Error, Result};
use node::Node;
use sink::Sink;

impl Recipe {
    /// Reads `text`. `name` stands in messages; `base` is the folder of relative paths; `sets` are `KEY=VALUE`
    /// overrides. All mistakes come in one [`Error::Recipe`].
    pub fn parse(name: &str, text: &str, base: Option<PathBuf>, sets: &[String]) -> Result<Recipe> {
        let mut sink = Sink::default();
        let root = tree(text, sets, &mut sink);
        let body = table::read("", Some(&root), &mut sink, &fields::recipe);
        let mistakes = sink.into_mistakes(text);
        if !mistakes.is_empty() {
            return Err(Error::Recipe { name: name.into(), text: text.into(), mistakes });
        }
        Ok(Recipe {
            name: name.into(),
            text: text.into(),
            base,
            sets: sets.to_vec(),
            seed: body.seed,
            teacher: body.teacher,
            student: body.student,
            data: body.data,
            stages: body.stages.into_iter().flatten().collect(),
            export: body.export,
        })
    }

    /// Reads the recipe that `argument` names: a path that exists, else an embedded recipe.
    pub fn load(argument: &str, sets: &[String]) -> Result<Recipe> {
        let (text, base) = embedded::read(argument)?;
        Recipe::parse(argument, &text, base, sets)
    }

    /// Tokens of a training window, if any stage reads the training text.
    pub fn trained_sequence(&self) -> Option<usize> {
        let reads = |stage: &StageRecipe| matches!(stage, StageRecipe::Calibrate(_)) || stage.training().is_some();
        self.stages.iter().any(reads).then_some(self.data.sequence)
    }

    /// A mistake that only shows beside other things (the model, the text), at the key with this dotted path:
    /// `recipe.mistake("student.keep_softmax", "the teacher has 6 layers", "...")`.
    pub fn mistake(&self, path: &str, what: impl Into<String>, hint: impl Into<String>) -> Error {
        self.mistakes([(path.into(), what.into(), hint.into())])
    }

    /// Several of them, each with its path, what is wrong, and a hint.
    pub fn mistakes(&self, found: impl IntoIterator<Item = (String, String, String)>) -> Error {
        let root = tree(&self.text, &self.sets, &mut Sink::default());
        let mut sink = Sink::default();
        for (path, what, hint) in found {
            sink.add(&root.place_of(&path), what, hint);
        }
        Error::Recipe { name: self.name.clone(), text: self.text.clone(), mistakes: sink.into_mistakes(&self.text) }
    }
}

fn tree(text: &str, sets: &[String], sink: &mut Sink) -> Node {
    let mut root = syntax::parse(text, sink);
    set::apply(&mut root, sets, sink);
    root
}
