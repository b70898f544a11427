//! Mechanisms that replace softmax attention: one file each, one line in [`MIXERS`].

pub mod options;

pub use options::{OptionKind, OptionSpec};

/// What is known of a mixer before any model is loaded.
pub struct Registration {
    pub name: &'static str,
    /// One line for lists.
    pub summary: &'static str,
    /// The mathematics in one line.
    pub formula: &'static str,
    /// Paper or code that defines it.
    pub paper: &'static str,
    pub options: &'static [OptionSpec],
}

/// All mixers.
pub static MIXERS: &[Registration] = &[Registration {
    name: "hedgehog",
    summary: "learned softmax feature maps, per head (LoLCATs)",
    formula: "phi(x) = [softmax(x W), softmax(-x W)];  o_t = phi(q_t)^T S_t / phi(q_t)^T z_t",
    paper: "Hedgehog (arXiv 2402.04347), as in LoLCATs (arXiv 2410.10254)",
    options: &[
        OptionSpec {
            name: "feature_width",
            kind: OptionKind::Integer { min: 1, max: 1024 },
            default: "null",
            help: "columns of each head's map; the head has twice as many features (default: the head width, as LoLCATs' 8B configs)",
        },
        OptionSpec {
            name: "init",
            kind: OptionKind::Choice(&["identity", "kaiming"]),
            default: "\"identity\"",
            help: "how maps start: a (rectangular) identity, which LoLCATs' published commands select, or Kaiming-uniform",
        },
    ],
}];

/// The mixer of that name.
pub fn find(name: &str) -> Option<&'static Registration> {
    MIXERS.iter().find(|m| m.name == name)
}
