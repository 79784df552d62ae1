//! What the tests of this crate share: a trust domain with its authority, and leaves made by it.

use std::time::Duration;

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::authority::{Authority, Leaf, SubjectAltName};
use crate::bundle::Bundle;
use crate::identity::{Identity, TrustDomain, Verified};
use crate::keys::KeyPair;

/// The name under which test hubs are reached.
pub(crate) const HUB_NAME: &str = "hub.example";
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

pub(crate) fn hub(id: u64) -> Identity {
    Identity::Hub { id }
}

pub(crate) fn cluster(name: &str) -> Identity {
    Identity::Cluster { name: name.into() }
}

pub(crate) fn node(cluster: &str, name: &str) -> Identity {
    Identity::Node { cluster: cluster.into(), name: name.into() }
}

pub(crate) fn user(name: &str, groups: &[&str]) -> Identity {
    Identity::User { name: name.into(), groups: groups.iter().map(|&g| g.into()).collect() }
}

pub(crate) fn trust_domain() -> TrustDomain {
    TrustDomain::new("fluvial.test").unwrap()
}

pub(crate) fn der(pem: &str) -> Vec<u8> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}

/// One trust domain. TLS reads the real clock, so its leaves start from the real time.
pub(crate) struct Site {
    pub(crate) authority: Authority,
    pub(crate) now: Timestamp,
}

impl Site {
    pub(crate) fn new() -> Self {
        let now = Timestamp::now();
        // A year back, so that leaves of the past can be issued.
        let year_ago = now.checked_sub(365 * DAY).unwrap();
        Self { authority: Authority::generate(trust_domain(), year_ago).unwrap(), now }
    }

    pub(crate) fn leaf(&self, key: &KeyPair, identity: &Identity) -> Leaf {
        self.leaf_at(key, identity, self.now)
    }

    pub(crate) fn leaf_at(&self, key: &KeyPair, identity: &Identity, now: Timestamp) -> Leaf {
        let names = [SubjectAltName::from_host(HUB_NAME), SubjectAltName::from_host("127.0.0.1")];
        let names = if matches!(identity, Identity::Hub { .. }) { &names[..] } else { &[] };
        self.authority.issue_for_key(key, identity, names, now, DAY).unwrap()
    }

    pub(crate) fn bundle(&self, identity: &Identity) -> Bundle {
        self.bundle_at(identity, self.now)
    }

    pub(crate) fn bundle_at(&self, identity: &Identity, now: Timestamp) -> Bundle {
        let key = KeyPair::generate().unwrap();
        let leaf = self.leaf_at(&key, identity, now);
        Bundle::new(&leaf.cert_pem, &key, &self.authority.cert_pem()).unwrap()
    }
}

/// A verified leaf of a new authority.
pub(crate) fn verified(identity: &Identity, now: Timestamp) -> Verified {
    let authority = Authority::generate(trust_domain(), now).unwrap();
    let leaf = authority.issue_for_key(&KeyPair::generate().unwrap(), identity, &[], now, DAY).unwrap();
    Identity::from_leaf(&der(&leaf.cert_pem), &trust_domain()).unwrap()
}
