//! What Azure, OSS and GCS differ in, as data.

use opendal::Metadata;

use crate::place::PartLimits;

/// What the stores differ in.
pub(super) struct Manner {
    pub(super) version: Version,
    /// Metadata: octal permission bits.
    pub(super) mode: &'static str,
    /// Metadata: `symlink` on an object that holds the target of a link.
    pub(super) kind: &'static str,
    pub(super) parts: PartLimits,
    /// The most that a page of a listing can have.
    pub(super) page: usize,
    /// Why a key cannot be written, if it cannot.
    pub(super) refuses: fn(&str) -> Option<&'static str>,
}

/// What tells the versions of an object apart.
pub(super) enum Version {
    ETag,
    Generation,
}

impl Manner {
    /// The version that the store tells, if it does.
    pub(super) fn version_of<'a>(&self, metadata: &'a Metadata) -> Option<&'a str> {
        let version = match self.version {
            Version::ETag => metadata.etag(),
            Version::Generation => metadata.version(),
        };
        version.filter(|version| !version.is_empty())
    }
}
