//! ① Where bytes live, as users write it: `file:///dir`, `s3://bucket/prefix`, `oss://bucket/prefix`, `gs://bucket/prefix`,
//! `azblob://container/prefix`, `webhdfs://host:port/dir`, `https://host/dir/`.
//!
//! Invariants: a parsed URI has a known scheme, no user, password, query or fragment, and a path without `..`, NUL or
//! empty parts; its text is canonical (no trailing slash, but over HTTP, where it says that the location is a tree).

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::names::printable;

/// The schemes that this release can read.
pub const SCHEMES: &[&str] = &["file", "s3", "oss", "gs", "azblob", "webhdfs", "http", "https"];
/// Those among them that it can write.
const WRITABLE: &[&str] = &["file", "s3", "oss", "gs", "azblob"];

/// A checked location.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Uri {
    scheme: String,
    authority: String,
    path: String,
}

/// Why a text is no usable location.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UriError {
    #[error("\"{0}\" is not a URI: write SCHEME://…, for example file:///data/set or s3://bucket/prefix")]
    NotAUri(String),
    #[error("scheme \"{0}\" is not supported: use one of file, s3, oss, gs, azblob, webhdfs, http, https")]
    Scheme(String),
    #[error("\"{0}\" carries a user or password: give credentials as options")]
    Credentials(String),
    #[error("\"{0}\" has a query or fragment, which a location must not have")]
    Query(String),
    #[error("\"{0}\" must name an absolute directory without a host: file:///dir")]
    FilePath(String),
    #[error("\"{0}\" needs a {1}")]
    Bucket(String, String),
    #[error("\"{0}\" needs a host: {1}://HOST:PORT/…")]
    Host(String, &'static str),
    #[error("\"{0}\" has a path with \"..\", \".\", an empty part, a backslash or a control character")]
    Path(String),
    #[error("is {0} bytes long; at most 1024 are allowed")]
    TooLong(usize),
}

const MAX_URI: usize = 1024;

/// Which names buckets have, or what a store has in their place.
struct BucketRule {
    scheme: &'static str,
    /// What the store calls it.
    of: &'static str,
    holds: fn(&str) -> bool,
    /// Which characters they have beside lower-case letters.
    letters: &'static str,
}

const BUCKET_RULES: [BucketRule; 4] = [
    BucketRule { scheme: "s3", of: "bucket", holds: bucket_name, letters: "digits, '.' or '-'" },
    BucketRule { scheme: "oss", of: "bucket", holds: oss_bucket_name, letters: "digits or '-'" },
    BucketRule { scheme: "gs", of: "bucket", holds: gcs_bucket_name, letters: "digits, '.', '_' or '-'" },
    BucketRule { scheme: "azblob", of: "container", holds: container_name, letters: "digits or '-'" },
];

impl BucketRule {
    fn wanted(&self) -> String {
        let Self { scheme, of, letters, .. } = self;
        format!("{of}: {scheme}://{}/PREFIX (3 to 63 lower-case letters, {letters})", of.to_uppercase())
    }
}

impl Uri {
    /// Parses and checks a location.
    ///
    /// # Errors
    /// Says which part is wrong and what would be right.
    pub fn parse(text: &str) -> Result<Self, UriError> {
        if text.len() > MAX_URI {
            return Err(UriError::TooLong(text.len()));
        }
        let shown = || printable(text);
        let (scheme, rest) = text.split_once("://").ok_or_else(|| UriError::NotAUri(shown()))?;
        if !SCHEMES.contains(&scheme) {
            return Err(UriError::Scheme(printable(scheme)));
        }
        if rest.contains(['?', '#']) && scheme != "file" {
            return Err(UriError::Query(shown()));
        }
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if authority.contains('@') {
            // The text is not repeated: it may hold a password.
            return Err(UriError::Credentials(format!("{scheme}://…")));
        }
        if scheme == "file" && (!authority.is_empty() || !path.starts_with('/')) {
            return Err(UriError::FilePath(shown()));
        }
        let broken = BUCKET_RULES.iter().find(|rule| rule.scheme == scheme && !(rule.holds)(authority));
        if let Some(rule) = broken {
            return Err(UriError::Bucket(shown(), rule.wanted()));
        }
        let host_like = |scheme| SCHEMES.iter().copied().find(|known| *known == scheme && !WRITABLE.contains(known));
        if let Some(scheme) = host_like(scheme).filter(|_| !host(authority)) {
            return Err(UriError::Host(shown(), scheme));
        }
        let (path, tree) = match path.strip_suffix('/') {
            Some(path) => (path, scheme.starts_with("http")),
            None => (path, scheme.starts_with("http") && path.is_empty()),
        };
        let part_ok = |part: &str| {
            !part.is_empty() && part != "." && part != ".." && !part.chars().any(|c| c.is_control() || c == '\\')
        };
        if !path.is_empty() && !path[1..].split('/').all(part_ok) {
            return Err(UriError::Path(shown()));
        }
        let path = if tree { format!("{path}/") } else { path.to_owned() };
        Ok(Self { scheme: scheme.to_owned(), authority: authority.to_owned(), path })
    }

    #[must_use]
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// The bucket of an object store; empty for a local path.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The path: empty for a bucket's (or the file system's) root, else with a leading and without a trailing slash.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether only the machines of one cluster can reach it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.scheme == "file"
    }

    /// Whether nothing can be written there.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        !WRITABLE.contains(&self.scheme.as_str())
    }

    /// Whether what is written through a mount can go there: byte ranges of files, in place or as parts of an upload.
    #[must_use]
    pub fn takes_mount_writes(&self) -> bool {
        matches!(self.scheme.as_str(), "file" | "s3")
    }

    /// The location one part below this one.
    ///
    /// # Errors
    /// If `part` could not stand in a path, or the whole grows too long.
    pub fn join(&self, part: &str) -> Result<Self, UriError> {
        Self::parse(&format!("{}/{part}", self.to_string().trim_end_matches('/')))
    }

    /// Whether `other` is this location or lies below it.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        self.scheme == other.scheme
            && self.authority == other.authority
            && (other.path == self.path
                || other.path.strip_prefix(&self.path).is_some_and(|rest| rest.starts_with('/')))
    }
}

/// A host name or address, with or without a port.
fn host(authority: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    !authority.is_empty() && !authority.starts_with(':') && authority.chars().all(plain)
}

fn bucket_name(name: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = name.as_bytes();
    (3..=63).contains(&bytes.len())
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-'))
}

/// A bucket of OSS: one of S3 without dots.
fn oss_bucket_name(name: &str) -> bool {
    bucket_name(name) && !name.contains('.')
}

/// A bucket of GCS: one of S3 that may have `_` inside.
fn gcs_bucket_name(name: &str) -> bool {
    bucket_name(&name.replace('_', "-")) && !name.starts_with('_') && !name.ends_with('_')
}

/// A container of Azure: a bucket's name without dots, and no two hyphens together.
fn container_name(name: &str) -> bool {
    bucket_name(name) && !name.contains('.') && !name.contains("--")
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority, self.path)?;
        if self.scheme == "file" && self.path.is_empty() { f.write_str("/") } else { Ok(()) }
    }
}

impl TryFrom<String> for Uri {
    type Error = UriError;
    fn try_from(text: String) -> Result<Self, UriError> {
        Self::parse(&text)
    }
}

impl From<Uri> for String {
    fn from(uri: Uri) -> Self {
        uri.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_locations_are_canonical() {
        for (text, canonical) in [
            ("file:///data/set/", "file:///data/set"),
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/a b/ü/", "s3://bucket/a b/ü"),
            ("file:///", "file:///"),
            ("oss://bucket-1/a b/", "oss://bucket-1/a b"),
            ("gs://a_bucket.example.org/x", "gs://a_bucket.example.org/x"),
            ("azblob://container/a b/", "azblob://container/a b"),
            ("webhdfs://namenode:9870/data/", "webhdfs://namenode:9870/data"),
            ("https://mirror.example.org/set/", "https://mirror.example.org/set/"),
            ("https://mirror.example.org/set/one.bin", "https://mirror.example.org/set/one.bin"),
            ("http://[::1]:8080", "http://[::1]:8080/"),
        ] {
            assert_eq!(Uri::parse(text).map(|u| u.to_string()), Ok(canonical.to_owned()), "{text}");
        }
    }

    #[test]
    fn bad_locations_are_refused() {
        for text in [
            "",
            "data",
            "/data",
            "ftp://host/x",
            "s3://",
            "s3://B/x",
            "s3://ab/x",
            "s3://bucket/a/../b",
            "file:///a/./b",
            "file://host/a",
            "file:///a\0b",
            "file:///a//b",
            "s3://key:secret@bucket/x",
            "s3://bucket/x?y=1",
            "file:///a\\b",
            "webhdfs:///data",
            "oss://",
            "oss://dotted.name/x",
            "oss://under_score/x",
            "gs://",
            "gs://_edge/x",
            "gs://key:secret@bucket/x",
            "azblob://",
            "azblob://dotted.name/x",
            "azblob://two--hyphens/x",
            "https://user:pass@host/x",
            "https://host/x?token=y",
            "http://ho st/x",
        ] {
            assert!(Uri::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn credentials_in_a_location_are_never_repeated() {
        let error = Uri::parse("s3://key:hunter2@bucket/x").unwrap_err();
        assert!(!error.to_string().contains("hunter2"));
    }

    #[test]
    fn containment_is_by_whole_parts() {
        let parent = Uri::parse("s3://bucket/a").unwrap();
        assert!(parent.contains(&Uri::parse("s3://bucket/a/b").unwrap()));
        assert!(parent.contains(&parent));
        assert!(!parent.contains(&Uri::parse("s3://bucket/ab").unwrap()));
    }
}
