//! The deny list: certificates that are still valid but no longer welcome.
//!
//! The hub fills it from the replicated store and asks it at every handshake, call and push. A removed cluster is
//! denied by time: every certificate issued to it up to the removal is refused, whoever holds it, so a cluster of the
//! same name that joins later is welcome. Reading takes no lock.
//!
//! Deliberately absent: closing streams that are open, which the hub's sessions do when the list changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::Timestamp;

use crate::identity::{Identity, Verified};

/// Why a certificate is refused.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Revoked {
    #[error("certificate {serial} of {identity} was revoked")]
    Serial { serial: String, identity: String },
    #[error("hub {id} belongs to hubs that were replaced by a restore: remove its data directory, and join again")]
    Replaced { id: u64 },
    #[error("certificate of {identity} issued at {issued_at} was revoked with all issued up to {until}; join again")]
    Identity { identity: String, issued_at: Timestamp, until: Timestamp },
}

/// What is denied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Denied {
    /// Serial numbers, lower-case hex.
    pub serials: BTreeSet<String>,
    /// For an [`Identity::path`]: every certificate issued at or before this time.
    pub identities: BTreeMap<String, Timestamp>,
    /// Hubs with a smaller number, whatever they were issued and when: they can issue for themselves.
    pub hubs_below: u64,
}

impl Denied {
    /// Denies what `identity` was issued at or before `until`. An earlier time never undoes a later one.
    pub fn deny_identity(&mut self, identity: &Identity, until: Timestamp) {
        let entry = self.identities.entry(identity.path()).or_insert(until);
        *entry = until.max(*entry);
    }

    /// Decides about one certificate.
    ///
    /// # Errors
    /// Why it is denied.
    pub fn check(&self, leaf: &Verified) -> Result<(), Revoked> {
        if self.serials.contains(&leaf.serial) {
            return Err(Revoked::Serial { serial: leaf.serial.clone(), identity: leaf.identity.path() });
        }
        if let Identity::Hub { id } = leaf.identity
            && id < self.hubs_below
        {
            return Err(Revoked::Replaced { id });
        }
        // Whoever denies a cluster denies its nodes.
        let whole = match &leaf.identity {
            Identity::Node { cluster, .. } => Some(Identity::Cluster { name: cluster.clone() }.path()),
            _ => None,
        };
        for identity in std::iter::once(leaf.identity.path()).chain(whole) {
            if let Some(&until) = self.identities.get(&identity)
                && leaf.issued_at <= until
            {
                let identity = leaf.identity.path();
                return Err(Revoked::Identity { identity, issued_at: leaf.issued_at, until });
            }
        }
        Ok(())
    }
}

/// The deny list in force, shared by everything that checks it.
#[derive(Debug, Default)]
pub struct DenyList(ArcSwap<Denied>);

impl DenyList {
    /// A list in force.
    pub fn new(denied: Denied) -> Self {
        Self(ArcSwap::from_pointee(denied))
    }

    /// Puts another list in force, for example the one in the store after a snapshot.
    pub fn replace(&self, denied: Denied) {
        self.0.store(denied.into());
    }

    /// Adds one serial number (lower-case hex).
    pub fn deny_serial(&self, serial: &str) {
        self.0.rcu(|old| {
            let mut new = Denied::clone(old);
            new.serials.insert(serial.to_owned());
            new
        });
    }

    /// Adds an identity; see [`Denied::deny_identity`].
    pub fn deny_identity(&self, identity: &Identity, until: Timestamp) {
        self.0.rcu(|old| {
            let mut new = Denied::clone(old);
            new.deny_identity(identity, until);
            new
        });
    }

    /// The list in force.
    pub fn current(&self) -> Arc<Denied> {
        self.0.load_full()
    }

    /// Decides about one certificate.
    ///
    /// # Errors
    /// Why it is denied.
    pub fn check(&self, leaf: &Verified) -> Result<(), Revoked> {
        self.0.load().check(leaf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn leaf(name: &str, issued: i64) -> Verified {
        testing::verified(&Identity::Cluster { name: name.into() }, at(issued))
    }

    #[test]
    fn a_removed_cluster_is_denied_and_one_that_joins_later_is_not() {
        let list = DenyList::default();
        list.deny_identity(&Identity::Cluster { name: "a".into() }, at(100));
        let refused =
            |issued| Revoked::Identity { identity: "cluster/a".into(), issued_at: at(issued), until: at(100) };
        assert_eq!(list.check(&leaf("a", 0)), Err(refused(0)));
        assert_eq!(list.check(&leaf("a", 100)), Err(refused(100)));
        assert_eq!(list.check(&leaf("a", 101)), Ok(()));
        assert_eq!(list.check(&leaf("b", 0)), Ok(()));
    }

    #[test]
    fn a_user_with_the_name_of_a_removed_cluster_is_not_denied() {
        let list = DenyList::default();
        list.deny_identity(&Identity::Cluster { name: "a".into() }, at(100));
        let user = testing::verified(&Identity::User { name: "a".into(), groups: vec![] }, at(0));
        assert_eq!(list.check(&user), Ok(()));
    }

    #[test]
    fn hubs_that_a_restore_replaced_are_denied_whenever_their_certificates_were_issued() {
        let list = DenyList::new(Denied { hubs_below: 100, ..Denied::default() });
        let hub = |id, issued| testing::verified(&Identity::Hub { id }, at(issued));
        assert_eq!(list.check(&hub(99, 1_000_000)), Err(Revoked::Replaced { id: 99 }));
        assert_eq!(list.check(&hub(100, 0)), Ok(()));
        assert_eq!(list.check(&leaf("a", 0)), Ok(()));
    }

    #[test]
    fn an_earlier_removal_never_undoes_a_later_one() {
        let list = DenyList::default();
        let identity = Identity::Cluster { name: "a".into() };
        list.deny_identity(&identity, at(100));
        list.deny_identity(&identity, at(50));
        assert!(list.check(&leaf("a", 75)).is_err());
    }

    #[test]
    fn one_serial_is_denied_and_the_next_of_the_same_cluster_is_not() {
        let (list, first, second) = (DenyList::default(), leaf("a", 0), leaf("a", 0));
        list.deny_serial(&first.serial);
        let refused = Revoked::Serial { serial: first.serial.clone(), identity: "cluster/a".into() };
        assert_eq!(list.check(&first), Err(refused));
        assert_eq!(list.check(&second), Ok(()));
    }

    #[test]
    fn a_replaced_list_forgets_the_old_one() {
        let list = DenyList::default();
        let first = leaf("a", 0);
        list.deny_serial(&first.serial);
        list.replace(Denied::default());
        assert_eq!(list.check(&first), Ok(()));
    }
}
