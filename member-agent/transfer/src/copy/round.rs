//! The rounds of a copy: list, clean up, copy, list again; then verify and commit.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use fluvial_model::manifest::{Entry, RelativePath, Root};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::file::{MEMORY_UNIT, Shared, copy_entry, settle};
use super::progress::{Meter, Phase};
use super::record::{Recorder, recorder};
use super::{CopyContext, CopyJob, CopyReport, verify};
use crate::TransferError;
use crate::journal::{DoneFile, Journal, Stage};
use crate::listing::{Listed, Listing, OpenMount, Rows};
use crate::place::local::blocking;
use crate::place::{Detail, Place};

/// How often a source may change during the copy before it is given up.
const ROUNDS: usize = 3;
/// Small files under way for each stream: they wait for round trips and syncs, not for bandwidth. Memory permits bound
/// their bytes.
const FILES_PER_STREAM: usize = 4;
/// Paths that an error names at most.
pub(super) const NAMED_PATHS: usize = 100;

/// Where the listings of a job are, beside the journal.
fn listing_file(journal: &Journal, job: &str, which: &str) -> PathBuf {
    let mut name = journal.file().as_os_str().to_owned();
    let hash = blake3::hash(job.as_bytes()).to_hex();
    name.push(format!(".{}-{which}", &hash[..16]));
    name.into()
}

/// Removes the listings of a job; they are made again when they are needed.
pub(super) fn remove_listings(journal: &Journal, job: &str) {
    for which in ["source", "again", "target"] {
        // One that is not there, or that stays, harms nobody.
        let _ = std::fs::remove_file(listing_file(journal, job, which));
    }
}

pub(super) async fn run(
    job: CopyJob,
    ctx: CopyContext,
    sources: Vec<OpenMount>,
    target: Arc<dyn Place>,
    mut nothing_there: bool,
) -> Result<CopyReport, TransferError> {
    let meter = Arc::new(Meter::new(ctx.progress.clone(), ctx.clock.clone()));
    let round = Round { job, ctx, sources, target, meter };
    let mut changed = Vec::new();
    for _ in 0..ROUNDS {
        let listing = round.list_source().await?;
        changed = round.copy(&listing, std::mem::take(&mut nothing_there)).await?;
        if changed.is_empty() {
            let detail = round.target.verify_detail();
            let (since, at_target) = tokio::try_join!(round.changed_since(&listing), round.list_target(detail))?;
            changed = since;
            if changed.is_empty() {
                return round.finish(&listing, &at_target).await;
            }
        }
        tracing::info!(job = %round.job.id, paths = changed.len(), "source changed during the copy");
    }
    Err(TransferError::SourceChanged { paths: changed })
}

/// What a copy works with, opened.
pub(super) struct Round {
    pub(super) job: CopyJob,
    pub(super) ctx: CopyContext,
    pub(super) sources: Vec<OpenMount>,
    pub(super) target: Arc<dyn Place>,
    pub(super) meter: Arc<Meter>,
}

impl Round {
    fn file(&self, which: &str) -> PathBuf {
        listing_file(&self.ctx.journal, &self.job.id, which)
    }

    async fn list_source(&self) -> Result<Listing, TransferError> {
        self.meter.phase(Phase::Listing);
        let full = self.sources.iter().all(|mount| mount.place.source_detail() == Detail::Full);
        let detail = if full { Detail::Full } else { Detail::Tags };
        let listing = Listing::of(&self.file("source"), &self.sources, detail).await?;
        if let Some(root) = self.job.source_root {
            let (listing, blocks) = (listing.clone(), self.ctx.blocks.clone());
            blocking(move || verify::source_has_manifest(&listing, detail, root, &blocks)).await?;
        }
        Ok(listing)
    }

    /// What the target has; a target that does not exist has nothing.
    pub(super) async fn list_target(&self, detail: Detail) -> Result<Listing, TransferError> {
        let file = self.file("target");
        let mount = OpenMount { path: RelativePath::root(), place: self.target.clone() };
        match Listing::of(&file, &[mount], detail).await {
            Err(TransferError::NotFound { .. }) => blocking(move || Listing::create(&file)).await,
            result => result,
        }
    }

    async fn changed_since(&self, listing: &Listing) -> Result<Vec<RelativePath>, TransferError> {
        let again = Listing::of(&self.file("again"), &self.sources, Detail::Tags).await?;
        let listing = listing.clone();
        blocking(move || listing.changed(&again, NAMED_PATHS)).await
    }

    /// Copies what is not done; returns the files that were another version when they were read.
    async fn copy(&self, listing: &Listing, nothing_there: bool) -> Result<Vec<RelativePath>, TransferError> {
        self.meter.start(listing.sums()?);
        let at_target = if nothing_there {
            let file = self.file("target");
            blocking(move || Listing::create(&file)).await?
        } else {
            self.list_target(Detail::Tags).await?
        };
        self.clean(listing, &at_target).await?;
        let (recorder, record) = recorder(self.job.id.clone(), self.ctx.journal.clone(), self.target.clone());
        let copy = self.copy_all(listing, at_target, recorder);
        let mut record = std::pin::pin!(record);
        let mut copy = std::pin::pin!(copy);
        // The recorder ends after the copy, which holds it, or earlier with the error that matters.
        tokio::select! {
            biased;
            recorded = &mut record => match recorded {
                Ok(()) => copy.await,
                Err(error) => Err(error),
            },
            copied = &mut copy => {
                copied
            }
        }
    }

    /// Removes what is at the target but not in the source, and gives up uploads of other versions.
    async fn clean(&self, listing: &Listing, at_target: &Listing) -> Result<(), TransferError> {
        for upload in self.ctx.journal.uploads(&self.job.id)? {
            let row = listing.get(&upload.path)?;
            if row.is_none_or(|row| row.tag != upload.source_tag) {
                self.target.abort(&upload.path, &upload.upload).await?;
                self.ctx.journal.forget_file(&self.job.id, &upload.path)?;
            }
        }
        let (listing, at_target) = (listing.clone(), at_target.clone());
        let mut extra = blocking(move || {
            let mut rows = Rows::of(&at_target);
            let mut extra = Vec::new();
            while let Some(row) = rows.next()? {
                let is_directory = row.entry == Entry::Directory;
                let stays = match listing.get(&row.path)? {
                    Some(wanted) => (wanted.entry == Entry::Directory) == is_directory,
                    None => is_directory && listing.holds_something(&row.path)?,
                };
                if !stays {
                    extra.push(row.path);
                }
            }
            Ok(extra)
        })
        .await?;
        // What is in a directory goes before it.
        while let Some(path) = extra.pop() {
            self.target.remove(&path).await?;
            self.ctx.journal.forget_file(&self.job.id, &path)?;
        }
        Ok(())
    }

    async fn copy_all(
        &self,
        listing: &Listing,
        at_target: Listing,
        recorder: Recorder,
    ) -> Result<Vec<RelativePath>, TransferError> {
        let memory = (self.job.streams as u64).saturating_mul(self.job.part_size);
        let memory = self.job.memory.map_or(memory, |most| memory.min(most.max(self.job.part_size)));
        let units = memory.div_ceil(MEMORY_UNIT);
        let units = u32::try_from(units).unwrap_or(u32::MAX).min(Semaphore::MAX_PERMITS.min(u32::MAX as usize) as u32);
        let shared = Arc::new(Shared {
            job: self.job.id.clone(),
            sources: self.sources.clone(),
            target: self.target.clone(),
            journal: self.ctx.journal.clone(),
            recorder,
            meter: self.meter.clone(),
            part_size: self.job.part_size,
            verify: self.job.verify,
            known: self.job.source_root.map(|root| (root, self.ctx.blocks.clone())),
            streams: Arc::new(Semaphore::new(self.job.streams)),
            memory: Arc::new(Semaphore::new(units as usize)),
            memory_units: units,
            at_target: Some(at_target),
            changed: Mutex::default(),
        });
        let mut set = JoinSet::new();
        let mut after = None;
        let mut empty = true;
        loop {
            let (page, next) = self.plan(listing, &shared, after).await?;
            empty &= page.is_empty() && next.is_none();
            for work in page {
                match work {
                    Work::Directory { path, empty } => self.target.make_directory(&path, empty).await?,
                    Work::Reuse { files, bytes } => self.meter.reused(files, bytes),
                    Work::Copy(row, earlier) => {
                        while set.len() >= self.job.streams * FILES_PER_STREAM {
                            if let Some(joined) = set.join_next().await {
                                settle(joined)?;
                            }
                        }
                        set.spawn(copy_entry(shared.clone(), *row, earlier));
                    }
                }
            }
            match next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        while let Some(joined) = set.join_next().await {
            settle(joined)?;
        }
        if empty {
            // So that a tree without entries exists too.
            self.target.make_directory(&RelativePath::root(), true).await?;
        }
        let mut changed = std::mem::take(&mut *shared.changed.lock().unwrap_or_else(PoisonError::into_inner));
        changed.sort();
        changed.truncate(NAMED_PATHS);
        Ok(changed)
    }

    /// What a page of the listing needs; with the path after which the next page starts.
    async fn plan(
        &self,
        listing: &Listing,
        shared: &Arc<Shared>,
        after: Option<RelativePath>,
    ) -> Result<(Vec<Work>, Option<RelativePath>), TransferError> {
        let (listing, shared) = (listing.clone(), shared.clone());
        blocking(move || {
            let page = listing.page(after.as_ref())?;
            let next = page.last().map(|row| row.path.clone());
            let mut work = Vec::with_capacity(page.len());
            for row in page {
                if row.entry == Entry::Directory {
                    let empty = !listing.holds_something(&row.path)?;
                    work.push(Work::Directory { path: row.path, empty });
                } else {
                    let earlier = shared.earlier(&row)?;
                    let full = shared.sources[row.mount].place.source_detail() == Detail::Full;
                    match earlier.filter(|done| !full || verify::without_digest(&done.entry) == row.entry) {
                        Some(_) if full => {
                            let totals = row.entry.totals();
                            work.push(Work::Reuse { files: totals.files, bytes: totals.bytes });
                        }
                        earlier => work.push(Work::Copy(Box::new(row), earlier.map(Box::new))),
                    }
                }
            }
            Ok((work, next))
        })
        .await
    }

    /// Verifies the whole target and makes it visible.
    async fn finish(&self, listing: &Listing, at_target: &Listing) -> Result<CopyReport, TransferError> {
        self.meter.phase(Phase::Verifying);
        let (root, totals) = self.verify(listing, at_target).await?;
        self.meter.phase(Phase::Finishing);
        let report = CopyReport {
            root,
            totals,
            bytes_copied: self.meter.copied.load(Ordering::Relaxed),
            bytes_server_side: self.meter.server_side.load(Ordering::Relaxed),
            bytes_reused: self.meter.reused.load(Ordering::Relaxed),
            parts_reused: self.meter.parts_reused.load(Ordering::Relaxed),
        };
        let json = serde_json::to_string(&report).map_err(|error| TransferError::Build { why: error.to_string() })?;
        self.ctx.journal.set_stage(&self.job.id, &Stage::Committing(json.clone()))?;
        self.target.commit().await?;
        self.ctx.journal.set_stage(&self.job.id, &Stage::Done(json))?;
        let (journal, job) = (self.ctx.journal.clone(), self.job.id.clone());
        blocking(move || {
            remove_listings(&journal, &job);
            journal.forget(&job, true)
        })
        .await?;
        Ok(report)
    }

    async fn verify(
        &self,
        listing: &Listing,
        at_target: &Listing,
    ) -> Result<(Root, fluvial_model::manifest::Totals), TransferError> {
        let check = verify::Check {
            job: self.job.id.clone(),
            journal: self.ctx.journal.clone(),
            blocks: self.ctx.blocks.clone(),
            place: self.target.name().to_owned(),
            detail: self.target.verify_detail(),
        };
        let (listing, at_target, root) = (listing.clone(), at_target.clone(), self.job.source_root);
        blocking(move || check.run(&listing, &at_target, root)).await
    }
}

enum Work {
    Directory {
        path: RelativePath,
        empty: bool,
    },
    Reuse {
        files: u64,
        bytes: u64,
    },
    /// With what an earlier run recorded, where only a look at the source tells whether it is still that.
    Copy(Box<Listed>, Option<Box<DoneFile>>),
}

impl Shared {
    /// What an earlier run recorded of this very version, if it is still at the target.
    fn earlier(&self, row: &Listed) -> Result<Option<DoneFile>, TransferError> {
        let Some(done) = self.journal.done_file(&self.job, &row.path)? else { return Ok(None) };
        let there = self.at_target.as_ref().map(|listing| listing.get(&row.path)).transpose()?.flatten();
        let still_there = there.is_some_and(|there| there.tag == done.target_tag);
        Ok((done.source_tag == row.tag && still_there).then_some(done))
    }
}
