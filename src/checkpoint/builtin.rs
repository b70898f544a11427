//! The assets in the binary: two small teachers and the texts to convert them with, so that nothing must be downloaded.

use std::fmt;

/// A folder in the binary: a model, or one text.
pub struct Builtin {
    /// The name after `builtin:`.
    pub name: &'static str,
    /// File names and contents, sorted by name.
    pub files: &'static [(&'static str, &'static [u8])],
}

macro_rules! builtin {
    ($name:literal, $folder:literal, [$($file:literal),+ $(,)?]) => {
        Builtin {
            name: $name,
            files: &[$(($file, include_bytes!(concat!("../../assets/", $folder, "/", $file)))),+],
        }
    };
}

/// Everything that is embedded; provenance and licences are in `assets/README.md`.
pub static BUILTINS: &[Builtin] = &[
    builtin!(
        "stories260K",
        "stories260K",
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    ),
    builtin!(
        "books-llama-7m",
        "books-llama-7m",
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    ),
    builtin!("books-train", "text", ["books-train.txt"]),
    builtin!("books-valid", "text", ["books-valid.txt"]),
    builtin!("tinystories", "text", ["tinystories.txt"]),
    builtin!("tinystories-valid", "text", ["tinystories-valid.txt"]),
];

impl Builtin {
    /// The builtin of that name (without `builtin:`).
    pub fn find(name: &str) -> Option<&'static Builtin> {
        BUILTINS.iter().find(|b| b.name == name)
    }

    /// The contents of one of its files.
    pub fn file(&self, name: &str) -> Option<&'static [u8]> {
        self.files.iter().find(|(n, _)| *n == name).map(|(_, bytes)| *bytes)
    }

    /// Whether it is a model; the others are texts.
    pub fn is_model(&self) -> bool {
        self.file(super::CONFIG).is_some()
    }

    /// All names as a user writes them, for hints.
    pub(crate) fn list() -> String {
        BUILTINS.iter().map(|b| format!("`builtin:{}`", b.name)).collect::<Vec<_>>().join(", ")
    }
}

/// The name only: the contents are megabytes.
impl fmt::Debug for Builtin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "builtin:{}", self.name)
    }
}
