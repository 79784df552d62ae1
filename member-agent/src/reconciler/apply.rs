//! Carries out the plan: one task for each piece of work, told to stop by a token, joined when it ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

use super::gather::Ended;
use super::plan::{Doing, Running, Step};
use super::work::Works;

/// How long tasks may take to stop at the end of the agent, before they are dropped where they are. They stop at the next
/// await; only a blocking call on a slow disk takes longer.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

struct Task {
    running: Running,
    cancel: CancellationToken,
}

/// How a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// There is nothing left to do for this generation.
    Settled,
    /// It was told to stop.
    Stopped,
}

/// Starts and stops tasks.
pub struct Runner {
    works: Arc<Works>,
    tasks: JoinSet<Outcome>,
    by_task: HashMap<Id, Task>,
    ended: Ended,
}

impl Runner {
    /// With what the tasks work with.
    #[must_use]
    pub fn new(works: Works) -> Self {
        Self { works: Arc::new(works), tasks: JoinSet::new(), by_task: HashMap::new(), ended: Ended::new() }
    }

    /// What ended by itself.
    #[must_use]
    pub fn ended(&self) -> &Ended {
        &self.ended
    }

    /// What runs.
    #[must_use]
    pub fn running(&self) -> Vec<Running> {
        self.by_task.values().map(|task| task.running.clone()).collect()
    }

    /// Carries out steps.
    pub async fn apply(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Stop { id } => self.cancel(&id),
                Step::Start { id, generation } => self.spawn(id, generation, Doing::Working),
                Step::Clean { id, generation } => self.spawn(id, generation, Doing::Cleaning),
                Step::Forget { id, generation } => {
                    self.ended.remove(&id);
                    self.works.forget(&id, generation).await;
                }
            }
        }
    }

    fn cancel(&mut self, id: &str) {
        for task in self.by_task.values_mut().filter(|task| task.running.id == id) {
            task.running.stopping = true;
            task.cancel.cancel();
        }
    }

    fn spawn(&mut self, id: String, generation: u64, doing: Doing) {
        let (works, cancel) = (self.works.clone(), CancellationToken::new());
        let running = Running { id: id.clone(), generation, doing, stopping: false };
        let token = cancel.clone();
        let task = self.tasks.spawn(async move {
            match doing {
                Doing::Working => works.work(&id, generation, token).await,
                Doing::Cleaning => works.clean(&id, generation, token).await,
            }
        });
        self.by_task.insert(task.id(), Task { running, cancel });
    }

    /// Waits until a task has ended; for ever if there is none.
    pub async fn one_ended(&mut self) {
        let Some(joined) = self.tasks.join_next_with_id().await else { return std::future::pending().await };
        let (task, outcome) = match joined {
            Ok((task, outcome)) => (task, outcome),
            Err(error) => {
                // A panic would come again: the work is not tried again at this generation.
                tracing::error!(%error, "a piece of work broke down");
                (error.id(), Outcome::Settled)
            }
        };
        let Some(Task { running, .. }) = self.by_task.remove(&task) else { return };
        if running.doing == Doing::Cleaning {
            // There may be room now for what did not fit.
            self.ended.retain(|id, _| !id.starts_with("cache/"));
        }
        if outcome == Outcome::Settled {
            self.ended.insert(running.id, (running.generation, running.doing));
        }
    }

    /// Stops every task, resumably.
    pub async fn stop(&mut self) {
        self.by_task.values().for_each(|task| task.cancel.cancel());
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_TIMEOUT, all).await.is_err() {
            tracing::warn!(tasks = self.tasks.len(), "some work did not stop in time and was dropped");
            self.tasks.shutdown().await;
        }
        self.by_task.clear();
    }
}
