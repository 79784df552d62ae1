//! ① Errors that name the field, the value and what would be right.

use std::fmt;

use crate::names::printable;

/// Where in an object a value stands: `spec.mounts[0].mountPoint`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    #[must_use]
    pub fn root(name: &str) -> Self {
        Self(name.to_owned())
    }

    #[must_use]
    pub fn key(&self, name: &str) -> Self {
        if name.contains(['.', '/', '[', ']']) {
            Self(format!("{}[{name}]", self.0))
        } else {
            Self(format!("{}.{name}", self.0))
        }
    }

    #[must_use]
    pub fn index(&self, i: usize) -> Self {
        Self(format!("{}[{i}]", self.0))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One broken rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    pub field: String,
    pub message: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// Every broken rule of an object, in the order of the checks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldErrors(pub Vec<FieldError>);

impl FieldErrors {
    pub fn push(&mut self, path: &Path, message: impl Into<String>) {
        self.0.push(FieldError { field: path.to_string(), message: message.into() });
    }

    /// The value is there and wrong.
    pub fn invalid(&mut self, path: &Path, value: &str, problem: impl fmt::Display) {
        self.push(path, format!("invalid value \"{}\": {problem}", printable(value)));
    }

    /// The value is missing.
    pub fn required(&mut self, path: &Path, what: impl fmt::Display) {
        self.push(path, format!("required value: {what}"));
    }

    /// The change is not allowed once the object exists.
    pub fn immutable(&mut self, path: &Path) {
        self.push(path, "is immutable: delete the object and create another");
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
