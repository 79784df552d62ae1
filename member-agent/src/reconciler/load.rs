//! ⑤ Loads on request: the engine brings the files, the cache work of the same dataset has prepared it.

use std::time::Duration;

use fluvial_engine::{EngineError, WarmRequest, Warmed};
use fluvial_model::desired::LoadWork;
use fluvial_model::kinds;
use fluvial_model::report::{LoadPhase, LoadReport, Problem, Report, StoredReport};
use tokio::sync::watch;
use tokio::time::Instant;

use super::locate;
use super::report::Trouble;
use super::work::{Works, ticker};

/// How often it is looked whether the cache has been told of the version. The hub tells both, or withdraws the load.
const LOOK_EVERY: Duration = Duration::from_millis(300);

impl Works {
    pub(super) async fn load(&self, id: &str, generation: u64, work: &LoadWork) -> Result<Report, Trouble> {
        let request = WarmRequest {
            uid: work.dataset.uid.clone(),
            root: work.root.parse()?,
            paths: work.paths.iter().map(|path| locate::path(path)).collect::<Result<_, _>>()?,
            page_cache: work.page_cache,
        };
        let progress = watch::Sender::new(Warmed::default());
        let news = progress.subscribe();
        let began = Instant::now();
        let warm = async {
            loop {
                match self.engine.warm(&request, &progress).await {
                    Err(EngineError::NotPrepared { .. } | EngineError::Superseded { .. }) => {
                        tokio::time::sleep(LOOK_EVERY).await;
                    }
                    warmed => return warmed,
                }
            }
        };
        tokio::pin!(warm);
        let mut tick = ticker();
        let warmed = loop {
            tokio::select! {
                warmed = &mut warm => break warmed?,
                _ = tick.tick() => {
                    let now = report(work, &news.borrow(), began.elapsed());
                    self.tell(id, generation, Report::Load(now)).await?;
                }
            }
        };
        let mut last = report(work, &warmed, began.elapsed());
        last.progress.eta_seconds = None;
        last.phase = LoadPhase::Done;
        if warmed.page_cache_left_out > 0 {
            last.message = format!(
                "{} bytes are on disk only: the page cache had room for {} bytes, half of what is available",
                warmed.page_cache_left_out, warmed.page_cache_room
            );
        }
        if let Some(message) = warmed.without_room {
            last.phase = LoadPhase::Failed;
            last.problem = Some(Problem { reason: "NoSpace".to_owned(), message, retrying: false });
        }
        Ok(Report::Load(last))
    }

    /// The report of a load that met a problem: as far as it was.
    pub(super) async fn load_failed(&self, id: &str, work: &LoadWork, problem: Problem) -> Report {
        let owned = id.to_owned();
        let last = match self.ledger.call(move |ledger| ledger.last_report(&owned)).await {
            Ok(Some(StoredReport { report: Report::Load(last), .. })) => last,
            _ => LoadReport::default(),
        };
        let phase = if problem.retrying { LoadPhase::Loading } else { LoadPhase::Failed };
        Report::Load(LoadReport { phase, root: work.root.clone(), problem: Some(problem), ..last })
    }
}

#[allow(clippy::cast_precision_loss, reason = "a rate for people")]
fn report(work: &LoadWork, warmed: &Warmed, took: Duration) -> LoadReport {
    let rate = if took.is_zero() { 0.0 } else { warmed.bytes_done as f64 / took.as_secs_f64() };
    let left = warmed.bytes_total.saturating_sub(warmed.bytes_done) as f64;
    LoadReport {
        phase: LoadPhase::Loading,
        root: work.root.clone(),
        progress: kinds::Progress {
            files_done: warmed.files_done,
            files_total: warmed.files_total,
            bytes_done: warmed.bytes_done,
            bytes_total: warmed.bytes_total,
            bytes_per_second: rate,
            eta_seconds: (rate > 0.0).then(|| left / rate),
        },
        page_cache_bytes: work.page_cache.then_some(warmed.page_cache_bytes),
        message: String::new(),
        problem: None,
    }
}
