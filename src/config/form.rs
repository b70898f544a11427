//! Entries of registries from which a key chooses.

/// An entry of a registry from which a key chooses by name, see [`Table::variant`].
pub trait Form {
    fn name(&self) -> &'static str;
    /// One line for the schema.
    fn about(&self) -> &'static str;
}

impl Form for (&'static str, &'static str) {
    fn name(&self) -> &'static str {
        self.0
    }

    fn about(&self) -> &'static str {
        self.1
    }
}

/// A name, a line about it, and what reads the rest of the table.
impl<R> Form for (&'static str, &'static str, R) {
    fn name(&self) -> &'static str {
        self.0
    }

    fn about(&self) -> &'static str {
        self.1
    }
}
