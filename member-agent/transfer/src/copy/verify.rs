//! Comparing whole trees: the source with the manifest it should have, the target with the source.

use std::ops::ControlFlow;

use fluvial_model::manifest::{Change, Entry, File, RelativePath, Root, Totals, TreeBuilder, diff, walk};

use super::round::NAMED_PATHS;
use crate::journal::Journal;
use crate::listing::{Listed, Listing};
use crate::place::Detail;
use crate::{BlockStore, TransferError};

/// An entry as a listing knows it.
pub(super) fn without_digest(entry: &Entry) -> Entry {
    match entry {
        Entry::File(file) => Entry::File(File { digest: None, ..*file }),
        other => other.clone(),
    }
}

/// An entry as far as a listing of this detail tells it.
fn as_listed(entry: &Entry, detail: Detail) -> Entry {
    let size = match entry {
        Entry::File(file) => file.size,
        Entry::Symlink { target } => target.len() as u64,
        Entry::Directory => return Entry::Directory,
    };
    match detail {
        Detail::Full => without_digest(entry),
        Detail::Tags => Entry::File(File { size, mtime_ns: 0, mode: 0, digest: None }),
    }
}

/// Checks that a listing is that of a manifest, digests aside, and with [`Detail::Tags`] times, modes and kinds too: those
/// are compared once they have been read.
///
/// # Errors
/// [`TransferError::SourceDiffers`], and when blocks are missing.
pub fn source_has_manifest(
    listing: &Listing,
    detail: Detail,
    root: Root,
    blocks: &BlockStore,
) -> Result<(), TransferError> {
    let manifest = |source| TransferError::Manifest { op: "compare source", source };
    let mut expected = TreeBuilder::new(|_, bytes: Vec<u8>| blocks.put(&bytes).map(drop));
    for entry in walk(root, blocks.getter()) {
        let (path, entry) = entry.map_err(manifest)?;
        let pushed = expected.push(&path, as_listed(&entry, detail));
        pushed.map_err(|error| TransferError::Build { why: error.to_string() })?;
    }
    let expected = expected.finish().map_err(|error| TransferError::Build { why: error.to_string() })?.root;
    let found = listing.build(blocks, |row| Ok(as_listed(&row.entry, detail)))?.root;
    let differences = Differences::between(expected, found, blocks)?;
    let mut paths = differences.missing;
    paths.extend(differences.extra);
    paths.extend(differences.different);
    if paths.is_empty() { Ok(()) } else { Err(TransferError::SourceDiffers { paths }) }
}

#[derive(Default)]
struct Differences {
    missing: Vec<RelativePath>,
    extra: Vec<RelativePath>,
    different: Vec<RelativePath>,
}

impl Differences {
    fn between(expected: Root, found: Root, blocks: &BlockStore) -> Result<Self, TransferError> {
        let mut all = Differences::default();
        let mut left = NAMED_PATHS;
        let result = diff(expected, found, &blocks.getter(), &mut |difference| {
            match difference.change {
                Change::Removed(_) => all.missing.push(difference.path),
                Change::Added(_) => all.extra.push(difference.path),
                Change::Changed { .. } => all.different.push(difference.path),
            }
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        result.map(|_| all).map_err(|source| TransferError::Manifest { op: "compare trees", source })
    }
}

/// The final comparison of a copy.
pub(super) struct Check {
    pub(super) job: String,
    pub(super) journal: Journal,
    pub(super) blocks: BlockStore,
    pub(super) place: String,
    pub(super) detail: Detail,
}

impl Check {
    /// The manifest of source and target, when they are equal.
    pub(super) fn run(
        &self,
        source: &Listing,
        target: &Listing,
        source_root: Option<Root>,
    ) -> Result<(Root, Totals), TransferError> {
        let expected = source.build(&self.blocks, |row| {
            if row.entry == Entry::Directory {
                return Ok(row.entry);
            }
            let done = self.journal.done_file(&self.job, &row.path)?;
            done.map(|done| done.entry).ok_or_else(|| TransferError::Build {
                why: format!("{:?} was not recorded as copied", row.path.as_str()),
            })
        })?;
        let found = target.build(&self.blocks, |row| self.at_target(row))?;
        if expected.root != found.root {
            let Differences { missing, extra, different } =
                Differences::between(expected.root, found.root, &self.blocks)?;
            let place = self.place.clone();
            if missing.is_empty() && extra.is_empty() && different.is_empty() {
                return Err(TransferError::RootMismatch { place, expected: expected.root, found: found.root });
            }
            return Err(TransferError::TargetMismatch { place, missing, extra, different });
        }
        if let Some(root) = source_root.filter(|root| *root != expected.root) {
            let digests = Differences::between(root, expected.root, &self.blocks)?;
            // A manifest of a scan has no digests: having read them is no difference.
            let undigested = self.only_digests_were_added(root, expected.root)?;
            if !undigested {
                return Err(TransferError::SourceDiffers { paths: digests.different });
            }
        }
        Ok((expected.root, expected.totals))
    }

    /// What the target holds: the digest is known when it is the version that was read back.
    fn at_target(&self, row: Listed) -> Result<Entry, TransferError> {
        let done = self.journal.done_file(&self.job, &row.path)?;
        let Some(done) = done.filter(|done| done.target_tag == row.tag) else { return Ok(row.entry) };
        if self.detail == Detail::Full && without_digest(&done.entry) != row.entry {
            return Ok(row.entry);
        }
        Ok(done.entry)
    }

    fn only_digests_were_added(&self, before: Root, after: Root) -> Result<bool, TransferError> {
        let mut only = true;
        let _ = diff(before, after, &self.blocks.getter(), &mut |difference| {
            only &= matches!(&difference.change, Change::Changed { before: Entry::File(before), after: Entry::File(after), .. }
                if before.digest.is_none() && File { digest: None, ..*after } == *before);
            if only { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
        .map_err(|source| TransferError::Manifest { op: "compare trees", source })?;
        Ok(only)
    }
}
