//! A hub's data directory.
//!
//! | file | content |
//! |---|---|
//! | `hub.json` | who the hub is ([`HubRecord`]); written last, so a directory with it is whole |
//! | `ca.pem`, `ca-key.pem` | the fleet's authority |
//! | `data.key` | the key of Secrets, base64 |
//! | `cert.pem`, `key.pem` | the hub's own certificate |
//! | `store/` | its replica of the store |
//! | `store.made` | there was a `store/` once: it is not made a second time |
//! | `replica/` | over etcd, in place of `store/`: the catalog, which follows etcd |
//! | `blocks/` | manifest blocks |
//!
//! Invariant: what is secret is readable by its owner alone.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fluvial_certs::{Authority, KeyPair, authority, files, keys};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use super::store::EtcdOptions;
use crate::vault::KEY_BYTES;

/// The format of a data directory, in `hub.json`. Directories from before it was kept are alike.
pub const FORMAT: u32 = 1;

/// Why a data directory cannot be used.
#[derive(Debug, Error)]
pub enum HomeError {
    #[error("{path} holds no hub: run `fluvial hub init` or `fluvial hub join` first")]
    NoHub { path: PathBuf },
    #[error("{path} holds a hub already")]
    Taken { path: PathBuf },
    #[error("making the directory {path}")]
    Create {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("reading or writing a file of the hub")]
    File(#[from] files::Error),
    #[error("{path} does not say who this hub is")]
    Record {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error(
        "the data directory {path} has format {found}, and this version of Fluvial reads formats up to {FORMAT}: use the version that wrote it, or a newer one"
    )]
    Newer { path: PathBuf, found: u32 },
    #[error("{path} must hold {KEY_BYTES} bytes in base64")]
    DataKey { path: PathBuf },
    #[error(
        "{path} has lost its replica of the store: it must not return under its old id without what it voted for; remove this \
         hub from the federation (`fluvial hub remove`) and let a new one join, in an empty directory"
    )]
    StoreLost { path: PathBuf },
    #[error("reading the authority")]
    Authority(#[source] authority::Error),
    #[error("reading the hub's key")]
    Key(#[source] keys::Error),
}

/// Who a hub is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HubRecord {
    /// Its number, never given to another.
    pub node_id: u64,
    /// The fleet's id.
    pub cluster_id: String,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where others reach it, `host:port`.
    pub advertise: String,
    /// It began the fleet.
    pub first: bool,
    /// The etcd that keeps the fleet's state, if the hubs do not do so themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<EtcdOptions>,
}

/// What is read of `hub.json` before anything else, and written into it beside the record.
#[derive(Serialize, Deserialize)]
struct Formatted<T> {
    #[serde(default = "first_format")]
    format: u32,
    #[serde(flatten)]
    record: T,
}

fn first_format() -> u32 {
    1
}

/// The files of one hub.
#[derive(Debug, Clone)]
pub struct Home {
    directory: PathBuf,
}

impl Home {
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Where the store is kept.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.file("store")
    }

    /// Where the catalog is kept that follows etcd.
    #[must_use]
    pub fn replica(&self) -> PathBuf {
        self.file("replica")
    }

    /// Where blocks are kept.
    #[must_use]
    pub fn blocks(&self) -> PathBuf {
        self.file("blocks")
    }

    /// Checks that the store is not about to be made a second time.
    ///
    /// # Errors
    /// If there was one, and it is gone.
    pub fn check_store(&self) -> Result<(), HomeError> {
        let path = self.store();
        if self.file("store.made").exists() && !path.join("node.json").exists() {
            return Err(HomeError::StoreLost { path });
        }
        Ok(())
    }

    /// Keeps in mind that there is a store.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn note_store(&self) -> Result<(), HomeError> {
        let path = self.file("store.made");
        if path.exists() {
            return Ok(());
        }
        Ok(files::write_public(&path, "")?)
    }

    /// Whether a hub lives here.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.file("hub.json").exists()
    }

    /// Makes the directory for a new hub.
    ///
    /// # Errors
    /// If it holds one already or cannot be made.
    pub fn prepare(&self) -> Result<(), HomeError> {
        if self.exists() {
            return Err(HomeError::Taken { path: self.directory.clone() });
        }
        let failed = |source| HomeError::Create { path: self.directory.clone(), source };
        fs::create_dir_all(&self.directory).map_err(failed)
    }

    /// Who the hub is.
    ///
    /// # Errors
    /// If there is none or the file is damaged.
    pub fn record(&self) -> Result<HubRecord, HomeError> {
        let path = self.file("hub.json");
        if !self.exists() {
            return Err(HomeError::NoHub { path: self.directory.clone() });
        }
        let text = files::read_public(&path)?;
        let failed = |source| HomeError::Record { path: path.clone(), source };
        // Its format first: a newer record may have other fields.
        let format = serde_json::from_str::<Formatted<serde_json::Value>>(&text).map_err(failed)?.format;
        if format > FORMAT {
            return Err(HomeError::Newer { path: self.directory.clone(), found: format });
        }
        serde_json::from_str::<Formatted<HubRecord>>(&text).map(|formatted| formatted.record).map_err(failed)
    }

    /// Writes who the hub is, after everything else.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn write_record(&self, record: &HubRecord) -> Result<(), HomeError> {
        let path = self.file("hub.json");
        let text = serde_json::to_string_pretty(&Formatted { format: FORMAT, record })
            .map_err(|source| HomeError::Record { path: path.clone(), source })?;
        Ok(files::write_public(&path, &text)?)
    }

    /// The fleet's authority.
    ///
    /// # Errors
    /// If it is not here or damaged.
    pub fn authority(&self) -> Result<Authority, HomeError> {
        let certificate = files::read_public(&self.file("ca.pem"))?;
        let key = files::read_secret(&self.file("ca-key.pem"))?;
        Authority::from_pem(&certificate, &key).map_err(HomeError::Authority)
    }

    /// Keeps the fleet's authority.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn write_authority(&self, authority: &Authority) -> Result<(), HomeError> {
        files::write_secret(&self.file("ca-key.pem"), &authority.key_pem())?;
        Ok(files::write_public(&self.file("ca.pem"), &authority.cert_pem())?)
    }

    /// The key of Secrets.
    ///
    /// # Errors
    /// If it is not here or damaged.
    pub fn data_key(&self) -> Result<Zeroizing<[u8; KEY_BYTES]>, HomeError> {
        let path = self.file("data.key");
        let text = files::read_secret(&path)?;
        let bytes = STANDARD.decode(text.expose_secret().trim()).map(Zeroizing::new).ok();
        let key = bytes.and_then(|bytes| <[u8; KEY_BYTES]>::try_from(bytes.as_slice()).ok());
        key.map(Zeroizing::new).ok_or(HomeError::DataKey { path })
    }

    /// Keeps the key of Secrets.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn write_data_key(&self, key: &Zeroizing<[u8; KEY_BYTES]>) -> Result<(), HomeError> {
        Ok(files::write_secret(&self.file("data.key"), &STANDARD.encode(key.as_slice()).into())?)
    }

    /// The hub's own certificate and key.
    ///
    /// # Errors
    /// If they are not here or damaged.
    pub fn leaf(&self) -> Result<(String, KeyPair), HomeError> {
        Ok((files::read_public(&self.file("cert.pem"))?, self.key()?))
    }

    /// The hub's own key.
    ///
    /// # Errors
    /// If it is not here or damaged.
    pub fn key(&self) -> Result<KeyPair, HomeError> {
        KeyPair::from_pem(&files::read_secret(&self.file("key.pem"))?).map_err(HomeError::Key)
    }

    /// Keeps the hub's own key.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn write_key(&self, key: &KeyPair) -> Result<(), HomeError> {
        Ok(files::write_secret(&self.file("key.pem"), &key.to_pem())?)
    }

    /// Keeps the hub's own certificate.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn write_certificate(&self, pem: &str) -> Result<(), HomeError> {
        Ok(files::write_public(&self.file("cert.pem"), pem)?)
    }
}
