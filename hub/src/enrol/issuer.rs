//! Makes certificates for those who were let in.

use std::sync::Arc;
use std::time::Duration;

use fluvial_certs::authority;
use fluvial_certs::{Authority, Csr, Identity, SubjectAltName, csr};
use fluvial_model::store::Txn;
use fluvial_raft::{Consistency, StoreError};
use jiff::{SignedDuration, Timestamp};
use thiserror::Error;
use tonic::Status;

use super::revocations::{Revocation, RevocationError, revocation_key};
use crate::audit::{Act, Origin};
use crate::clock::SharedClock;
use crate::objects::Objects;
use crate::peers::split_address;

/// Why no certificate was made.
#[derive(Debug, Error)]
pub enum IssueError {
    #[error("the certificate signing request is not one")]
    Request(#[source] csr::Error),
    #[error("issuing a certificate for {identity}")]
    Issue {
        identity: String,
        #[source]
        source: authority::Error,
    },
    #[error("reading whether {identity} was revoked")]
    Revocation {
        identity: String,
        #[source]
        source: RevocationError,
    },
    #[error("reading whether {identity} was revoked, or recording its certificate")]
    Store {
        identity: String,
        #[source]
        source: StoreError,
    },
}

impl From<IssueError> for Status {
    fn from(error: IssueError) -> Self {
        match &error {
            IssueError::Request(source) => Self::invalid_argument(format!("{error}: {source}")),
            IssueError::Store { .. } => Self::unavailable(error.to_string()),
            IssueError::Issue { .. } | IssueError::Revocation { .. } => {
                tracing::error!(error = &error as &dyn std::error::Error, "no certificate was issued");
                Self::internal(error.to_string())
            }
        }
    }
}

/// Makes certificates with the fleet's authority.
#[derive(Clone)]
pub struct Issuer {
    pub authority: Arc<Authority>,
    pub objects: Objects,
    pub clock: SharedClock,
    /// How long what it makes is good for.
    pub lifetime: Duration,
}

impl Issuer {
    /// One whose certificates are good for so long.
    #[must_use]
    pub fn living(&self, lifetime: Duration) -> Self {
        Self { lifetime, ..self.clone() }
    }

    /// Reads a signing request.
    ///
    /// # Errors
    /// If it is none, or not signed by its own key.
    pub fn read(&self, request: &str) -> Result<Csr, IssueError> {
        Csr::from_pem(request).map_err(IssueError::Request)
    }

    /// A certificate for `identity`, in PEM; `address` is where a hub listens, `origin` who asked for it.
    ///
    /// It is dated after whatever was revoked of the same identity, so that a hub with a slow clock does not issue
    /// what is denied already.
    ///
    /// # Errors
    /// If the authority refuses or the store does not answer.
    pub async fn issue(
        &self,
        csr: &Csr,
        identity: &Identity,
        address: Option<&str>,
        origin: &Origin,
    ) -> Result<String, IssueError> {
        let name = || identity.path();
        let key = revocation_key(identity);
        let stored = self.objects.store.get(&key, Consistency::Linearizable).await;
        let revoked = stored.map_err(|source| IssueError::Store { identity: name(), source })?;
        let revoked = revoked.map(|kv| Revocation::read(&kv.key, &kv.value)).transpose();
        let revoked = revoked.map_err(|source| IssueError::Revocation { identity: name(), source })?;
        let now = dated_after(self.clock.now(), revoked.map(|r| r.before));
        let names = address.map(server_names).unwrap_or_default();
        let leaf = self.authority.issue(csr, identity, &names, now, self.lifetime);
        let leaf = leaf.map_err(|source| IssueError::Issue { identity: name(), source })?;
        // Recorded before it is handed out; a certificate that nobody got does no harm.
        let mut entry = origin.entry(&Act::of_fleet("issue", "certificates", &name()), 201, self.clock.now());
        entry.add(&format!("serial {}, until {}", leaf.serial, leaf.not_after));
        let recorded = self.objects.store.txn(Txn { audit: vec![entry], ..Txn::default() }).await;
        recorded.map_err(|source| IssueError::Store { identity: name(), source })?;
        Ok(leaf.cert_pem)
    }

    /// The roots that everyone trusts, in PEM.
    #[must_use]
    pub fn roots(&self) -> String {
        self.authority.cert_pem()
    }
}

fn dated_after(now: Timestamp, revoked: Option<Timestamp>) -> Timestamp {
    match revoked.and_then(|before| before.checked_add(SignedDuration::from_nanos(1)).ok()) {
        Some(after) => now.max(after),
        None => now,
    }
}

/// The names under which a hub at `address` is reached: its own, and those of the machine itself.
#[must_use]
pub fn server_names(address: &str) -> Vec<SubjectAltName> {
    let own = split_address(address).map(|(host, _)| host);
    let mut names: Vec<_> =
        own.into_iter().chain(["localhost", "127.0.0.1", "::1"]).map(SubjectAltName::from_host).collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_dated_after_what_was_revoked() {
        let at = |s| Timestamp::from_second(s).unwrap();
        assert_eq!(dated_after(at(100), None), at(100));
        assert_eq!(dated_after(at(100), Some(at(50))), at(100));
        assert!(dated_after(at(100), Some(at(200))) > at(200));
    }
}
