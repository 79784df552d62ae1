//! The steps of one file: read one version, write, make it complete, read it back, record it.

use std::sync::{Arc, Mutex, PoisonError};

use blake3::hazmat::ChainingValue;
use bytes::Bytes;
use fluvial_model::manifest::{Digest, Entry, File, RelativePath};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::progress::Meter;
use super::record::Recorder;
use crate::TransferError;
use crate::digest::{merge, part_value};
use crate::journal::{Done, DoneFile, DonePart, Journal, Upload};
use crate::listing::{Listed, Listing, OpenMount};
use crate::place::local::blocking;
use crate::place::{PartLimits, Place, Tag};

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
    pub(super) streams: Arc<Semaphore>,
    pub(super) memory: Arc<Semaphore>,
    pub(super) memory_units: u32,
    /// What the target had when the round began.
    pub(super) at_target: Option<Listing>,
    /// Files that were not the listed version any more when they were read.
    pub(super) changed: Mutex<Vec<RelativePath>>,
}

/// What became of reading from the source.
enum Read {
    Data(Bytes),
    Changed,
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

/// Copies one entry that is no directory.
pub(super) async fn copy_entry(shared: Arc<Shared>, row: Listed) -> Result<(), TransferError> {
    match &row.entry {
        Entry::Directory => Ok(()),
        Entry::Symlink { target } => {
            let target_tag = shared.target.make_symlink(&row.path, target).await?;
            shared.done(&row, row.entry.clone(), target_tag).await
        }
        Entry::File(file) => {
            let part_size = part_size(shared.part_size, shared.target.part_limits(), file.size);
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

    async fn read(&self, row: &Listed, offset: u64, length: u64) -> Result<Read, TransferError> {
        let mount = &self.sources[row.mount];
        let below = row.path.strip_prefix(&mount.path).unwrap_or_else(|| row.path.clone());
        match mount.place.read(&below, Some(&row.tag), offset, length).await {
            Ok(data) if data.len() as u64 == length => Ok(Read::Data(data)),
            // Gone, replaced or shorter: another version.
            Ok(_) | Err(TransferError::Changed { .. } | TransferError::NotFound { .. }) => Ok(Read::Changed),
            Err(error) => Err(error),
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

    /// A file that is one part.
    async fn small(&self, row: &Listed, file: &File) -> Result<(), TransferError> {
        let _memory = self.memory(file.size).await?;
        let Read::Data(data) = self.read(row, 0, file.size).await? else {
            self.note_changed(&row.path);
            return Ok(());
        };
        let digest = hash(data.clone(), Digest::of).await?;
        self.meter.copied(file.size);
        let target_tag = self.target.put(&row.path, file, data).await?;
        // One byte more than there should be, to see that there is none.
        let back = self.target.read(&row.path, Some(&target_tag), 0, file.size + 1).await?;
        if back.len() as u64 != file.size || hash(back, Digest::of).await? != digest {
            return Err(self.mismatch(&row.path));
        }
        self.done(row, Entry::File(File { digest: Some(digest), ..*file }), target_tag).await
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
        let copied = self
            .for_parts(missing, |shared, number| {
                let (row, upload) = (row.clone(), upload.clone());
                let (offset, length) = (number as u64 * part_size, part_length(row_size(&row), part_size, number));
                async move { shared.copy_part(&row, &upload, number, offset, length).await }
            })
            .await?;
        for part in copied {
            let Some(part) = part else {
                self.note_changed(&row.path);
                return Ok(());
            };
            let number = part.number as usize;
            parts[number] = Some(part);
        }
        let parts: Vec<DonePart> = parts.into_iter().flatten().collect();
        let target_tag = match adopt {
            Some(tag) => tag,
            None => {
                let receipts: Vec<_> = parts.iter().map(|part| part.receipt.clone()).collect();
                self.target.complete(&row.path, &upload, file, &receipts).await?
            }
        };
        let values: Arc<Vec<ChainingValue>> = Arc::new(parts.iter().map(|part| part.value).collect());
        let same = self
            .for_parts((0..count).collect(), |shared, number| {
                let (path, tag, value) = (row.path.clone(), target_tag.clone(), values[number]);
                let (offset, length) = (number as u64 * part_size, part_length(row_size(row), part_size, number));
                async move { shared.same_part(&path, &tag, offset, length, value).await }
            })
            .await?;
        if same.contains(&false) {
            // Nothing of it can be trusted: the next run starts the file again.
            self.target.abort(&row.path, &upload).await?;
            self.journal.forget_file(&self.job, &row.path)?;
            return Err(self.mismatch(&row.path));
        }
        let digest = merge(file.size, part_size, &values);
        self.done(row, Entry::File(File { digest: Some(digest), ..*file }), target_tag).await
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
        let Read::Data(data) = self.read(row, offset, length).await? else { return Ok(None) };
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
