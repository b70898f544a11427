//! Why a mixer cannot serve a teacher, said before anything runs.

use super::LayerDims;

/// One reason. Whoever has a recipe shows it at the option that it names, or at the mixer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incompatibility {
    /// The option that is to blame.
    pub option: Option<&'static str>,
    /// In one sentence, without the mixer's name.
    pub what: String,
    /// What to do about it.
    pub hint: String,
}

impl Incompatibility {
    /// Maps to `columns` columns that start as a rectangular identity of fewer channels: what is beyond these starts at
    /// zero, all of it learns the same, and it counts once or not at all.
    pub(super) fn wide_identity(
        option: &'static str,
        columns: usize,
        layer_dims: &LayerDims,
        or_else: &str,
    ) -> Option<Incompatibility> {
        (columns > layer_dims.width).then(|| Incompatibility {
            option: Some(option),
            what: format!(
                "`{option}` is {columns}, and heads of this teacher have {} channels: maps that start as an identity \
                 have zeros beyond them, which all learn the same",
                layer_dims.width
            ),
            hint: format!("at most {}{or_else}", layer_dims.width),
        })
    }
}
