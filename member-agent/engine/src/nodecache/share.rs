//! Sharing between the nodes of a cluster: ranges asked of their owners, and ranges served to those who ask.
//!
//! Whoever misses a range asks the node that owns it ([`Peers`] knows which), and goes to the source itself if there is
//! none, or it does not answer in time. A node that is asked fetches from the source, never from a third, so that no
//! request goes in circles, and keeps what it fetched, so that the source gives each range once.
//!
//! What a node serves it compares, as it leaves, with what it was when it came: a hash for each part, kept in memory for
//! files on their way, and for complete files taken while their digest is checked as a whole. So a cache file that was
//! damaged is not passed on. What arrives is verified as if it had come from the source; a node whose bytes turn out not
//! to be the version's is not asked again for a while.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use fluvial_model::manifest::{Digest, RelativePath, Root};

use super::open::open_for_peer;
use super::{PART_BYTES, RANGE_BYTES, Shared, blocking};
use crate::engine::{Contents, EngineError, OpenFile};

/// Hashes of parts that are kept: 32 MiB, for 1 TiB of files.
const HASHES_KEPT: usize = 1 << 20;

/// A range of a file of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedRange {
    /// The dataset.
    pub uid: String,
    /// The version.
    pub root: Root,
    /// The file.
    pub path: RelativePath,
    /// Its digest, if the version gives one.
    pub digest: Option<Digest>,
    /// Its version at the source, if that is known and there is no digest.
    pub tag: Option<String>,
    /// The first byte.
    pub offset: u64,
    /// How many; at most [`RANGE_BYTES`].
    pub length: u64,
}

/// What a node gave.
#[derive(Debug, Clone)]
pub struct FromPeer {
    /// The node.
    pub node: String,
    /// The bytes.
    pub data: Bytes,
}

/// The other nodes of the cluster.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// Whether there are any.
    fn any(&self) -> bool;

    /// The range from the node that owns it; nothing if that is this node, there is none, or it did not answer in time.
    async fn read(&self, range: &SharedRange) -> Option<FromPeer>;

    /// A node gave bytes that are not the version's: it is not asked again for a while.
    fn distrust(&self, node: &str);
}

/// Hashes of the parts of complete files, by object, the oldest first to go.
#[derive(Default)]
pub(super) struct Proofs {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    by_object: HashMap<String, Arc<Vec<blake3::Hash>>>,
    order: VecDeque<String>,
    hashes: usize,
}

impl Proofs {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, object: &str) -> Option<Arc<Vec<blake3::Hash>>> {
        self.kept().by_object.get(object).cloned()
    }

    pub(super) fn put(&self, object: &str, hashes: Arc<Vec<blake3::Hash>>) {
        let mut kept = self.kept();
        kept.hashes += hashes.len();
        if let Some(before) = kept.by_object.insert(object.to_owned(), hashes) {
            kept.hashes -= before.len();
        } else {
            kept.order.push_back(object.to_owned());
        }
        while kept.hashes > HASHES_KEPT {
            let Some(oldest) = kept.order.pop_front() else { return };
            if let Some(gone) = kept.by_object.remove(&oldest) {
                kept.hashes -= gone.len();
            }
        }
    }
}

/// The hashes of the parts in `data`, whose first byte begins a part.
pub(super) fn hashes_of(data: &[u8]) -> impl Iterator<Item = blake3::Hash> + '_ {
    data.chunks(usize::try_from(PART_BYTES).unwrap_or(usize::MAX)).map(blake3::hash)
}

/// What a node that asks is told if it must go to the source itself.
fn damaged(path: &RelativePath) -> EngineError {
    let source =
        std::io::Error::new(std::io::ErrorKind::InvalidData, "the cached bytes are not those that were fetched");
    EngineError::Io { op: "share", file: path.to_string(), source }
}

/// Reads a range for another node.
pub(super) async fn serve(shared: &Arc<Shared>, asked: SharedRange) -> Result<Bytes, EngineError> {
    let SharedRange { uid, root, path, tag, offset, length, .. } = asked;
    // One range of the engine's at a time is in memory, from its first part's first byte.
    if length > RANGE_BYTES || !offset.is_multiple_of(PART_BYTES) {
        let source = std::io::Error::from(std::io::ErrorKind::InvalidInput);
        return Err(EngineError::Io { op: "share", file: path.to_string(), source });
    }
    let (object, known_tag, OpenFile { size, contents, lease }) = open_for_peer(shared, &uid, root, &path).await?;
    if let (Some(asked), Some(known)) = (&tag, &known_tag)
        && asked != known
    {
        let (dataset, path) = (uid, path.to_string());
        return Err(EngineError::SourceDiffers { dataset, path, why: "the nodes know two versions of it" });
    }
    let length = length.min(size.saturating_sub(offset));
    if offset + length < size && !length.is_multiple_of(PART_BYTES) {
        return Err(damaged(&path));
    }
    let parts = first_part(offset)..first_part(offset + length + PART_BYTES - 1);
    match contents {
        Contents::Through(through) => through.read(offset, length).await,
        Contents::Complete(file) => {
            let shared = shared.clone();
            blocking("share", move || {
                let _lease = lease;
                let hashes = match shared.proofs.get(&object) {
                    Some(hashes) => hashes,
                    None => prove(&shared, &object, &file, size)?.ok_or_else(|| damaged(&path))?,
                };
                read_checked(&file, offset, length, parts, |part| hashes.get(part).copied(), &path)
            })
            .await
        }
        Contents::Filling(file, filling) => {
            let filling =
                filling.as_any().downcast_ref::<super::partial::Filler>().map(|filler| filler.partial.clone());
            let Some(partial) = filling else { return Err(damaged(&path)) };
            partial.fill_from_source(offset, length).await?;
            blocking("share", move || {
                read_checked(&file, offset, length, parts, |part| partial.hash_of(part), &path).inspect_err(|_| {
                    // Fetched again by whoever reads next.
                    partial.lose(offset, length);
                })
            })
            .await
        }
    }
}

fn first_part(offset: u64) -> usize {
    usize::try_from(offset / PART_BYTES).unwrap_or(usize::MAX)
}

/// Takes the hashes of a complete file's parts while the file is compared, as a whole, with its digest; `None` if it has
/// another one.
fn prove(shared: &Shared, object: &str, file: &File, size: u64) -> Result<Option<Arc<Vec<blake3::Hash>>>, EngineError> {
    let digest = shared.store.lock().index.digest_of(object)?;
    let io = |source| EngineError::Io { op: "share", file: object.to_owned(), source };
    let (mut whole, mut hashes) = (blake3::Hasher::new(), Vec::new());
    let mut buffer = vec![0; usize::try_from(PART_BYTES).unwrap_or(usize::MAX)];
    let mut at = 0;
    while at < size {
        let length = usize::try_from((size - at).min(PART_BYTES)).unwrap_or(usize::MAX);
        file.read_exact_at(&mut buffer[..length], at).map_err(io)?;
        whole.update(&buffer[..length]);
        hashes.push(blake3::hash(&buffer[..length]));
        at += length as u64;
    }
    if digest.is_none_or(|digest| digest.as_bytes() != whole.finalize().as_bytes()) {
        return Ok(None);
    }
    let hashes = Arc::new(hashes);
    shared.proofs.put(object, hashes.clone());
    Ok(Some(hashes))
}

/// A range of a file, each part compared with its hash.
fn read_checked(
    file: &File,
    offset: u64,
    length: u64,
    parts: Range<usize>,
    hash: impl Fn(usize) -> Option<blake3::Hash>,
    path: &RelativePath,
) -> Result<Bytes, EngineError> {
    let mut data = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    let read = file.read_exact_at(&mut data, offset);
    read.map_err(|source| EngineError::Io { op: "share", file: path.to_string(), source })?;
    let right = parts.zip(hashes_of(&data)).all(|(part, found)| hash(part) == Some(found));
    if right { Ok(data.into()) } else { Err(damaged(path)) }
}
