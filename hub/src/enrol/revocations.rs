//! What is denied: kept in the store, in force on every hub.
//!
//! `/revocations/cluster/NAME` (or `…/user/NAME`, `…/hub/ID`) holds `{"before": TIME}`: every certificate issued to that
//! identity up to then is refused. The planner writes it in the transaction that finally removes a Cluster.
//! `/revocations/hubs` holds `{"below": NUMBER}`: hubs with a smaller number belong to what a restore replaced; they hold
//! the authority's key and could make certificates of any date, so that no time would keep them out.

use std::sync::Arc;
use std::time::Duration;

use fluvial_certs::revocation::Denied;
use fluvial_certs::{DenyList, Identity};
use fluvial_model::store::Revision;
use fluvial_raft::{Consistency, ListRequest, Store, StoreError};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::watch;

/// The start of every revocation's key.
pub const REVOCATIONS: &str = "/revocations/";
/// Where it is kept which hubs a restore replaced.
pub const HUBS_BELOW: &str = "/revocations/hubs";
/// Pause after the store did not answer.
const RETRY: Duration = Duration::from_millis(500);

/// Why a stored revocation cannot be used.
#[derive(Debug, Error)]
pub enum RevocationError {
    #[error("the revocation at {key} is not of the form {{\"before\": TIME}}")]
    Malformed {
        key: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("the revocation at {key} names neither a cluster, nor a user, nor a hub")]
    Key { key: String },
}

/// Denies every certificate of an identity that was issued at or before a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    pub before: Timestamp,
}

impl Revocation {
    /// Reads a stored value.
    ///
    /// # Errors
    /// If it is no revocation.
    pub fn read(key: &str, value: &[u8]) -> Result<Self, RevocationError> {
        serde_json::from_slice(value).map_err(|source| RevocationError::Malformed { key: key.to_owned(), source })
    }

    /// The value to store.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        serde_json::json!({ "before": self.before }).to_string().into_bytes()
    }
}

#[derive(Serialize, Deserialize)]
struct HubsBelow {
    below: u64,
}

/// The value that denies every hub whose number is below this one.
#[must_use]
pub fn hubs_below(below: u64) -> Vec<u8> {
    serde_json::json!({ "below": below }).to_string().into_bytes()
}

/// Where the revocation of an identity is kept.
#[must_use]
pub fn revocation_key(identity: &Identity) -> String {
    format!("{REVOCATIONS}{}", identity.path())
}

/// Key and value that deny what was issued to a cluster up to `before`.
#[must_use]
pub fn revocation(cluster: &str, before: Timestamp) -> (String, Vec<u8>) {
    let identity = Identity::Cluster { name: cluster.to_owned() };
    (revocation_key(&identity), Revocation { before }.to_bytes())
}

/// Key and value that deny what was issued to a user up to `before`.
#[must_use]
pub fn user_revocation(user: &str, before: Timestamp) -> (String, Vec<u8>) {
    let identity = Identity::User { name: user.to_owned(), groups: Vec::new() };
    (revocation_key(&identity), Revocation { before }.to_bytes())
}

/// The identity of a revocation's key.
fn identity_of(key: &str) -> Result<Identity, RevocationError> {
    let identity = match key.strip_prefix(REVOCATIONS).and_then(|path| path.split_once('/')) {
        Some(("cluster", path)) if path.contains("/node/") => path
            .split_once("/node/")
            .map(|(cluster, name)| Identity::Node { cluster: cluster.to_owned(), name: name.to_owned() }),
        Some(("cluster", name)) => Some(Identity::Cluster { name: name.to_owned() }),
        Some(("user", name)) if !name.contains('/') => {
            Some(Identity::User { name: name.to_owned(), groups: Vec::new() })
        }
        Some(("hub", id)) => id.parse().ok().map(|id| Identity::Hub { id }),
        _ => None,
    };
    identity.ok_or_else(|| RevocationError::Key { key: key.to_owned() })
}

/// Keeps a deny list equal to the store's, for as long as it is polled.
pub struct RevocationWatcher {
    store: Arc<dyn Store>,
    denied: Arc<DenyList>,
    changed: watch::Sender<u64>,
}

impl RevocationWatcher {
    /// A watcher that fills `denied`, and what tells of its changes.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, denied: Arc<DenyList>) -> (Self, watch::Receiver<u64>) {
        let (changed, receiver) = watch::channel(0);
        (Self { store, denied, changed }, receiver)
    }

    /// Puts in force what this replica's store holds now. Called once before anything is served.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn load(&self) -> Result<Revision, StoreError> {
        let request =
            ListRequest { prefix: REVOCATIONS.to_owned(), consistency: Consistency::Stale, ..ListRequest::default() };
        let listing = self.store.list(request).await?;
        let mut denied = Denied::default();
        for kv in &listing.items {
            if kv.key == HUBS_BELOW {
                match serde_json::from_slice::<HubsBelow>(&kv.value) {
                    Ok(HubsBelow { below }) => denied.hubs_below = below,
                    Err(error) => tracing::error!(%error, "hubs that a restore replaced are not denied"),
                }
                continue;
            }
            match (identity_of(&kv.key), Revocation::read(&kv.key, &kv.value)) {
                (Ok(identity), Ok(revocation)) => denied.deny_identity(&identity, revocation.before),
                (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "a revocation is not in force"),
            }
        }
        self.denied.replace(denied);
        self.changed.send_modify(|n| *n += 1);
        Ok(listing.revision)
    }

    /// Follows the store for ever.
    pub async fn run(self) {
        loop {
            if let Err(error) = self.follow().await {
                tracing::debug!(%error, "following the revocations");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn follow(&self) -> Result<(), StoreError> {
        let at = self.load().await?;
        let mut watch = self.store.watch(REVOCATIONS, at).await?;
        loop {
            watch.next().await?;
            // Revocations are few and rare: reading all of them again is the shortest way that cannot miss one.
            self.load().await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revocation_survives_the_store() {
        let before = Timestamp::from_second(1_800_000_000).unwrap();
        let (key, value) = revocation("a", before);
        assert_eq!(key, "/revocations/cluster/a");
        assert_eq!(String::from_utf8(value.clone()).unwrap(), r#"{"before":"2027-01-15T08:00:00Z"}"#);
        assert_eq!(Revocation::read(&key, &value).unwrap(), Revocation { before });
        assert_eq!(identity_of(&key).unwrap(), Identity::Cluster { name: "a".into() });
        let node = Identity::Node { cluster: "a".into(), name: "n".into() };
        assert_eq!(identity_of(&revocation_key(&node)).unwrap(), node);
    }

    #[test]
    fn a_key_that_names_nobody_is_an_error() {
        for key in ["/revocations/", "/revocations/user/ann/x", "/revocations/hub/x"] {
            assert!(identity_of(key).is_err(), "{key}");
        }
    }
}
