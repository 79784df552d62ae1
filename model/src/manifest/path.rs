//! Where a thing is inside a dataset: a path that cannot lead out of it.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest component in bytes: the limit of the common file systems.
pub const MAX_COMPONENT_BYTES: usize = 255;
/// Longest path in bytes.
pub const MAX_PATH_BYTES: usize = 4096;
/// Most components of a path.
pub const MAX_DEPTH: usize = 64;

/// A path inside a dataset: UTF-8, relative, `/` between components, none of them empty, `.` or `..`.
///
/// The order is that of a depth-first walk: component by component, bytewise, a directory before what is in it.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct RelativePath(String);

/// Why a text is not a path inside a dataset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The path is empty where a name is needed.
    #[error("path is empty; a relative path such as `dir/file` is needed")]
    Empty,
    /// The path starts with `/`.
    #[error("path {path:?} is absolute; it must be relative, without a leading `/`")]
    Absolute {
        /// The path.
        path: String,
    },
    /// The path is too long.
    #[error("path {start:?}… is {bytes} bytes long; at most {MAX_PATH_BYTES} are allowed")]
    TooLong {
        /// Its first characters.
        start: String,
        /// Its length in bytes.
        bytes: usize,
    },
    /// The path has too many components.
    #[error("path {start:?}… has {depth} components; at most {MAX_DEPTH} are allowed")]
    TooDeep {
        /// Its first characters.
        start: String,
        /// Its number of components.
        depth: usize,
    },
    /// A component is empty (`a//b` or a trailing `/`).
    #[error("path {path:?} has an empty component; write one `/` between names and none at the end")]
    EmptyComponent {
        /// The path.
        path: String,
    },
    /// A component is `.` or `..`.
    #[error("path {path:?} has the component {component:?}; `.` and `..` are not allowed")]
    Dots {
        /// The path.
        path: String,
        /// The component.
        component: String,
    },
    /// A component holds a NUL byte.
    #[error("path component {component:?} holds a NUL byte")]
    Nul {
        /// The component.
        component: String,
    },
    /// A component is too long.
    #[error("path component {start:?}… is {bytes} bytes long; at most {MAX_COMPONENT_BYTES} are allowed")]
    ComponentTooLong {
        /// Its first characters.
        start: String,
        /// Its length in bytes.
        bytes: usize,
    },
    /// A component holds `/`.
    #[error("path component {component:?} holds `/`")]
    Slash {
        /// The component.
        component: String,
    },
}

/// Enough of a long text to recognise it.
fn start_of(text: &str) -> String {
    text.chars().take(32).collect()
}

/// Checks one component; `path` is what it is named by in errors.
fn check_component(path: &str, component: &str) -> Result<(), PathError> {
    if component.is_empty() {
        return Err(PathError::EmptyComponent { path: path.to_owned() });
    }
    if component == "." || component == ".." {
        return Err(PathError::Dots { path: path.to_owned(), component: component.to_owned() });
    }
    if component.contains('\0') {
        return Err(PathError::Nul { component: component.to_owned() });
    }
    if component.len() > MAX_COMPONENT_BYTES {
        return Err(PathError::ComponentTooLong { start: start_of(component), bytes: component.len() });
    }
    Ok(())
}

/// Checks the name of one entry of a directory.
///
/// # Errors
/// As for a path of one component.
pub fn check_name(name: &str) -> Result<(), PathError> {
    if name.contains('/') {
        return Err(PathError::Slash { component: name.to_owned() });
    }
    check_component(name, name)
}

impl RelativePath {
    /// The dataset itself.
    #[must_use]
    pub const fn root() -> Self {
        Self(String::new())
    }

    /// Parses a path of at least one component.
    ///
    /// # Errors
    /// Names the part that is not allowed.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        if text.is_empty() {
            return Err(PathError::Empty);
        }
        if text.len() > MAX_PATH_BYTES {
            return Err(PathError::TooLong { start: start_of(text), bytes: text.len() });
        }
        if text.starts_with('/') {
            return Err(PathError::Absolute { path: text.to_owned() });
        }
        let depth = text.split('/').count();
        if depth > MAX_DEPTH {
            return Err(PathError::TooDeep { start: start_of(text), depth });
        }
        text.split('/').try_for_each(|component| check_component(text, component))?;
        Ok(Self(text.to_owned()))
    }

    /// Whether this is the dataset itself.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The text; empty for the root.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The components, none for the root.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/').filter(|component| !component.is_empty())
    }

    /// Number of components.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.components().count()
    }

    /// The last component; `None` for the root.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.components().next_back()
    }

    /// The directory that it is in; `None` for the root.
    #[must_use]
    pub fn parent(&self) -> Option<RelativePath> {
        if self.is_root() {
            return None;
        }
        Some(Self(self.0.rsplit_once('/').map_or_else(String::new, |(parent, _)| parent.to_owned())))
    }

    /// The entry `name` of this directory.
    ///
    /// # Errors
    /// When the name or the whole path is not allowed.
    pub fn join(&self, name: &str) -> Result<Self, PathError> {
        check_name(name)?;
        if self.is_root() { Self::parse(name) } else { Self::parse(&format!("{}/{name}", self.0)) }
    }

    /// `path` below this directory.
    ///
    /// # Errors
    /// When the whole path is too long or too deep.
    pub fn join_path(&self, path: &RelativePath) -> Result<Self, PathError> {
        match (self.is_root(), path.is_root()) {
            (true, _) => Ok(path.clone()),
            (_, true) => Ok(self.clone()),
            _ => Self::parse(&format!("{}/{}", self.0, path.0)),
        }
    }

    /// What is left of this path below `directory`; `None` when it is not below it.
    #[must_use]
    pub fn strip_prefix(&self, directory: &RelativePath) -> Option<RelativePath> {
        if directory.is_root() {
            return Some(self.clone());
        }
        let rest = self.0.strip_prefix(&directory.0)?;
        if rest.is_empty() {
            return Some(Self::root());
        }
        rest.strip_prefix('/').map(|rest| Self(rest.to_owned()))
    }

    /// Bytes whose plain order is the order of paths: a key for stores that sort bytes. Names hold no NUL, so that the
    /// separator sorts before everything else.
    #[must_use]
    pub fn sort_key(&self) -> Vec<u8> {
        self.0.bytes().map(|byte| if byte == b'/' { 0 } else { byte }).collect()
    }
}

impl Ord for RelativePath {
    fn cmp(&self, other: &Self) -> Ordering {
        self.components().map(str::as_bytes).cmp(other.components().map(str::as_bytes))
    }
}

impl PartialOrd for RelativePath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl FromStr for RelativePath {
    type Err = PathError;
    fn from_str(text: &str) -> Result<Self, PathError> {
        Self::parse(text)
    }
}

/// The serialised form, in which the empty text is the root.
impl TryFrom<String> for RelativePath {
    type Error = PathError;
    fn try_from(text: String) -> Result<Self, PathError> {
        if text.is_empty() { Ok(Self::root()) } else { Self::parse(&text) }
    }
}

impl From<RelativePath> for String {
    fn from(path: RelativePath) -> String {
        path.0
    }
}

impl AsRef<str> for RelativePath {
    fn as_ref(&self) -> &str {
        &self.0
    }
}
