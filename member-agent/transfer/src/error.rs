//! What can go wrong while data are listed, read, written and compared. Every variant names the place and the path.

use std::io;

use fluvial_model::manifest::{ReadError, RelativePath, Root};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The scheme of a location is not one that is known.
    #[error("open location: scheme {scheme:?} is not supported; supported are {supported}")]
    UnsupportedScheme {
        /// The scheme.
        scheme: String,
        /// Those that are.
        supported: &'static str,
    },
    /// A location that cannot be understood.
    #[error("open location {uri}: {why}")]
    BadLocation {
        /// The URI without secrets.
        uri: String,
        /// What is wrong with it.
        why: String,
    },
    /// The directory, prefix or object does not exist.
    #[error("{op} {place}: {path:?} does not exist")]
    NotFound {
        /// What was being done.
        op: &'static str,
        /// The place.
        place: String,
        /// The path below it, empty for the place itself.
        path: String,
    },
    /// The bucket does not exist.
    #[error("{op}: bucket {bucket:?} does not exist at {endpoint}")]
    NoSuchBucket {
        /// What was being done.
        op: &'static str,
        /// The bucket.
        bucket: String,
        /// The server.
        endpoint: String,
    },
    /// The place does not accept who asks.
    #[error("{op} {place}: the credentials were refused ({code})")]
    CredentialsRefused {
        /// What was being done.
        op: &'static str,
        /// The place.
        place: String,
        /// The server's word for it.
        code: String,
    },
    /// The place knows who asks and forbids it.
    #[error("{op} {place}: access to {path:?} is denied")]
    Denied {
        /// What was being done.
        op: &'static str,
        /// The place.
        place: String,
        /// The path below it.
        path: String,
    },
    /// The place can be read but not written.
    #[error("{op} {place}: it is read-only (at {path:?})")]
    ReadOnly {
        /// What was being done.
        op: &'static str,
        /// The place.
        place: String,
        /// The path below it.
        path: String,
    },
    /// The place is full.
    #[error("{op} {place}: no space left (at {path:?})")]
    NoSpace {
        /// What was being done.
        op: &'static str,
        /// The place.
        place: String,
        /// The path below it.
        path: String,
    },
    /// The server cannot be reached, or kept failing until the retries ended.
    #[error("{op} {place}: the server cannot be reached or does not answer ({why})")]
    Unreachable {
        /// What was being done.
        op: &'static str,
        /// The place.
        place: String,
        /// The last failure.
        why: String,
    },
    /// The bytes arrived at the server otherwise than they were sent, by its checksum.
    #[error("{op} {place}: {path:?} arrived damaged ({code})")]
    Damaged {
        /// What was being done.
        op: &'static str,
        /// The place.
        place: String,
        /// The path below it.
        path: String,
        /// The server's word for it.
        code: String,
    },
    /// Another answer of a server.
    #[error("{op} {place}: the server answered {status} {code} for {path:?}")]
    Server {
        /// What was being done.
        op: &'static str,
        /// The place.
        place: String,
        /// The path below it.
        path: String,
        /// HTTP status.
        status: u16,
        /// The server's code, empty when it gave none.
        code: String,
    },
    /// Another failure of the file system.
    #[error("{op} {place}: {path:?}")]
    Io {
        /// What was being done.
        op: &'static str,
        /// The place.
        place: String,
        /// The path below it.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An entry that a dataset cannot hold.
    #[error("list {place}: {name:?} cannot be part of a dataset: {why}")]
    BadEntry {
        /// The place.
        place: String,
        /// Its name, escaped.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// Two mounts of one dataset that cannot both be there.
    #[error("list mounts: {path:?} comes from two mounts")]
    MountConflict {
        /// The path that both have.
        path: String,
    },
    /// The object was replaced between listing and reading.
    #[error("read {place}: {path:?} changed since it was listed")]
    Changed {
        /// The place.
        place: String,
        /// The path below it.
        path: String,
    },
    /// The source kept changing while it was copied.
    #[error("copy: the source changed during every round, last at {}", shown(paths))]
    SourceChanged {
        /// Some of the paths that changed in the last round.
        paths: Vec<RelativePath>,
    },
    /// The source is not what its manifest says.
    #[error("copy: the source differs from its manifest at {}", shown(paths))]
    SourceDiffers {
        /// Some of the paths that differ.
        paths: Vec<RelativePath>,
    },
    /// What was read back from the target is not what was read from the source.
    #[error("verify {place}: the contents of {path:?} are not those that were copied")]
    DigestMismatch {
        /// The target.
        place: String,
        /// The file.
        path: String,
    },
    /// The target holds something else than what was copied.
    #[error("verify {place}: {}", mismatch(missing, extra, different))]
    TargetMismatch {
        /// The target.
        place: String,
        /// Some of the paths that are not there.
        missing: Vec<RelativePath>,
        /// Some of the paths that should not be there.
        extra: Vec<RelativePath>,
        /// Some of the paths that have another size, time, mode or kind.
        different: Vec<RelativePath>,
    },
    /// The roots differ although every path was equal.
    #[error("verify {place}: manifest root {found}, expected {expected}")]
    RootMismatch {
        /// The target.
        place: String,
        /// The source's root.
        expected: Root,
        /// The target's root.
        found: Root,
    },
    /// There is something where the copy should go.
    #[error("copy to {place}: it exists already and this job did not make it")]
    TargetExists {
        /// The target.
        place: String,
    },
    /// A job of this id went somewhere else.
    #[error("copy: job {job:?} was started with another {what}; discard it first")]
    JobDiffers {
        /// The job.
        job: String,
        /// What is another one.
        what: &'static str,
    },
    /// A parameter that cannot be used.
    #[error("copy: {what}")]
    BadJob {
        /// What is wrong and what would be right.
        what: String,
    },
    /// The work was cancelled; it can be continued or discarded.
    #[error("{op}: cancelled")]
    Cancelled {
        /// What was being done.
        op: &'static str,
    },
    /// The journal or a listing could not be used.
    #[error("{op}: journal {file}")]
    Journal {
        /// What was being done.
        op: &'static str,
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// A block could not be stored or is damaged.
    #[error("{op}: block store {file}")]
    Blocks {
        /// What was being done.
        op: &'static str,
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The manifest could not be read.
    #[error("{op}: read manifest")]
    Manifest {
        /// What was being done.
        op: &'static str,
        /// Why.
        #[source]
        source: ReadError,
    },
    /// The manifest could not be built.
    #[error("build manifest: {why}")]
    Build {
        /// Why.
        why: String,
    },
}

/// The first few paths of a list.
fn shown(paths: &[RelativePath]) -> String {
    let first: Vec<_> = paths.iter().take(5).map(|path| format!("{:?}", path.as_str())).collect();
    let more = paths.len().saturating_sub(first.len());
    if more == 0 { first.join(", ") } else { format!("{} and {more} more", first.join(", ")) }
}

fn mismatch(missing: &[RelativePath], extra: &[RelativePath], different: &[RelativePath]) -> String {
    [("missing", missing), ("not expected", extra), ("different", different)]
        .into_iter()
        .filter(|(_, paths)| !paths.is_empty())
        .map(|(word, paths)| format!("{word}: {}", shown(paths)))
        .collect::<Vec<_>>()
        .join("; ")
}

impl TransferError {
    /// Whether the same call may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Damaged { .. } | Self::Changed { .. })
            || matches!(self, Self::SourceChanged { .. })
            || matches!(self, Self::Server { status, .. } if (*status >= 500 && *status != 501) || *status == 429)
            || self.lost_part()
    }

    /// Whether parts of an upload are not what was confirmed, or not yet: a server may still be busy with the same part as
    /// an abandoned run sent it.
    pub(crate) fn lost_part(&self) -> bool {
        matches!(self, Self::Server { code, .. } if code == "InvalidPart")
    }

    /// An I/O error as the thing that it means.
    #[must_use]
    pub fn io(op: &'static str, place: &str, path: &str, source: io::Error) -> Self {
        let (place, path) = (place.to_owned(), path.to_owned());
        match source.kind() {
            io::ErrorKind::NotFound => Self::NotFound { op, place, path },
            io::ErrorKind::PermissionDenied => Self::Denied { op, place, path },
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { op, place, path },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { op, place, path },
            _ => Self::Io { op, place, path, source },
        }
    }
}
