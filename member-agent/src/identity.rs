//! The identity of an agent on disk: `key.pem` (0600), `cert.pem`, `ca.pem` and `agent.json` in the data directory.
//!
//! `agent.json` is written last: where it is, the other three are. Every file is replaced whole.

use std::io;
use std::path::{Path, PathBuf};

use fluvial_certs::files;
use fluvial_certs::{Bundle, Identity, KeyPair, TrustDomain, Verified};
use serde::{Deserialize, Serialize};

/// Why an identity cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("make data directory {dir}")]
    Directory {
        dir: String,
        #[source]
        source: io::Error,
    },
    #[error("use identity file")]
    File(#[source] files::Error),
    #[error("read {file}: expected the JSON that a join writes")]
    Json {
        file: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("use agent key")]
    Key(#[source] fluvial_certs::keys::Error),
    #[error("use agent certificate")]
    Bundle(#[source] fluvial_certs::bundle::Error),
    #[error("use agent certificate")]
    Leaf(#[source] fluvial_certs::identity::Error),
}

/// Who this agent is and whom it calls: `agent.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentFile {
    /// The cluster.
    pub cluster: String,
    /// The trust domain.
    pub trust_domain: String,
    /// Addresses (host:port) of the hubs.
    pub hubs: Vec<String>,
    /// Tells this data directory from another of the same cluster.
    pub instance: String,
    /// The node that this is; nothing for the agent that speaks for the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Of a node: where the agent that speaks for the cluster listened last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
}

impl AgentFile {
    /// Whom the agent's certificate is for.
    #[must_use]
    pub fn identity(&self) -> Identity {
        match &self.node {
            None => Identity::Cluster { name: self.cluster.clone() },
            Some(name) => Identity::Node { cluster: self.cluster.clone(), name: name.clone() },
        }
    }
}

/// The data directory of one agent.
#[derive(Debug, Clone)]
pub struct DataDir(PathBuf);

impl DataDir {
    /// Takes the directory, making it.
    ///
    /// # Errors
    /// [`Error::Directory`].
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, Error> {
        let dir = dir.into();
        std::fs::create_dir_all(&dir).map_err(|source| Error::Directory { dir: dir.display().to_string(), source })?;
        Ok(Self(dir))
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Who the agent is; `None` before it has joined.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn agent(&self) -> Result<Option<AgentFile>, Error> {
        let file = self.file("agent.json");
        if !file.exists() {
            return Ok(None);
        }
        let text = files::read_public(&file).map_err(Error::File)?;
        let parsed = serde_json::from_str(&text);
        parsed.map(Some).map_err(|source| Error::Json { file: file.display().to_string(), source })
    }

    /// Writes who the agent is.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn set_agent(&self, agent: &AgentFile) -> Result<(), Error> {
        let file = self.file("agent.json");
        let text = serde_json::to_string_pretty(agent)
            .map_err(|source| Error::Json { file: file.display().to_string(), source })?;
        files::write_public(&file, &(text + "\n")).map_err(Error::File)
    }

    /// The agent's key; made and written when there is none.
    ///
    /// # Errors
    /// When it cannot be read, made or written.
    pub fn key(&self) -> Result<KeyPair, Error> {
        let file = self.file("key.pem");
        if file.exists() {
            let pem = files::read_secret(&file).map_err(Error::File)?;
            return KeyPair::from_pem(&pem).map_err(Error::Key);
        }
        let key = KeyPair::generate().map_err(Error::Key)?;
        files::write_secret(&file, &key.to_pem()).map_err(Error::File)?;
        Ok(key)
    }

    /// Puts a certificate and its roots together with the key, and writes them once they fit.
    ///
    /// # Errors
    /// When they do not belong together or cannot be written; nothing is replaced then.
    pub fn set_certificate(&self, certificate: &str, ca: &str) -> Result<Bundle, Error> {
        let bundle = Bundle::new(certificate, &self.key()?, ca).map_err(Error::Bundle)?;
        // Roots first: during a rotation the new ones hold the old one too, so either certificate fits them.
        files::write_public(&self.file("ca.pem"), ca).map_err(Error::File)?;
        files::write_public(&self.file("cert.pem"), certificate).map_err(Error::File)?;
        Ok(bundle)
    }

    /// Certificate, key and roots, for connections.
    ///
    /// # Errors
    /// When a file cannot be read or they do not belong together.
    pub fn bundle(&self) -> Result<Bundle, Error> {
        let certificate = files::read_public(&self.file("cert.pem")).map_err(Error::File)?;
        let ca = files::read_public(&self.file("ca.pem")).map_err(Error::File)?;
        Bundle::new(&certificate, &self.key()?, &ca).map_err(Error::Bundle)
    }
}

/// What the certificate of a bundle says.
///
/// # Errors
/// When it is none of this trust domain.
pub fn verified(bundle: &Bundle, trust_domain: &str) -> Result<Verified, Error> {
    let trust_domain = TrustDomain::new(trust_domain).map_err(Error::Leaf)?;
    bundle.verified(&trust_domain).map_err(Error::Leaf)
}
