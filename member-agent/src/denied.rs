//! Whose certificates this agent does not accept any more: told by the hub, kept in `denied.json`.
//!
//! What is denied stays denied, also while no hub is reached and after a restart: a denial names a time, and a certificate
//! that was issued later is welcome.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fluvial_certs::{DenyList, files};
use fluvial_proto::v1;
use jiff::Timestamp;
use tokio::sync::watch;

/// The list, shared by the listener, the dialler and who is told of changes. Clones are one list.
#[derive(Debug, Clone)]
pub struct Denials {
    file: Arc<PathBuf>,
    list: Arc<DenyList>,
    changed: watch::Sender<u64>,
}

/// Why the list cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read denied identities")]
    File(#[source] files::Error),
    #[error("read {file}: expected the JSON that this agent writes")]
    Json {
        file: String,
        #[source]
        source: serde_json::Error,
    },
}

impl Denials {
    /// Reads what was denied before.
    ///
    /// # Errors
    /// When the file is there and cannot be read: an agent that forgot whom not to trust must not listen.
    pub fn open(data_dir: &Path) -> Result<Self, Error> {
        let file = data_dir.join("denied.json");
        let list = DenyList::default();
        if file.exists() {
            let text = files::read_public(&file).map_err(Error::File)?;
            let identities = serde_json::from_str(&text)
                .map_err(|source| Error::Json { file: file.display().to_string(), source })?;
            list.replace(fluvial_certs::Denied { identities, ..fluvial_certs::Denied::default() });
        }
        // Not 0: what there is was read.
        Ok(Self { file: Arc::new(file), list: Arc::new(list), changed: watch::Sender::new(1) })
    }

    /// The list in force.
    #[must_use]
    pub fn list(&self) -> Arc<DenyList> {
        self.list.clone()
    }

    /// Changes whenever the list does.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Everything that is denied, as it is told to others.
    #[must_use]
    pub fn told(&self) -> v1::Denied {
        let current = self.list.current();
        let identity = |(identity, before): (&String, &Timestamp)| v1::DeniedIdentity {
            identity: identity.clone(),
            before_ns: i64::try_from(before.as_nanosecond()).unwrap_or(i64::MAX),
        };
        v1::Denied { identities: current.identities.iter().map(identity).collect() }
    }

    /// Adds what is told, in force at once and then on disk. Blocks for a write if it is news.
    pub fn add(&self, denied: &v1::Denied) {
        let mut new = (*self.list.current()).clone();
        for v1::DeniedIdentity { identity, before_ns } in &denied.identities {
            let before = Timestamp::from_nanosecond(i128::from(*before_ns)).unwrap_or(Timestamp::MAX);
            let known = new.identities.entry(identity.clone()).or_insert(before);
            *known = before.max(*known);
        }
        if new == *self.list.current() {
            return;
        }
        let text = serde_json::to_string(&new.identities).expect("texts and times can be written as JSON");
        self.list.replace(new);
        self.changed.send_modify(|changes| *changes += 1);
        if let Err(error) = files::write_public(&self.file, &text) {
            // In force until the agent ends; the hub tells it again.
            tracing::error!(error = &error as &dyn std::error::Error, "denied identities were not written down");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(identity: &str, before_ns: i64) -> v1::Denied {
        v1::Denied { identities: vec![v1::DeniedIdentity { identity: identity.to_owned(), before_ns }] }
    }

    #[test]
    fn what_is_denied_stays_so_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let denials = Denials::open(dir.path()).unwrap();
        let mut changed = denials.changed();
        denials.add(&denied("cluster/a", 5));
        assert!(changed.has_changed().unwrap());
        changed.mark_unchanged();
        denials.add(&denied("cluster/a", 3));
        assert!(!changed.has_changed().unwrap(), "an earlier time undoes nothing");
        let again = Denials::open(dir.path()).unwrap();
        assert_eq!(again.told(), denied("cluster/a", 5));
        std::fs::write(dir.path().join("denied.json"), "{").unwrap();
        assert!(Denials::open(dir.path()).is_err());
    }
}
