//! What the tasks do: scan, cache, migrate, back up, restore, remove, and clean up after them; loads are in [`super::load`].
//!
//! Every attempt reads its assignment from the ledger anew, so that a secret that changed is used; every result is in the
//! ledger before the task ends. What may pass is tried again after a pause that grows to [`RETRY_LONGEST`], for ever, and
//! says so; what somebody has to change ends the work with a problem.

mod backup;
mod relay;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fluvial_engine::{CacheRequest, Engine, Loaded};
use fluvial_model::desired::{CacheWork, MigrateWork, MountWork, RemoveWork, RestoreWork, ScanWork, Work};
use fluvial_model::kinds::{self, MigrateVerify};
use fluvial_model::report::{
    BackupReport, CacheReport, MigratePhase, MigrateReport, MountReport, Problem, RemoveReport, Report,
    RepositoryReport, RestoreReport, ScanReport, ServeReport, StoredReport, Version,
};
use fluvial_mount::serve::Shows;
use fluvial_transfer::listing::OpenMount;
use fluvial_transfer::place::limited::{Limit, Limited};
use fluvial_transfer::{BlockStore, CopyContext, CopyJob, Journal, Progress, Verify};
use tokio::sync::{Semaphore, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::apply::Outcome;
use super::locate;
use super::report::{self, Trouble};
use crate::blocks::{self, HubLink};
use crate::dial::Dialler;
use crate::ledger::{Assignment, Ledger, Secrets};
use crate::listener::AgentFront;
use crate::memory::{COPIES, MemoryLimit};
use crate::mounts::{self, MountWish, Mounts};
use crate::nodes::Nodes;
use crate::rates::Rates;
use crate::relay::Relays;

/// Scans at a time: each is a listing with its database and a few connections.
const SCANS: usize = 4;
/// Cache fills at a time; the engine bounds their memory together.
const LOADS: usize = 4;
/// The first pause before another attempt.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest.
const RETRY_LONGEST: Duration = Duration::from_secs(60);
/// At most so often it is said how far a piece of work is.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// At most so often it is said what a cache that fills on demand holds.
const FOLLOW_EVERY: Duration = Duration::from_secs(2);

/// How other agents are reached, and reach this one.
#[derive(Clone)]
pub struct Peers {
    /// Calls them.
    pub dialler: Dialler,
    /// What is served to them.
    pub relays: Relays,
    /// Answers them, and knows which of their connections are waited for.
    pub front: AgentFront,
    /// The other machines of this cluster; none know of others.
    pub nodes: Nodes,
    /// This machine's name among them, and whether its agent speaks for the cluster.
    pub node: String,
    pub leads: bool,
    /// What it may take of the ways to other clusters.
    pub rates: Rates,
    /// What it may have in memory.
    pub memory: MemoryLimit,
}

/// What the tasks work with.
pub struct Works {
    pub(super) ledger: Ledger,
    blocks: BlockStore,
    journal: Journal,
    pub(super) engine: Arc<dyn Engine>,
    link: HubLink,
    mounts: Mounts,
    peers: Peers,
    scans: Semaphore,
    copies: Semaphore,
    loads: Semaphore,
}

impl Works {
    /// With the agent's stores.
    #[must_use]
    pub fn new(
        ledger: Ledger,
        blocks: BlockStore,
        journal: Journal,
        engine: Arc<dyn Engine>,
        link: HubLink,
        mounts: Mounts,
        peers: Peers,
    ) -> Self {
        let (scans, copies, loads) = (Semaphore::new(SCANS), Semaphore::new(COPIES), Semaphore::new(LOADS));
        Self { ledger, blocks, journal, engine, link, mounts, peers, scans, copies, loads }
    }

    /// Does an assignment at this generation, until it is done, cannot be done, or is cancelled.
    pub(super) async fn work(&self, id: &str, generation: u64, cancel: CancellationToken) -> Outcome {
        let mut pause = RETRY_FIRST;
        loop {
            let attempt = Box::pin(self.attempt(id, generation, &cancel));
            let ended = tokio::select! {
                biased;
                () = cancel.cancelled() => return Outcome::Stopped,
                ended = attempt => ended,
            };
            let (work, problem) = match ended {
                Ok(()) => return Outcome::Settled,
                Err((_, Trouble::Cancelled)) => return Outcome::Stopped,
                Err((work, Trouble::Problem(problem))) => (work, problem),
            };
            tracing::warn!(id, generation, reason = problem.reason, retrying = problem.retrying, "{}", problem.message);
            let retrying = problem.retrying;
            if let Some(work) = work
                && let Err(error) = self.tell(id, generation, self.failure(id, &work, problem).await).await
            {
                tracing::error!(id, error = &error as &dyn std::error::Error, "the problem could not be noted");
            }
            if !retrying {
                return Outcome::Settled;
            }
            if !wait(&mut pause, &cancel).await {
                return Outcome::Stopped;
            }
        }
    }

    /// Removes what a withdrawn assignment left, then forgets it.
    pub(super) async fn clean(&self, id: &str, generation: u64, cancel: CancellationToken) -> Outcome {
        let mut pause = RETRY_FIRST;
        loop {
            let cleaned = tokio::select! {
                biased;
                () = cancel.cancelled() => return Outcome::Stopped,
                cleaned = Box::pin(self.remove_traces(id)) => cleaned,
            };
            match cleaned {
                Ok(()) => break,
                Err(Trouble::Cancelled) => return Outcome::Stopped,
                Err(Trouble::Problem(problem)) => {
                    tracing::warn!(id, reason = problem.reason, retrying = problem.retrying, "{}", problem.message);
                    if !problem.retrying {
                        break;
                    }
                }
            }
            if !wait(&mut pause, &cancel).await {
                return Outcome::Stopped;
            }
        }
        self.forget(id, generation).await;
        Outcome::Settled
    }

    /// Forgets a withdrawn assignment.
    pub(super) async fn forget(&self, id: &str, generation: u64) {
        self.peers.nodes.forget(id);
        let owned = id.to_owned();
        if let Err(error) = self.ledger.call(move |ledger| ledger.forget(&owned, generation)).await {
            tracing::error!(
                id,
                error = &error as &dyn std::error::Error,
                "a withdrawn assignment could not be forgotten"
            );
        }
    }

    pub(super) async fn tell(&self, id: &str, generation: u64, report: Report) -> Result<(), crate::ledger::Error> {
        let id = id.to_owned();
        let nodes = self.peers.nodes.clone();
        // Looked at where it is written down, so that what a node says meanwhile is not lost.
        self.ledger.call(move |ledger| ledger.report(&id, generation, &nodes.merged(&id, generation, report))).await
    }

    async fn read(&self, id: &str) -> Result<Option<Assignment>, Trouble> {
        let id = id.to_owned();
        Ok(self.ledger.call(move |ledger| ledger.assignment(&id)).await?)
    }

    async fn attempt(
        &self,
        id: &str,
        generation: u64,
        cancel: &CancellationToken,
    ) -> Result<(), (Option<Work>, Trouble)> {
        let assignment = self.read(id).await.map_err(|trouble| (None, trouble))?;
        // It has changed since the plan: the next one decides.
        let Some(assignment) = assignment.filter(|a| a.generation == generation && !a.withdrawn) else {
            return Err((None, Trouble::Cancelled));
        };
        let Assignment { work, secrets, .. } = assignment;
        let done = match &work {
            Work::Scan(scan) => self.scan(scan, &secrets, cancel).await,
            Work::Cache(cache) => self.cache(id, generation, cache, &secrets).await,
            Work::Migrate(migrate) if migrate.cancel => self.discard(migrate, &secrets).await.map(Report::Migrate),
            Work::Migrate(migrate) => self.migrate(id, generation, migrate, &secrets, cancel).await,
            Work::Remove(remove) => self.remove(remove, &secrets).await,
            Work::Backup(backup) => self.backup(id, generation, backup, &secrets, cancel).await,
            Work::Restore(restore) if restore.copy.cancel => {
                self.discard(&restore.copy, &secrets).await.map(backup::unfinished)
            }
            Work::Restore(restore) => self.restore(id, generation, restore, &secrets, cancel).await,
            Work::Repository(repository) => self.repository(repository, &secrets, cancel).await,
            Work::Mount(mount) if self.peers.leads && !mount.node.is_empty() && mount.node != self.peers.node => {
                self.mount_elsewhere(id, generation, mount).await
            }
            Work::Mount(mount) => self.mount(id, generation, mount, &secrets).await,
            Work::Serve(serve) => self.serve(id, generation, serve, &secrets).await,
            Work::Load(load) => self.load(id, generation, load).await,
        };
        let told = match done {
            Ok(report) => self.tell(id, generation, report).await.map_err(Trouble::from),
            Err(trouble) => Err(trouble),
        };
        told.map_err(|trouble| (Some(work), trouble))
    }

    /// The report of a work that met a problem.
    async fn failure(&self, id: &str, work: &Work, problem: Problem) -> Report {
        match work {
            Work::Scan(scan) => {
                let (generation, request) = (scan.generation, scan.request.clone());
                Report::Scan(ScanReport { generation, request, found: None, problem: Some(problem) })
            }
            Work::Cache(cache) => {
                let held = self.engine.status(&cache.dataset.uid).await.ok().flatten();
                let held = held.unwrap_or_else(|| CacheReport { root: cache.root.clone(), ..CacheReport::default() });
                let phase = if problem.retrying { "Filling" } else { "Failed" };
                Report::Cache(CacheReport { phase: phase.to_owned(), problem: Some(problem), ..held })
            }
            Work::Migrate(_) | Work::Restore(_) => {
                let phase = if problem.retrying { MigratePhase::Copying } else { MigratePhase::Failed };
                let progress = self.last_progress(id).await;
                let report = MigrateReport { phase, progress, version: None, problem: Some(problem) };
                if matches!(work, Work::Migrate(_)) { Report::Migrate(report) } else { backup::unfinished(report) }
            }
            Work::Backup(_) => {
                let progress = self.last_progress(id).await;
                Report::Backup(BackupReport { progress, written: None, problem: Some(problem) })
            }
            Work::Repository(work) => Report::Repository(RepositoryReport {
                request: work.request.clone(),
                problem: Some(problem),
                ..RepositoryReport::default()
            }),
            Work::Remove(_) => Report::Remove(RemoveReport { removed: false, problem: Some(problem) }),
            Work::Serve(_) => Report::Serve(ServeReport { problem: Some(problem) }),
            Work::Load(load) => self.load_failed(id, load, problem).await,
            Work::Mount(mount) => Report::Mount(MountReport {
                root: mount.root.clone(),
                problem: Some(problem),
                ..MountReport::default()
            }),
        }
    }

    /// How far the work was when it was told last.
    async fn last_progress(&self, id: &str) -> kinds::Progress {
        let id = id.to_owned();
        match self.ledger.call(move |ledger| ledger.last_report(&id)).await {
            Ok(Some(StoredReport { report: Report::Backup(last), .. })) => last.progress,
            Ok(Some(last)) => copy_of(&last).map(|copy| copy.progress.clone()).unwrap_or_default(),
            _ => kinds::Progress::default(),
        }
    }

    async fn scan(&self, work: &ScanWork, secrets: &Secrets, cancel: &CancellationToken) -> Result<Report, Trouble> {
        let mounts = locate::mounts(&work.sources, secrets)?;
        let found = {
            let _turn = self.scans.acquire().await.map_err(|_| Trouble::Cancelled)?;
            fluvial_transfer::scan(&mounts, &self.blocks, cancel.clone()).await?
        };
        blocks::push(&self.link, &self.ledger, &self.blocks, found.root).await?;
        let totals = report::totals(found.totals);
        let version = Version { root: found.root.to_string(), totals, digested: found.digested };
        let (generation, request) = (work.generation, work.request.clone());
        Ok(Report::Scan(ScanReport { generation, request, found: Some(version), problem: None }))
    }

    async fn cache(&self, id: &str, generation: u64, work: &CacheWork, secrets: &Secrets) -> Result<Report, Trouble> {
        let request = CacheRequest {
            dataset: work.dataset.clone(),
            root: work.root.parse()?,
            sources: locate::mounts(&work.sources, secrets)?,
            paths: work.paths.iter().map(|path| locate::path(path)).collect::<Result<_, _>>()?,
            pinned: work.pinned,
            on_demand: work.on_demand,
        };
        match self.engine.prepare(&request).await {
            Err(error) if report::lacks_blocks(&error) => {
                blocks::pull(&self.link, &self.blocks, request.root).await?;
                self.engine.prepare(&request).await?;
            }
            prepared => prepared?,
        }
        let uid = &work.dataset.uid;
        let load = async {
            let _turn = self.loads.acquire().await.map_err(|_| Trouble::Cancelled)?;
            self.engine.load(&request).await.map_err(Trouble::from)
        };
        tokio::pin!(load);
        let mut tick = ticker();
        let loaded = loop {
            tokio::select! {
                loaded = &mut load => break loaded?,
                _ = tick.tick() => {
                    let held = self.engine.status(uid).await?.unwrap_or_default();
                    self.tell(id, generation, Report::Cache(held)).await?;
                }
            }
        };
        let held = self.engine.status(uid).await?.unwrap_or_default();
        let problem = match loaded {
            Loaded::Complete => None,
            Loaded::Partial(message) => Some(Problem { reason: "NoSpace".to_owned(), message, retrying: false }),
        };
        if work.on_demand {
            self.tell(id, generation, Report::Cache(held.clone())).await?;
            return Box::pin(self.follow(id, generation, uid, held)).await;
        }
        Ok(Report::Cache(CacheReport { problem, ..held }))
    }

    /// Follows a cache that fills as its files are read, for as long as it is wanted.
    async fn follow(&self, id: &str, generation: u64, uid: &str, mut known: CacheReport) -> Result<Report, Trouble> {
        loop {
            tokio::time::sleep(FOLLOW_EVERY).await;
            let held = self.engine.status(uid).await?.unwrap_or_default();
            if held != known {
                self.tell(id, generation, Report::Cache(held.clone())).await?;
                known = held;
            }
        }
    }

    /// Keeps a mount there, for as long as it is wanted, and tells of every change.
    async fn mount(&self, id: &str, generation: u64, work: &MountWork, secrets: &Secrets) -> Result<Report, Trouble> {
        let shows = if work.homes.is_empty() {
            let root = work.root.parse()?;
            blocks::pull(&self.link, &self.blocks, root).await?;
            Shows::Version(root)
        } else {
            Shows::Homes { homes: locate::homes(work, secrets)?, staging: self.mounts.staging(&work.mount) }
        };
        let wish = MountWish {
            id: work.mount.clone(),
            uid: work.dataset.uid.clone(),
            source: source_of(work),
            directory: directory_of(work).await?,
            shows,
        };
        let mut state = self.mounts.want(&wish);
        loop {
            let now = state.borrow_and_update().clone();
            self.tell(id, generation, Report::Mount(report::mount(&work.root, &now))).await?;
            if state.changed().await.is_err() {
                return Err(Trouble::Cancelled);
            }
        }
    }

    /// Tells what a node says of a mount on its machine, for as long as it is wanted.
    async fn mount_elsewhere(&self, id: &str, generation: u64, work: &MountWork) -> Result<Report, Trouble> {
        let nodes = &self.peers.nodes;
        let mut changed = nodes.changed();
        loop {
            changed.borrow_and_update();
            let away = || {
                let message = format!("node \"{}\" has no session with the agent of its cluster", work.node);
                let problem = Problem { reason: "NodeAway".to_owned(), message, retrying: true };
                MountReport { root: work.root.clone(), problem: Some(problem), ..MountReport::default() }
            };
            let report = match nodes.said(&work.node, id, generation) {
                Some(said @ Report::Mount(_)) => said,
                _ if nodes.is_here(&work.node) => {
                    Report::Mount(MountReport { root: work.root.clone(), ..MountReport::default() })
                }
                _ => Report::Mount(away()),
            };
            self.tell(id, generation, report).await?;
            if changed.changed().await.is_err() {
                return Err(Trouble::Cancelled);
            }
        }
    }

    /// Sources that are read no faster than the links on the way allow the operation.
    async fn limited(&self, operation: &str, sources: Vec<OpenMount>) -> Vec<OpenMount> {
        let rate = self.peers.rates.of(operation).await;
        let limit = Arc::new(Limit::new(Arc::new(move || rate.now())));
        let limited =
            |OpenMount { path, place }| OpenMount { path, place: Arc::new(Limited::new(place, limit.clone())) };
        sources.into_iter().map(limited).collect()
    }

    async fn migrate(
        &self,
        id: &str,
        generation: u64,
        work: &MigrateWork,
        secrets: &Secrets,
        cancel: &CancellationToken,
    ) -> Result<Report, Trouble> {
        let source_root = work.root.as_deref().map(str::parse).transpose()?;
        let target = locate::location(&work.target, secrets)?;
        let (mounts, sources) = self.sources(work, secrets)?;
        let to = target.open_target()?;
        let mut job = CopyJob::new(work.operation.clone(), mounts, target);
        job.source_root = source_root;
        job.verify = match work.verify {
            MigrateVerify::Checksum => Verify::Checksum,
            MigrateVerify::ReadBack => Verify::ReadBack,
        };
        job.memory = Some(self.peers.memory.of_a_copy());
        if work.streams > 0 {
            job.streams = usize::try_from(work.streams).unwrap_or(usize::MAX);
        }
        if let Some(root) = source_root {
            blocks::pull(&self.link, &self.blocks, root).await?;
        }
        let progress = watch::Sender::new(Progress::default());
        let news = progress.subscribe();
        let context = CopyContext::new(self.journal.clone(), self.blocks.clone(), progress, cancel.clone());
        let copy = async {
            let _turn = self.copies.acquire().await.map_err(|_| Trouble::Cancelled)?;
            let sources = self.limited(&work.operation, sources).await;
            fluvial_transfer::copy::copy_between(job, context, sources, to).await.map_err(Trouble::from)
        };
        let copied = self.follow_copy((id, generation), news, copy, Report::Migrate).await?;
        blocks::push(&self.link, &self.ledger, &self.blocks, copied.root).await?;
        Ok(Report::Migrate(report::copied(&copied)))
    }

    /// Waits for a copy, and tells how far it is.
    async fn follow_copy<T>(
        &self,
        (id, generation): (&str, u64),
        mut news: watch::Receiver<Progress>,
        copy: impl Future<Output = Result<T, Trouble>>,
        told: fn(MigrateReport) -> Report,
    ) -> Result<T, Trouble> {
        tokio::pin!(copy);
        let mut tick = ticker();
        loop {
            tokio::select! {
                copied = &mut copy => return copied,
                _ = tick.tick() => {
                    let report = {
                        let now = news.borrow_and_update();
                        let (phase, progress) = (report::phase(now.phase), report::progress(&now));
                        MigrateReport { phase, progress, version: None, problem: None }
                    };
                    self.tell(id, generation, told(report)).await?;
                }
            }
        }
    }

    async fn discard(&self, work: &MigrateWork, secrets: &Secrets) -> Result<MigrateReport, Trouble> {
        let target = locate::location(&work.target, secrets)?;
        fluvial_transfer::discard(&work.operation, &target, &self.journal).await?;
        let progress = kinds::Progress::default();
        Ok(MigrateReport { phase: MigratePhase::Discarded, progress, version: None, problem: None })
    }

    async fn remove(&self, work: &RemoveWork, secrets: &Secrets) -> Result<Report, Trouble> {
        let target = locate::location(&work.target, secrets)?;
        fluvial_transfer::remove_tree(&target).await?;
        Ok(Report::Remove(RemoveReport { removed: true, problem: None }))
    }

    async fn remove_traces(&self, id: &str) -> Result<(), Trouble> {
        let Some(assignment) = self.read(id).await? else { return Ok(()) };
        match &assignment.work {
            Work::Cache(work) => self.engine.evict(&work.dataset.uid).await?,
            Work::Migrate(work) | Work::Restore(RestoreWork { copy: work, .. }) => {
                let owned = id.to_owned();
                let last = self.ledger.call(move |ledger| ledger.last_report(&owned)).await?;
                let done = last.as_ref().and_then(copy_of).is_some_and(|copy| copy.phase == MigratePhase::Done);
                // A finished copy is a home by now: it is the hub's to remove. Its journal stays: it is what answers
                // for the copy if the same operation is ever asked for again.
                if !done {
                    let target = locate::location(&work.target, &assignment.secrets)?;
                    fluvial_transfer::discard(&work.operation, &target, &self.journal).await?;
                }
            }
            // Its node takes it away.
            Work::Mount(work) if self.peers.leads && !work.node.is_empty() && work.node != self.peers.node => {}
            Work::Mount(work) => {
                let directory = directory_of(work).await?;
                self.mounts.take_away(&work.mount, &directory, &source_of(work)).await?;
            }
            Work::Scan(_)
            | Work::Remove(_)
            | Work::Serve(_)
            | Work::Backup(_)
            | Work::Repository(_)
            | Work::Load(_) => {}
        }
        Ok(())
    }
}

/// What a report says of a copy, if it is one of a copy.
fn copy_of(stored: &StoredReport) -> Option<&MigrateReport> {
    match &stored.report {
        Report::Migrate(copy) | Report::Restore(RestoreReport { copy, .. }) => Some(copy),
        _ => None,
    }
}

/// What mount tables show of a mount: the dataset, and which of its mounts.
fn source_of(work: &MountWork) -> String {
    format!("{}/{}@{}", work.dataset.namespace, work.dataset.name, work.mount)
}

/// The directory of a mount, as the mount table names it.
async fn directory_of(work: &MountWork) -> Result<PathBuf, Trouble> {
    let directory = PathBuf::from(&work.directory);
    let resolved = tokio::task::spawn_blocking(move || mounts::resolve(&directory)).await;
    let resolved = resolved.map_err(|_| Trouble::Cancelled)?;
    resolved.map_err(|source| mounts::Error::Directory { directory: work.directory.clone(), source }.into())
}

pub(super) fn ticker() -> tokio::time::Interval {
    let mut tick = tokio::time::interval(PROGRESS_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

/// Waits between attempts, each time longer; false if it was cancelled.
async fn wait(pause: &mut Duration, cancel: &CancellationToken) -> bool {
    // Half of it is random: what failed together does not come back together.
    let now = pause.mul_f64(rand::random_range(0.5..1.0));
    *pause = (*pause * 2).min(RETRY_LONGEST);
    tokio::select! {
        () = cancel.cancelled() => false,
        () = tokio::time::sleep(now) => true,
    }
}
