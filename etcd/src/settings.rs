//! ② Which etcd, as whom, and where in it.
//!
//! Invariant: a password is never shown; files are read when a connection is made, so that renewed ones are used.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use secrecy::SecretString;

/// Where a fleet's keys are unless it is told otherwise.
pub const DEFAULT_PREFIX: &str = "/fluvial/";

/// What a hub is told about its etcd.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `http://HOST:PORT` or `https://HOST:PORT` of some or all members.
    pub endpoints: Vec<String>,
    /// Who vouches for the members: PEM. Needed for `https`.
    pub ca: Option<PathBuf>,
    /// This hub's certificate and key: PEM. Both or none.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Name and password, where etcd asks for them.
    pub user: Option<(String, SecretString)>,
    /// What all keys of this fleet begin with.
    pub prefix: String,
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("no endpoint of etcd is given")]
    NoEndpoint,
    #[error("etcd endpoint {endpoint:?}: must be http://HOST:PORT or https://HOST:PORT")]
    Endpoint { endpoint: String },
    #[error("etcd endpoint {endpoint:?}: https needs the CA that vouches for it")]
    NoCa { endpoint: String },
    #[error("etcd prefix {prefix:?}: must begin and end with '/'")]
    Prefix { prefix: String },
    #[error("reading {path:?}")]
    Pem {
        path: PathBuf,
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    #[error("{path:?} holds no usable certificate")]
    Certificate {
        path: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error("TLS to etcd cannot be set up")]
    Tls(#[source] rustls::Error),
}

/// One member, as it is dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub tls: bool,
    pub host: String,
    pub port: u16,
}

impl Target {
    fn parse(endpoint: &str) -> Result<Self, SettingsError> {
        let wrong = || SettingsError::Endpoint { endpoint: endpoint.to_owned() };
        let (tls, rest) = match endpoint.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            _ => return Err(wrong()),
        };
        let (host, port) = rest.trim_end_matches('/').rsplit_once(':').ok_or_else(wrong)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        ServerName::try_from(host).map_err(|_| wrong())?;
        Ok(Self { tls, host: host.to_owned(), port })
    }

    /// `HOST:PORT`, as in a URI.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl Settings {
    /// The members to dial, once everything is known to make sense.
    pub(crate) fn targets(&self) -> Result<Vec<Target>, SettingsError> {
        if !(self.prefix.starts_with('/') && self.prefix.ends_with('/')) {
            return Err(SettingsError::Prefix { prefix: self.prefix.clone() });
        }
        let targets = self.endpoints.iter().map(|endpoint| Target::parse(endpoint)).collect::<Result<Vec<_>, _>>()?;
        if targets.is_empty() {
            return Err(SettingsError::NoEndpoint);
        }
        if let Some(at) = targets.iter().position(|target| target.tls && self.ca.is_none()) {
            return Err(SettingsError::NoCa { endpoint: self.endpoints[at].clone() });
        }
        Ok(targets)
    }

    /// How TLS is spoken to members, if it is.
    pub(crate) fn tls(&self) -> Result<Option<Arc<ClientConfig>>, SettingsError> {
        let Some(ca) = &self.ca else { return Ok(None) };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(ca)? {
            let wrong = |source| SettingsError::Certificate { path: ca.clone(), source };
            roots.add(certificate).map_err(wrong)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(SettingsError::Tls)?
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let pem = |source| SettingsError::Pem { path: key.clone(), source };
                let key = PrivateKeyDer::from_pem_file(key).map_err(pem)?;
                let wrong = |source| SettingsError::Certificate { path: cert.clone(), source };
                builder.with_client_auth_cert(certificates(cert)?, key).map_err(wrong)?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Some(Arc::new(config)))
    }
}

fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, SettingsError> {
    let wrong = |source| SettingsError::Pem { path: path.clone(), source };
    CertificateDer::pem_file_iter(path).map_err(wrong)?.collect::<Result<_, _>>().map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(endpoints: &[&str]) -> Settings {
        Settings {
            endpoints: endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect(),
            ca: None,
            identity: None,
            user: Some(("root".into(), "very secret".into())),
            prefix: DEFAULT_PREFIX.into(),
        }
    }

    #[test]
    fn endpoints_are_urls_with_a_port() {
        let targets = settings(&["http://one:2379", "http://[::1]:2379/"]).targets().unwrap();
        assert_eq!(targets[0], Target { tls: false, host: "one".into(), port: 2379 });
        assert_eq!((targets[1].host.as_str(), targets[1].authority().as_str()), ("::1", "[::1]:2379"));
        for wrong in ["one:2379", "http://one", "ftp://one:1", "http://one:0", "http://:1", "http://a b:1"] {
            assert!(matches!(settings(&[wrong]).targets(), Err(SettingsError::Endpoint { .. })), "{wrong}");
        }
        assert!(matches!(settings(&[]).targets(), Err(SettingsError::NoEndpoint)));
        assert!(matches!(settings(&["https://one:1"]).targets(), Err(SettingsError::NoCa { .. })));
        let other = Settings { prefix: "fluvial".into(), ..settings(&["http://one:1"]) };
        assert!(matches!(other.targets(), Err(SettingsError::Prefix { .. })));
    }

    #[test]
    fn a_password_is_not_shown() {
        assert!(!format!("{:?}", settings(&["http://one:1"])).contains("very secret"));
    }
}
