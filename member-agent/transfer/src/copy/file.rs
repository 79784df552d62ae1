//! The steps of one file: read one version, write, make it complete, have it verified, record it.
//!
//! Verified is what was read back from the target and compared, or what the target itself compared with a checksum of the
//! bytes that were sent ([`crate::place::Written::checked`]), unless the job asks for reading back.

use std::sync::{Arc, Mutex, PoisonError};

use blake3::hazmat::ChainingValue;
use bytes::Bytes;
use fluvial_model::manifest::{Digest, Entry, File, Item, RelativePath, Root, lookup};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::Verify;
use super::progress::Meter;
use super::record::Recorder;
use super::verify::without_digest;
use crate::digest::{merge, part_value};
use crate::journal::{Done, DoneFile, DonePart, Journal, Upload};
use crate::listing::{Listed, Listing, OpenMount};
use crate::place::local::blocking;
use crate::place::{Detail, PartLimits, Place, Tag, Written};
use crate::{BlockStore, TransferError};

/// Memory permits are counted in units of this size.
pub(super) const MEMORY_UNIT: u64 = 64 << 10;
/// Data shorter than this are hashed where they are: handing them over would take longer.
const HASH_INLINE: usize = 128 << 10;

/// What all streams of a round share.
pub(super) struct Shared {
    pub(super) job: String,
    pub(super) sources: Vec<OpenMount>,
    pub(super) target: Arc<dyn Place>,
    pub(super) journal: Journal,
    pub(super) recorder: Recorder,
    pub(super) meter: Arc<Meter>,
    pub(super) part_size: u64,
    pub(super) verify: Verify,
    /// The manifest of the sources and its blocks: a file whose digest it has need not be read to be known.
    pub(super) known: Option<(Root, BlockStore)>,
    pub(super) streams: Arc<Semaphore>,
    pub(super) memory: Arc<Semaphore>,
    pub(super) memory_units: u32,
    /// What the target had when the round began.
    pub(super) at_target: Option<Listing>,
    /// Files that were not the listed version any more when they were read.
    pub(super) changed: Mutex<Vec<RelativePath>>,
}

/// The part size of a file: the job's, larger when the target allows fewer or only larger parts.
pub(super) fn part_size(job: u64, limits: PartLimits, size: u64) -> u64 {
    job.max(limits.smallest.next_power_of_two()).max(size.div_ceil(limits.most).next_power_of_two())
}

async fn hash<T: Send + 'static>(
    data: Bytes,
    call: impl FnOnce(&[u8]) -> T + Send + 'static,
) -> Result<T, TransferError> {
    if data.len() < HASH_INLINE {
        return Ok(call(&data));
    }
    blocking(move || Ok(call(&data))).await
}

/// Copies one entry that is no directory. `earlier` is what an earlier run recorded of this version of it, as far as its
/// listing tells.
pub(super) async fn copy_entry(
    shared: Arc<Shared>,
    mut row: Listed,
    earlier: Option<Box<DoneFile>>,
) -> Result<(), TransferError> {
    let place = shared.sources[row.mount].place.clone();
    let part_size_of = |size| part_size(shared.part_size, shared.target.part_limits(), size);
    if let (Entry::File(_), None) = (&row.entry, &earlier)
        && shared.inside(&row, &*place).await?
    {
        return Ok(());
    }
    let known = place.source_detail() == Detail::Full || !matches!(row.entry, Entry::File(_));
    if !known {
        let size = row_size(&row);
        if earlier.is_none() && size <= part_size_of(size) {
            return shared.small_with_metadata(row, size).await;
        }
        let Some(found) = shared.settled(&row, place.stat(&shared.below(&row)).await)? else { return Ok(()) };
        if found.tag != row.tag {
            shared.note_changed(&row.path);
            return Ok(());
        }
        row.entry = found.entry;
        if let Some(done) = earlier.filter(|done| without_digest(&done.entry) == row.entry) {
            shared.meter.reused(1, done.entry.totals().bytes);
            return Ok(());
        }
        if !matches!(row.entry, Entry::File(_)) {
            shared.meter.less(size);
        }
    }
    match &row.entry {
        Entry::Directory => Ok(()),
        Entry::Symlink { target } => shared.link(&row, target).await,
        Entry::File(file) => {
            let part_size = part_size_of(file.size);
            if file.size <= part_size {
                shared.small(&row, file).await
            } else {
                shared.large(&row, file, part_size).await
            }
        }
    }
}

impl Shared {
    async fn memory(&self, bytes: u64) -> Result<OwnedSemaphorePermit, TransferError> {
        // A part that is larger than the whole budget is alone.
        let units = u32::try_from(bytes.div_ceil(MEMORY_UNIT)).unwrap_or(u32::MAX).clamp(1, self.memory_units);
        let permit = self.memory.clone().acquire_many_owned(units).await;
        permit.map_err(|_| TransferError::Cancelled { op: "copy" })
    }

    fn note_changed(&self, path: &RelativePath) {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner).push(path.clone());
    }

    /// The path of a row in its own mount.
    fn below(&self, row: &Listed) -> RelativePath {
        row.path.strip_prefix(&self.sources[row.mount].path).unwrap_or_else(|| row.path.clone())
    }

    /// What the source said of a row; `None`, and noted, if it is another version now.
    fn settled<T>(&self, row: &Listed, answer: Result<T, TransferError>) -> Result<Option<T>, TransferError> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(TransferError::Changed { .. } | TransferError::NotFound { .. }) => {
                self.note_changed(&row.path);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn read(&self, row: &Listed, offset: u64, length: u64) -> Result<Option<Bytes>, TransferError> {
        let data = self.sources[row.mount].place.read(&self.below(row), Some(&row.tag), offset, length).await;
        match self.settled(row, data)? {
            Some(data) if data.len() as u64 == length => Ok(Some(data)),
            Some(_) => {
                self.note_changed(&row.path);
                Ok(None)
            }
            None => Ok(None),
        }
    }

    async fn done(&self, row: &Listed, entry: Entry, target_tag: Tag) -> Result<(), TransferError> {
        let (path, source_tag) = (row.path.clone(), row.tag.clone());
        self.recorder.record(Done::File(DoneFile { path, entry, source_tag, target_tag })).await?;
        self.meter.file_done();
        Ok(())
    }

    fn mismatch(&self, path: &RelativePath) -> TransferError {
        TransferError::DigestMismatch { place: self.target.name().to_owned(), path: path.to_string() }
    }

    async fn link(&self, row: &Listed, target: &str) -> Result<(), TransferError> {
        let Written { tag, checked } = self.target.make_symlink_checked(&row.path, target).await?;
        // What a store keeps as an object is compared as one; a link of a file system is what it was made.
        if !self.trusts(checked) && self.target.as_s3().is_some() {
            let back = self.target.read(&row.path, Some(&tag), 0, target.len() as u64 + 1).await?;
            if back != target.as_bytes() {
                return Err(self.mismatch(&row.path));
            }
        }
        self.done(row, row.entry.clone(), tag).await
    }

    /// Has the store copy a file by itself, if it can and the manifest has the file's digest.
    async fn inside(self: &Arc<Self>, row: &Listed, place: &dyn Place) -> Result<bool, TransferError> {
        let (Some((root, blocks)), true) =
            (self.known.clone(), place.as_s3().is_some() && self.target.as_s3().is_some())
        else {
            return Ok(false);
        };
        let path = row.path.clone();
        let found = blocking(move || {
            lookup(root, &path, &blocks.getter())
                .map_err(|source| TransferError::Manifest { op: "look for a digest", source })
        })
        .await?;
        let Some(Item::File(file)) = found else { return Ok(false) };
        let Some(digest) = file.digest.filter(|_| file.size == row_size(row)) else { return Ok(false) };
        let copied = self.target.copy_inside(&row.path, &file, place, &self.below(row), &row.tag).await;
        let Some(written) = self.settled(row, copied)? else { return Ok(true) };
        let Some(Written { tag, checked }) = written else { return Ok(false) };
        if !self.trusts(checked) && self.digest_at_target(&row.path, &tag, file.size).await? != Some(digest) {
            return Err(self.mismatch(&row.path));
        }
        self.meter.copied(file.size);
        self.meter.server_side.fetch_add(file.size, std::sync::atomic::Ordering::Relaxed);
        self.done(row, Entry::File(file), tag).await?;
        Ok(true)
    }

    /// The digest of what the target has; `None` if it is shorter than it should be.
    async fn digest_at_target(
        self: &Arc<Self>,
        path: &RelativePath,
        tag: &Tag,
        size: u64,
    ) -> Result<Option<Digest>, TransferError> {
        if size <= self.part_size {
            let _memory = self.memory(size).await?;
            let back = self.target.read(path, Some(tag), 0, size).await?;
            return if back.len() as u64 == size { hash(back, Digest::of).await.map(Some) } else { Ok(None) };
        }
        let part_size = self.part_size;
        let count = usize::try_from(size.div_ceil(part_size)).unwrap_or(usize::MAX);
        let values = self
            .for_parts((0..count).collect(), |shared, number| {
                let (path, tag) = (path.clone(), tag.clone());
                let (offset, length) = (number as u64 * part_size, part_length(size, part_size, number));
                async move {
                    let _memory = shared.memory(length).await?;
                    let back = shared.target.read(&path, Some(&tag), offset, length).await?;
                    let whole = back.len() as u64 == length;
                    Ok((
                        number,
                        if whole { Some(hash(back, move |data| part_value(offset, data)).await?) } else { None },
                    ))
                }
            })
            .await?;
        let mut sorted = values;
        sorted.sort_by_key(|(number, _)| *number);
        let values: Option<Vec<ChainingValue>> = sorted.into_iter().map(|(_, value)| value).collect();
        Ok(values.map(|values| merge(size, part_size, &values)))
    }

    /// A file that is one part.
    async fn small(&self, row: &Listed, file: &File) -> Result<(), TransferError> {
        let memory = self.memory(file.size).await?;
        let Some(data) = self.read(row, 0, file.size).await? else { return Ok(()) };
        self.write_small(row, file, data, memory).await
    }

    /// What is one part, and a file only as far as its listing tells.
    async fn small_with_metadata(&self, row: Listed, size: u64) -> Result<(), TransferError> {
        let memory = self.memory(size).await?;
        let answer = self.sources[row.mount].place.read_listed(&self.below(&row), &row.tag, size).await;
        let Some((entry, data)) = self.settled(&row, answer)? else { return Ok(()) };
        let row = Listed { entry, ..row };
        match &row.entry {
            Entry::File(file) => self.write_small(&row, file, data, memory).await,
            Entry::Symlink { target } => {
                self.meter.less(size);
                self.link(&row, target).await
            }
            Entry::Directory => Ok(()),
        }
    }

    async fn write_small(
        &self,
        row: &Listed,
        file: &File,
        data: Bytes,
        memory: OwnedSemaphorePermit,
    ) -> Result<(), TransferError> {
        let digest = hash(data.clone(), Digest::of).await?;
        self.meter.copied(file.size);
        let Written { tag, checked } = self.target.put_checked(&row.path, file, data).await?;
        if !self.trusts(checked) {
            // One byte more than there should be, to see that there is none.
            let back = self.target.read(&row.path, Some(&tag), 0, file.size + 1).await?;
            if back.len() as u64 != file.size || hash(back, Digest::of).await? != digest {
                return Err(self.mismatch(&row.path));
            }
        }
        // Waiting for the journal needs no room for data.
        drop(memory);
        self.done(row, Entry::File(File { digest: Some(digest), ..*file }), tag).await
    }

    /// Whether what was written need not be read back.
    fn trusts(&self, checked: bool) -> bool {
        checked && self.verify == Verify::Checksum
    }

    /// A file in parts.
    async fn large(self: &Arc<Self>, row: &Listed, file: &File, part_size: u64) -> Result<(), TransferError> {
        let count = usize::try_from(file.size.div_ceil(part_size)).unwrap_or(usize::MAX);
        let (upload, known, adopt) = self.open_upload(row, file, part_size, count).await?;
        let mut parts: Vec<Option<DonePart>> = vec![None; count];
        for part in known {
            let number = part.number as usize;
            let length = part_length(file.size, part_size, number);
            if let Some(slot) = parts.get_mut(number) {
                self.meter.reused(0, length);
                self.meter.parts_reused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                *slot = Some(part);
            }
        }
        let missing: Vec<usize> = (0..count).filter(|number| parts[*number].is_none()).collect();
        // Where parts come in order, each is copied when the one before it is.
        let together = if self.target.part_limits().in_order { 1 } else { count };
        for numbers in missing.chunks(together) {
            let copied = self
                .for_parts(numbers.to_vec(), |shared, number| {
                    let (row, upload) = (row.clone(), upload.clone());
                    let (offset, length) = (number as u64 * part_size, part_length(row_size(&row), part_size, number));
                    async move { shared.copy_part(&row, &upload, number, offset, length).await }
                })
                .await?;
            for part in copied {
                let Some(part) = part else { return Ok(()) };
                let number = part.number as usize;
                parts[number] = Some(part);
            }
        }
        let parts: Vec<DonePart> = parts.into_iter().flatten().collect();
        let Written { tag: target_tag, checked } = match adopt {
            Some(tag) => Written { tag, checked: false },
            None => {
                let receipts: Vec<_> = parts.iter().map(|part| part.receipt.clone()).collect();
                let completed = self.target.complete_checked(&row.path, &upload, file, &receipts).await;
                if completed.as_ref().is_err_and(TransferError::lost_part) {
                    // The next run starts the file again.
                    self.give_up(&row.path, &upload).await?;
                }
                completed?
            }
        };
        let values: Arc<Vec<ChainingValue>> = Arc::new(parts.iter().map(|part| part.value).collect());
        let again = if self.trusts(checked) { 0 } else { count };
        let same = self
            .for_parts((0..again).collect(), |shared, number| {
                let (path, tag, value) = (row.path.clone(), target_tag.clone(), values[number]);
                let (offset, length) = (number as u64 * part_size, part_length(row_size(row), part_size, number));
                async move { shared.same_part(&path, &tag, offset, length, value).await }
            })
            .await?;
        if same.contains(&false) {
            // Nothing of it can be trusted: the next run starts the file again.
            self.give_up(&row.path, &upload).await?;
            return Err(self.mismatch(&row.path));
        }
        let digest = merge(file.size, part_size, &values);
        self.done(row, Entry::File(File { digest: Some(digest), ..*file }), target_tag).await
    }

    async fn give_up(&self, path: &RelativePath, upload: &str) -> Result<(), TransferError> {
        self.target.abort(path, upload).await?;
        self.journal.forget_file(&self.job, path)
    }

    /// The upload that is continued, with its parts, or a new one. The last value is the tag of a file whose parts were
    /// all written and that was completed, but not recorded: it is read back like any other.
    async fn open_upload(
        &self,
        row: &Listed,
        file: &File,
        part_size: u64,
        count: usize,
    ) -> Result<(String, Vec<DonePart>, Option<Tag>), TransferError> {
        let known = self.journal.upload(&self.job, &row.path)?;
        if let Some(known) = known {
            let parts = self.journal.parts(&self.job, &row.path)?;
            if known.source_tag == row.tag && known.part_size == part_size {
                if self.target.can_continue(&row.path, &known.upload).await? {
                    return Ok((known.upload, parts, None));
                }
                let there = self.at_target.as_ref().map(|listing| listing.get(&row.path)).transpose()?.flatten();
                let complete = there.filter(|there| row_size(there) == file.size);
                if let (Some(there), true) = (complete, parts.len() == count) {
                    return Ok((known.upload, parts, Some(there.tag)));
                }
            }
            self.target.abort(&row.path, &known.upload).await?;
        }
        let upload = self.target.begin(&row.path, file).await?;
        let (path, source_tag) = (row.path.clone(), row.tag.clone());
        self.journal.begin(&self.job, &Upload { path, upload: upload.clone(), part_size, source_tag })?;
        Ok((upload, Vec::new(), None))
    }

    /// Runs a step for some parts, as many at once as there are streams.
    async fn for_parts<T: Send + 'static, F>(
        self: &Arc<Self>,
        numbers: Vec<usize>,
        step: impl Fn(Arc<Self>, usize) -> F,
    ) -> Result<Vec<T>, TransferError>
    where
        F: Future<Output = Result<T, TransferError>> + Send + 'static,
    {
        let mut set = JoinSet::new();
        let mut results = Vec::with_capacity(numbers.len());
        for number in numbers {
            let stream = self.streams.clone().acquire_owned().await;
            let stream = stream.map_err(|_| TransferError::Cancelled { op: "copy" })?;
            let step = step(self.clone(), number);
            set.spawn(async move {
                let result = step.await;
                drop(stream);
                result
            });
            while let Some(joined) = set.try_join_next() {
                results.push(settle(joined)?);
            }
        }
        while let Some(joined) = set.join_next().await {
            results.push(settle(joined)?);
        }
        Ok(results)
    }

    /// Copies one part; `None` when the source is another version now.
    async fn copy_part(
        &self,
        row: &Listed,
        upload: &str,
        number: usize,
        offset: u64,
        length: u64,
    ) -> Result<Option<DonePart>, TransferError> {
        let _memory = self.memory(length).await?;
        let Some(data) = self.read(row, offset, length).await? else { return Ok(None) };
        let value = hash(data.clone(), move |data| part_value(offset, data)).await?;
        self.meter.copied(length);
        let number = u32::try_from(number).map_err(|_| TransferError::BadJob {
            what: format!("{:?} has too many parts; use a larger part size", row.path.as_str()),
        })?;
        let receipt = self.target.put_part(&row.path, upload, number, offset, data).await?;
        let part = DonePart { path: row.path.clone(), number, value, receipt };
        self.recorder.record(Done::Part(part.clone())).await?;
        Ok(Some(part))
    }

    /// Whether a part of the target has the value that was read from the source.
    async fn same_part(
        &self,
        path: &RelativePath,
        tag: &Tag,
        offset: u64,
        length: u64,
        value: ChainingValue,
    ) -> Result<bool, TransferError> {
        let _memory = self.memory(length).await?;
        let back = self.target.read(path, Some(tag), offset, length).await?;
        Ok(back.len() as u64 == length && hash(back, move |data| part_value(offset, data)).await? == value)
    }
}

fn row_size(row: &Listed) -> u64 {
    match &row.entry {
        Entry::File(file) => file.size,
        _ => 0,
    }
}

fn part_length(size: u64, part_size: u64, number: usize) -> u64 {
    part_size.min(size.saturating_sub(number as u64 * part_size))
}

/// The result of a task that nobody aborts but by dropping its set.
pub(super) fn settle<T>(joined: Result<Result<T, TransferError>, tokio::task::JoinError>) -> Result<T, TransferError> {
    match joined {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(TransferError::Cancelled { op: "copy" }),
    }
}
