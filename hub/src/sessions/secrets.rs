//! Tells every session which Secrets changed: one watch for the whole hub.

use std::sync::Arc;
use std::time::Duration;

use fluvial_model::kinds::Secret;
use fluvial_model::resource::Resource as _;
use fluvial_raft::{Store, StoreError};
use tokio::sync::broadcast;

/// Changes that a session may lag behind; one that lags further looks at all its secrets again.
const LAG: usize = 256;
/// Pause after the store did not answer.
const RETRY: Duration = Duration::from_millis(500);

/// The key of a Secret that changed; nothing if changes may have been missed.
pub(super) type Change = Option<Arc<str>>;

/// A stream of changed Secrets; clones share it.
#[derive(Debug, Clone)]
pub struct SecretChanges {
    sender: broadcast::Sender<Change>,
}

impl Default for SecretChanges {
    fn default() -> Self {
        Self { sender: broadcast::channel(LAG).0 }
    }
}

impl SecretChanges {
    pub(super) fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.sender.subscribe()
    }

    /// Follows the store for ever.
    pub async fn run(self, store: Arc<dyn Store>) {
        loop {
            if let Err(error) = self.follow(&*store).await {
                tracing::debug!(%error, "following the secrets");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn follow(&self, store: &dyn Store) -> Result<(), StoreError> {
        let mut watch = store.watch(&Secret::INFO.prefix(), store.revision()).await?;
        // Whatever changed before the watch began was not told. That nobody listens is no error.
        let _ = self.sender.send(None);
        loop {
            for event in watch.next().await? {
                let _ = self.sender.send(Some(event.key.as_str().into()));
            }
        }
    }
}
