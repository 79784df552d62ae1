//! The sessions of this hub, and how an agent is asked something.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fluvial_proto::v1;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// How long an agent may take to answer.
pub const ASK_TIMEOUT: Duration = Duration::from_secs(30);
/// Questions that wait for a session to take them up. A channel has room for 32 from the start: boxes keep that small.
const QUESTIONS: usize = 16;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AskError {
    #[error("cluster \"{cluster}\" has no session at this hub")]
    NotHere { cluster: String },
    #[error("the session of cluster \"{cluster}\" ended before its agent answered")]
    Gone { cluster: String },
    #[error("the agent of cluster \"{cluster}\" did not answer within {ASK_TIMEOUT:?}")]
    Timeout { cluster: String },
}

/// A question on its way to an agent.
pub(super) struct Question {
    pub(super) ask: v1::Ask,
    pub(super) answer: oneshot::Sender<v1::AskReply>,
}

struct Live {
    number: u64,
    instance: String,
    questions: mpsc::Sender<Box<Question>>,
    replaced: CancellationToken,
}

#[derive(Default)]
struct Table {
    live: HashMap<String, Live>,
    last: u64,
}

/// The live sessions by cluster.
#[derive(Default)]
pub struct Registry {
    table: Mutex<Table>,
}

/// A place in the registry; leaves it when dropped.
pub(super) struct Place {
    registry: Arc<Registry>,
    cluster: String,
    number: u64,
    pub(super) questions: mpsc::Receiver<Box<Question>>,
    /// Cancelled when a newer session of the same agent has taken the place.
    pub(super) replaced: CancellationToken,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.registry.table();
        if table.live.get(&self.cluster).is_some_and(|live| live.number == self.number) {
            table.live.remove(&self.cluster);
        }
    }
}

impl Registry {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the cluster's place, from an older session of the same agent if there is one: the agent knows that it
    /// connected again before the hub knows that the old connection is dead.
    pub(super) fn enter(self: &Arc<Self>, cluster: &str, instance: &str) -> Place {
        let (sender, questions) = mpsc::channel(QUESTIONS);
        let replaced = CancellationToken::new();
        let mut table = self.table();
        table.last += 1;
        let number = table.last;
        let live = Live { number, instance: instance.to_owned(), questions: sender, replaced: replaced.clone() };
        if let Some(old) = table.live.insert(cluster.to_owned(), live) {
            old.replaced.cancel();
        }
        Place { registry: self.clone(), cluster: cluster.to_owned(), number, questions, replaced }
    }

    /// Which installation of the cluster's agent has a session here.
    #[must_use]
    pub fn instance(&self, cluster: &str) -> Option<String> {
        self.table().live.get(cluster).map(|live| live.instance.clone())
    }

    /// The clusters with a session here.
    #[must_use]
    pub fn clusters(&self) -> Vec<String> {
        self.table().live.keys().cloned().collect()
    }

    /// Asks the agent of `cluster`.
    ///
    /// # Errors
    /// If it has no session here, or does not answer in time.
    pub async fn ask(&self, cluster: &str, ask: v1::Ask) -> Result<v1::AskReply, AskError> {
        let name = || cluster.to_owned();
        let questions = self.table().live.get(cluster).map(|live| live.questions.clone());
        let questions = questions.ok_or_else(|| AskError::NotHere { cluster: name() })?;
        let (answer, answered) = oneshot::channel();
        let asking = async {
            questions.send(Box::new(Question { ask, answer })).await.map_err(|_| AskError::Gone { cluster: name() })?;
            answered.await.map_err(|_| AskError::Gone { cluster: name() })
        };
        tokio::time::timeout(ASK_TIMEOUT, asking).await.unwrap_or_else(|_| Err(AskError::Timeout { cluster: name() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_newer_session_takes_the_place_of_the_older_and_keeps_it() {
        let registry = Arc::new(Registry::default());
        let old = registry.enter("a", "one");
        let mut new = registry.enter("a", "one");
        assert!(old.replaced.is_cancelled());
        drop(old);
        assert_eq!(registry.instance("a").as_deref(), Some("one"));
        let answering = async {
            let question = new.questions.recv().await.unwrap();
            question.answer.send(v1::AskReply { id: question.ask.id, ..Default::default() }).unwrap();
        };
        let (answer, ()) = tokio::join!(registry.ask("a", v1::Ask { id: 7, question: None }), answering);
        assert_eq!(answer.unwrap().id, 7);
        drop(new);
        let gone = registry.ask("a", v1::Ask::default()).await;
        assert_eq!(gone, Err(AskError::NotHere { cluster: "a".into() }));
    }

    #[tokio::test]
    async fn a_question_to_a_session_that_ends_fails_at_once() {
        let registry = Arc::new(Registry::default());
        let place = registry.enter("a", "one");
        let ending = async move { drop(place) };
        let (answer, ()) = tokio::join!(registry.ask("a", v1::Ask::default()), ending);
        assert_eq!(answer, Err(AskError::Gone { cluster: "a".into() }));
    }
}
