//! ⑤ Relays: an agent reads, through another one, what it does not reach itself.
//!
//! The hub has the source's agent serve the sources of one migration to one cluster ([`serve`]); the target's agent reads
//! them as a place ([`place`]), so that copying, resuming and verifying are as for any other source. Whichever of the two
//! listens is dialled; if that is the target's, the source's dials it and answers on that connection ([`reverse`]).
//!
//! Invariants: nobody but the assignment's cluster reads, nothing but the assignment's sources, and only for as long as
//! the assignment stands; a file is read as exactly the version that was listed.

pub mod place;
pub mod reverse;
pub mod serve;

use fluvial_model::manifest::{Entry, File, RelativePath};
use fluvial_proto::v1;
use fluvial_transfer::place::{Found, Tag};

pub use place::RelayPlace;
pub use reverse::Awaited;
pub use serve::Relays;

fn to_wire(found: Found) -> v1::RelayEntry {
    let entry = match found.entry {
        Entry::File(file) => {
            v1::relay_entry::Entry::File(v1::RelayFile { size: file.size, mtime_ns: file.mtime_ns, mode: file.mode })
        }
        Entry::Symlink { target } => v1::relay_entry::Entry::Symlink(target),
        Entry::Directory => v1::relay_entry::Entry::Directory(v1::RelayDirectory {}),
    };
    v1::RelayEntry { path: found.path.to_string(), tag: found.tag.0, entry: Some(entry) }
}

/// The entry of an answer; `None` if it is none that a dataset can hold.
fn from_wire(entry: v1::RelayEntry) -> Option<Found> {
    let path = if entry.path.is_empty() { RelativePath::root() } else { RelativePath::parse(&entry.path).ok()? };
    let tag = Tag(entry.tag);
    let entry = match entry.entry? {
        v1::relay_entry::Entry::File(v1::RelayFile { size, mtime_ns, mode }) => {
            Entry::File(File { size, mtime_ns, mode, digest: None })
        }
        v1::relay_entry::Entry::Symlink(target) => Entry::Symlink { target },
        v1::relay_entry::Entry::Directory(v1::RelayDirectory {}) => Entry::Directory,
    };
    Some(Found { path, entry, tag })
}
