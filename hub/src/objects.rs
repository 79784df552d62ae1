//! ② Typed objects over the store: what the hub's own parts read and write.
//!
//! Invariants: `resourceVersion` is never stored, it is the revision that came with the value; Secrets pass the vault
//! on both ways; every write compares with the revision it was computed from.

use std::sync::Arc;

use fluvial_model::kinds::Secret;
use fluvial_model::resource::{DecodeError, Resource};
use fluvial_model::store::{KeyValue, Revision, Txn, TxnOutcome};
use fluvial_raft::{Consistency, ListRequest, Store, StoreError};
use thiserror::Error;

use crate::vault::{Vault, VaultError};

/// Why an object could not be read or written.
#[derive(Debug, Error)]
pub enum ObjectError {
    #[error("reading or writing {key}")]
    Store {
        key: String,
        #[source]
        source: StoreError,
    },
    #[error("the object stored at {key} cannot be read")]
    Decode {
        key: String,
        #[source]
        source: DecodeError,
    },
    #[error("opening the secret at {key}")]
    Vault {
        key: String,
        #[source]
        source: VaultError,
    },
    #[error("the object for {key} cannot be written as JSON")]
    Encode {
        key: String,
        #[source]
        source: serde_json::Error,
    },
}

/// An object and the revision it was read at.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored<T> {
    pub object: T,
    pub revision: Revision,
}

/// Reads and writes typed objects.
#[derive(Clone)]
pub struct Objects {
    pub store: Arc<dyn Store>,
    pub vault: Arc<Vault>,
}

impl Objects {
    /// One object.
    ///
    /// # Errors
    /// If the store does not answer or holds something else.
    pub async fn get<R: Resource>(
        &self,
        namespace: &str,
        name: &str,
        consistency: Consistency,
    ) -> Result<Option<Stored<R>>, ObjectError> {
        let key = R::INFO.key(namespace, name);
        let found = self.store.get(&key, consistency).await.map_err(|source| ObjectError::Store { key, source })?;
        found.map(|kv| self.decode(&kv)).transpose()
    }

    /// All objects of a kind.
    ///
    /// # Errors
    /// If the store does not answer or holds something else.
    pub async fn list<R: Resource>(&self, consistency: Consistency) -> Result<Vec<Stored<R>>, ObjectError> {
        let prefix = R::INFO.prefix();
        let request = ListRequest { prefix: prefix.clone(), consistency, ..ListRequest::default() };
        let listing = self.store.list(request).await.map_err(|source| ObjectError::Store { key: prefix, source })?;
        listing.items.iter().map(|kv| self.decode(kv)).collect()
    }

    /// The transaction's outcome; callers read again on a conflict.
    ///
    /// # Errors
    /// If the store does not answer. The outcome may be unknown: see [`StoreError::UnknownOutcome`].
    pub async fn txn(&self, txn: Txn) -> Result<TxnOutcome, ObjectError> {
        let key = txn.ops.first().map(|op| op.key().to_owned()).unwrap_or_default();
        self.store.txn(txn).await.map_err(|source| ObjectError::Store { key, source })
    }

    /// The bytes to store for an object.
    ///
    /// # Errors
    /// If it is no JSON or cannot be encrypted.
    pub fn encode<R: Resource>(&self, object: &R) -> Result<Vec<u8>, ObjectError> {
        let key = object.key();
        let mut object = object.clone();
        object.meta_mut().resource_version.clear();
        let bytes = serde_json::to_vec(&object).map_err(|source| ObjectError::Encode { key: key.clone(), source })?;
        if R::INFO.secret {
            return self.vault.seal(&key, &bytes).map_err(|source| ObjectError::Vault { key, source });
        }
        Ok(bytes)
    }

    /// The object in a stored value.
    ///
    /// # Errors
    /// If it is not one of its kind.
    pub fn decode<R: Resource>(&self, kv: &KeyValue) -> Result<Stored<R>, ObjectError> {
        let key = || kv.key.clone();
        let mut object = if R::INFO.secret {
            let plain =
                self.vault.open(&kv.key, &kv.value).map_err(|source| ObjectError::Vault { key: key(), source })?;
            R::from_bytes(&plain)
        } else {
            R::from_bytes(&kv.value)
        }
        .map_err(|source| ObjectError::Decode { key: key(), source })?;
        object.meta_mut().resource_version = kv.mod_revision.to_string();
        Ok(Stored { object, revision: kv.mod_revision })
    }

    /// The plain value of one key of a Secret, if both exist.
    ///
    /// # Errors
    /// If the store does not answer or the Secret cannot be opened.
    pub async fn secret_value(&self, namespace: &str, name: &str, key: &str) -> Result<Option<String>, ObjectError> {
        use base64::Engine as _;
        let found = self.get::<Secret>(namespace, name, Consistency::Stale).await?;
        Ok(found.and_then(|secret| {
            let text = secret.object.data.get(key)?;
            let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
            String::from_utf8(bytes).ok()
        }))
    }
}
