//! ① Who may do what, in force on this hub: roles, bindings, users, tokens and identity providers as this replica of the
//! store has them.
//!
//! A request asks what is here and no other hub, so that rights cost no round; what is written is in force on every hub as
//! soon as it has applied it.
//!
//! Invariants: before the store was read once, nobody has rights; what cannot be read gives nothing; who waits on
//! [`Rights::changed`] hears of every change.
//!
//! Deliberately absent: the decisions (`model::access`), and certificates, which the TLS layer judges.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use fluvial_certs::{Identity, UserSecret};
use fluvial_model::access::Policy;
use fluvial_model::kinds::rbac;
use fluvial_model::kinds::{IdentityProvider, User, UserToken, UserTokenSpec};
use fluvial_model::resource::Resource as _;
use fluvial_model::store::{KeyValue, Revision};
use fluvial_raft::{Consistency, ListRequest, Store, StoreError};
use jiff::Timestamp;
use thiserror::Error;
use tokio::sync::watch;

/// The start of the keys of User and UserToken, and of no other kind.
const USERS: &str = "/registry/fluvial.io/user";
/// Pause after the store did not answer.
const RETRY: Duration = Duration::from_millis(500);
/// How much is read at a time.
const PAGE: usize = 1000;

/// Why a bearer token opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TokenProblem {
    #[error("the bearer token is none of this hub's")]
    Unknown,
    #[error("the bearer token has expired: ask for another one")]
    Expired,
}

#[derive(Debug, Default)]
struct Known {
    policy: Policy,
    /// By name: uid and groups.
    users: HashMap<String, (String, Vec<String>)>,
    /// By id.
    tokens: HashMap<String, UserTokenSpec>,
    /// By name.
    providers: HashMap<String, IdentityProvider>,
}

impl Known {
    /// Takes in what is stored at `key` now.
    fn follow(&mut self, key: &str, value: Option<&[u8]>) {
        rbac::follow(&mut self.policy, key, value);
        if let Some(name) = key.strip_prefix(&User::INFO.prefix()) {
            match value.and_then(|bytes| User::from_bytes(bytes).ok()) {
                Some(user) => self.users.insert(name.to_owned(), (user.metadata.uid, user.spec.groups)),
                None => self.users.remove(name),
            };
        } else if let Some(id) = key.strip_prefix(&UserToken::INFO.prefix()) {
            match value.and_then(|bytes| UserToken::from_bytes(bytes).ok()) {
                Some(token) => self.tokens.insert(id.to_owned(), token.spec),
                None => self.tokens.remove(id),
            };
        } else if let Some(name) = key.strip_prefix(&IdentityProvider::INFO.prefix()) {
            match value.and_then(|bytes| IdentityProvider::from_bytes(bytes).ok()) {
                Some(provider) => self.providers.insert(name.to_owned(), provider),
                None => self.providers.remove(name),
            };
        }
    }
}

/// What is in force; clones share it.
#[derive(Debug, Clone)]
pub struct Rights {
    known: Arc<RwLock<Known>>,
    changed: watch::Sender<u64>,
}

impl Default for Rights {
    fn default() -> Self {
        Self { known: Arc::default(), changed: watch::channel(0).0 }
    }
}

impl Rights {
    /// What roles and bindings say. Hold it briefly: changes wait.
    pub fn policy(&self) -> impl std::ops::Deref<Target = Policy> + '_ {
        struct Guard<'a>(RwLockReadGuard<'a, Known>);
        impl std::ops::Deref for Guard<'_> {
            type Target = Policy;
            fn deref(&self) -> &Policy {
                &self.0.policy
            }
        }
        Guard(self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whose token this is, and until when.
    ///
    /// # Errors
    /// If it is nobody's any more.
    pub fn authenticate(&self, token: &str, now: Timestamp) -> Result<(Identity, Timestamp), TokenProblem> {
        let secret: UserSecret = token.parse().map_err(|_| TokenProblem::Unknown)?;
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let spec = known.tokens.get(secret.id()).filter(|spec| secret.has_hash(&spec.secret_hash));
        let spec = spec.ok_or(TokenProblem::Unknown)?;
        let user = known.users.get(&spec.user).filter(|(uid, _)| *uid == spec.user_uid);
        let (_, groups) = user.ok_or(TokenProblem::Unknown)?;
        let until = spec.expires_at.filter(|until| *until > now).ok_or(TokenProblem::Expired)?;
        Ok((Identity::User { name: spec.user.clone(), groups: groups.clone() }, until))
    }

    /// The identity provider of an issuer, if there is exactly one.
    #[must_use]
    pub fn provider(&self, issuer: &str) -> Option<IdentityProvider> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut of_issuer = known.providers.values().filter(|provider| provider.spec.issuer == issuer);
        let found = of_issuer.next().cloned();
        found.filter(|_| of_issuer.next().is_none())
    }

    /// Whether there still is the identity provider with this uid.
    #[must_use]
    pub fn has_provider(&self, uid: &str) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.providers.values().any(|provider| provider.metadata.uid == uid)
    }

    /// Changes whenever anything here does; 0 until the store was read for the first time.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Whether the store was read.
    #[must_use]
    pub fn are_known(&self) -> bool {
        *self.changed.borrow() > 0
    }

    /// Follows the store for ever.
    pub async fn run(self, store: Arc<dyn Store>) {
        loop {
            if let Err(error) = self.follow(&*store).await {
                tracing::debug!(%error, "following roles and users");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn follow(&self, store: &dyn Store) -> Result<(), StoreError> {
        let mut known = Known::default();
        let roles = rbac::prefix();
        let (items, at) = list(store, &roles).await?;
        items.iter().for_each(|kv| known.follow(&kv.key, Some(&kv.value)));
        let mut of_roles = store.watch(&roles, at).await?;
        let (items, at) = list(store, USERS).await?;
        items.iter().for_each(|kv| known.follow(&kv.key, Some(&kv.value)));
        let mut of_users = store.watch(USERS, at).await?;
        let providers = IdentityProvider::INFO.prefix();
        let (items, at) = list(store, &providers).await?;
        items.iter().for_each(|kv| known.follow(&kv.key, Some(&kv.value)));
        let mut of_providers = store.watch(&providers, at).await?;
        self.change(|old| *old = known);
        loop {
            let events = tokio::select! {
                events = of_roles.next() => events?,
                events = of_users.next() => events?,
                events = of_providers.next() => events?,
            };
            self.change(|known| {
                for event in &events {
                    known.follow(&event.key, event.value.as_ref().map(|kv| kv.value.as_slice()));
                }
            });
        }
    }

    fn change(&self, make: impl FnOnce(&mut Known)) {
        make(&mut self.known.write().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_modify(|n| *n += 1);
    }
}

/// Everything under a prefix as this replica has it.
async fn list(store: &dyn Store, prefix: &str) -> Result<(Vec<KeyValue>, Revision), StoreError> {
    let mut request = ListRequest {
        prefix: prefix.to_owned(),
        limit: Some(PAGE),
        consistency: Consistency::Stale,
        ..ListRequest::default()
    };
    let mut items = Vec::new();
    loop {
        let page = store.list(request.clone()).await?;
        request.after = page.items.last().map(|kv| kv.key.clone());
        request.revision = Some(page.revision);
        items.extend(page.items);
        if !page.more {
            return Ok((items, page.revision));
        }
    }
}

#[cfg(test)]
mod tests {
    use fluvial_certs::USER_SECRET_BYTES;
    use fluvial_model::kinds::UserSpec;
    use secrecy::ExposeSecret as _;

    use super::*;

    fn store<R: fluvial_model::resource::Resource>(rights: &Rights, object: &R) {
        let bytes = serde_json::to_vec(object).unwrap();
        rights.change(|known| known.follow(&object.key(), Some(&bytes)));
    }

    #[test]
    fn a_token_opens_what_its_user_has_now_until_either_is_gone() {
        let rights = Rights::default();
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let secret = UserSecret::mint(&[7; USER_SECRET_BYTES]);
        let text = secret.text().expose_secret().to_owned();
        let expires_at = Timestamp::from_second(1_800_000_060).ok();
        let spec =
            UserTokenSpec { user: "ann".into(), user_uid: "u1".into(), secret_hash: secret.secret_hash(), expires_at };
        let token = UserToken::new("", secret.id(), spec);
        let mut ann = User::new("", "ann", UserSpec { groups: vec!["team".into()] });
        ann.metadata.uid = "u1".into();

        store(&rights, &token);
        assert_eq!(rights.authenticate(&text, now), Err(TokenProblem::Unknown), "the user is not there");
        store(&rights, &ann);
        let expected = Identity::User { name: "ann".into(), groups: vec!["team".into()] };
        assert_eq!(rights.authenticate(&text, now), Ok((expected, expires_at.unwrap())));
        let late = Timestamp::from_second(1_800_000_060).unwrap();
        assert_eq!(rights.authenticate(&text, late), Err(TokenProblem::Expired));
        let other = UserSecret::mint(&[8; USER_SECRET_BYTES]);
        assert_eq!(rights.authenticate(other.text().expose_secret(), now), Err(TokenProblem::Unknown));
        // The id alone, with another secret.
        let mut forged = [8; USER_SECRET_BYTES];
        forged[..8].fill(7);
        let forged = UserSecret::mint(&forged);
        assert_eq!(forged.id(), secret.id());
        assert_eq!(rights.authenticate(forged.text().expose_secret(), now), Err(TokenProblem::Unknown));
        // Another user of the same name.
        ann.metadata.uid = "u2".into();
        store(&rights, &ann);
        assert_eq!(rights.authenticate(&text, now), Err(TokenProblem::Unknown));
    }
}
