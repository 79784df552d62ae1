//! One complete, verified, resumable copy of a dataset's tree.
//!
//! A round lists the source, copies what is not done, and lists the source again; what changed is copied in the next
//! round. Then the target is listed and must have exactly the source's manifest; then it is committed.
//!
//! Memory: data in flight take `streams × part_size` bytes at most, held as permits of 64 KiB by every read from the
//! source and every read back (defaults: 8 × 8 MiB = 64 MiB), one extra buffer per local read back excepted; listings
//! and the journal are on disk, a page of 1,000 entries at a time in memory.
//!
//! Invariants: a target is never half visible; a file is read as one version; nothing counts as done before the target's
//! bytes were compared, by a checksum at the target or by reading them back. The steps of one file are in [`file`], what
//! makes them durable in [`record`].

mod file;
mod progress;
mod record;
mod round;
mod verify;

use std::sync::Arc;

use fluvial_model::manifest::{Root, Totals};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::progress::{Clock, Phase, Progress};
pub use self::verify::source_has_manifest;
use crate::journal::Stage;
use crate::location::{Location, SourceMount};
use crate::place::local::blocking;
use crate::place::{Place, TargetState};
use crate::{BlockStore, Journal, TransferError, scan};

/// The default of [`CopyJob::streams`].
pub const DEFAULT_STREAMS: usize = fluvial_model::migration::DEFAULT_STREAMS as usize;
/// The default of [`CopyJob::part_size`].
pub const DEFAULT_PART_SIZE: u64 = 8 << 20;
/// Most streams of a job: connections of one agent to one server.
const MAX_STREAMS: usize = 256;
/// Largest part: a multiple of it must fit in memory.
const MAX_PART_SIZE: u64 = 1 << 30;

/// How the bytes at the target are compared with those that were read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Verify {
    /// By the target, where it compares what arrives with a checksum and says so; by reading back elsewhere.
    #[default]
    Checksum,
    /// By reading every byte back.
    ReadBack,
}

/// What to copy.
#[derive(Debug, Clone)]
pub struct CopyJob {
    /// Names the job in the journal: the same id continues it.
    pub id: String,
    /// Where the data are.
    pub sources: Vec<SourceMount>,
    /// The manifest that the sources must have, when they are a home. Its blocks are in the block store.
    pub source_root: Option<Root>,
    /// The directory or prefix of the new copy, owned by this job.
    pub target: Location,
    /// How many parts are under way at once, as far as memory allows.
    pub streams: usize,
    /// Most bytes in memory, but one part always; if not given, a part for each stream.
    pub memory: Option<u64>,
    /// Bytes of a part: a power of two. Files with too many parts for the target get larger ones.
    pub part_size: u64,
    /// How the copy is verified.
    pub verify: Verify,
}

impl CopyJob {
    /// A job with the default streams and part size.
    #[must_use]
    pub fn new(id: impl Into<String>, sources: Vec<SourceMount>, target: Location) -> Self {
        Self {
            id: id.into(),
            sources,
            source_root: None,
            target,
            streams: DEFAULT_STREAMS,
            memory: None,
            part_size: DEFAULT_PART_SIZE,
            verify: Verify::default(),
        }
    }

    fn check(&self) -> Result<(), TransferError> {
        let bad = |what: String| Err(TransferError::BadJob { what });
        if self.id.is_empty() {
            return bad("a job needs an id".to_owned());
        }
        if self.sources.is_empty() {
            return bad("a job needs a source".to_owned());
        }
        if !(1..=MAX_STREAMS).contains(&self.streams) {
            return bad(format!("streams is {}; it must be 1 to {MAX_STREAMS}", self.streams));
        }
        if !self.part_size.is_power_of_two() || !(64 << 10..=MAX_PART_SIZE).contains(&self.part_size) {
            return bad(format!("part size is {}; it must be a power of two from 64 KiB to 1 GiB", self.part_size));
        }
        Ok(())
    }
}

/// What a copy works with.
#[derive(Clone)]
pub struct CopyContext {
    /// What was done before, and is done now.
    pub journal: Journal,
    /// Gets the blocks of the copy's manifest.
    pub blocks: BlockStore,
    /// Is told how far the copy is.
    pub progress: watch::Sender<Progress>,
    /// Stops the copy, resumably.
    pub cancel: CancellationToken,
    /// The time, for rates.
    pub clock: Clock,
}

impl CopyContext {
    /// A context with the system's clock.
    #[must_use]
    pub fn new(
        journal: Journal,
        blocks: BlockStore,
        progress: watch::Sender<Progress>,
        cancel: CancellationToken,
    ) -> Self {
        Self { journal, blocks, progress, cancel, clock: Arc::new(jiff::Timestamp::now) }
    }
}

/// What a finished copy was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyReport {
    /// The manifest of source and copy, with digests.
    pub root: Root,
    /// Its sums.
    pub totals: Totals,
    /// Bytes that the last run brought to the target.
    pub bytes_copied: u64,
    /// Those among them that the store copied by itself.
    #[serde(default)]
    pub bytes_server_side: u64,
    /// Bytes that earlier runs had copied.
    pub bytes_reused: u64,
    /// Parts of unfinished files among them.
    pub parts_reused: u64,
}

/// Copies, or continues copying. A finished job answers with its report again.
///
/// # Errors
/// See [`TransferError`]; whatever it is, the same call continues and [`discard`] cleans up.
pub async fn copy(job: CopyJob, ctx: CopyContext) -> Result<CopyReport, TransferError> {
    job.check()?;
    let sources = scan::open(&job.sources)?;
    let target = job.target.open_target()?;
    copy_between(job, ctx, sources, target).await
}

/// [`copy()`] with places that are open already.
///
/// # Errors
/// As [`copy()`].
pub async fn copy_between(
    job: CopyJob,
    ctx: CopyContext,
    sources: Vec<crate::listing::OpenMount>,
    target: Arc<dyn Place>,
) -> Result<CopyReport, TransferError> {
    job.check()?;
    let cancel = ctx.cancel.clone();
    // Everything that the copy spawns is in sets that abort on drop: leaving this select stops it.
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(TransferError::Cancelled { op: "copy" }),
        report = Box::pin(run(job, ctx, sources, target)) => report,
    }
}

async fn run(
    job: CopyJob,
    ctx: CopyContext,
    sources: Vec<crate::listing::OpenMount>,
    target: Arc<dyn Place>,
) -> Result<CopyReport, TransferError> {
    // Also waits for calls that an abandoned run of this process left behind.
    let state = target.target_state().await?;
    let shown = job.target.shown();
    let known = ctx.journal.job(&job.id)?;
    match &known {
        Some((at, _, _)) if *at != shown => {
            return Err(TransferError::JobDiffers { job: job.id, what: "target" });
        }
        Some((_, root, _)) if *root != job.source_root => {
            return Err(TransferError::JobDiffers { job: job.id, what: "source root" });
        }
        Some((_, _, Stage::Done(report))) => {
            if let Ok(report) = serde_json::from_str(report) {
                return Ok(report);
            }
        }
        // Killed between the rename and the note of it.
        Some((_, _, Stage::Committing(json))) if state == TargetState::Visible => {
            if let Ok(report) = serde_json::from_str(json) {
                ctx.journal.set_stage(&job.id, &Stage::Done(json.clone()))?;
                round::remove_listings(&ctx.journal, &job.id);
                return Ok(report);
            }
        }
        _ => {}
    }
    let nothing_there = state == TargetState::Absent;
    match (&known, state) {
        (_, TargetState::Visible) | (None, TargetState::Partial) => {
            return Err(TransferError::TargetExists { place: shown });
        }
        (None, TargetState::Absent) => ctx.journal.start(&job.id, &shown, job.source_root)?,
        (Some(_), TargetState::Absent) => ctx.journal.forget(&job.id, true)?,
        (Some(_), TargetState::Partial) => {}
    }
    round::run(job, ctx, sources, target, nothing_there).await
}

/// Ends a job for good: aborts what is under way at the target and removes what the job wrote.
///
/// # Errors
/// What the target or the journal report; the call can be repeated.
pub async fn discard(job: &str, target: &Location, journal: &Journal) -> Result<(), TransferError> {
    let Some((at, _, stage)) = journal.job(job)? else { return Ok(()) };
    if at != target.shown() {
        return Err(TransferError::JobDiffers { job: job.to_owned(), what: "target" });
    }
    let place = target.open_target()?;
    let state = place.target_state().await?;
    for upload in journal.uploads(job)? {
        place.abort(&upload.path, &upload.upload).await?;
    }
    place.remove_all().await?;
    // After the rename the copy is under its own name.
    if state == TargetState::Visible && stage != Stage::Copying {
        target.open()?.remove_all().await?;
    }
    let (job, journal) = (job.to_owned(), journal.clone());
    blocking(move || {
        round::remove_listings(&journal, &job);
        journal.forget(&job, false)
    })
    .await
}
