//! Credentials that are replaced while connections keep coming.
//!
//! An acceptor asks for the current server configuration at every connection, a dialler for the current client
//! configuration; renewal replaces both at once. Connections that exist keep what they were made with and end at their
//! certificate's `not_after`, which their owner watches.
//!
//! Invariants: chain, key and roots always change together; a bundle from which no configuration can be built changes
//! nothing. Deliberately absent: waking anybody. Watchers compare [`Current::generation`].

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::{ClientConfig, ServerConfig};

use crate::bundle::Bundle;
use crate::tls::{self, Error};

/// Everything that belongs to one generation of credentials.
#[derive(Clone, Debug)]
pub struct Current {
    /// 1 for the first bundle, one more at each replacement.
    pub generation: u64,
    /// The bundle.
    pub bundle: Arc<Bundle>,
    /// For accepting connections.
    pub server: Arc<ServerConfig>,
    /// For making connections as this process's identity.
    pub client: Arc<ClientConfig>,
}

/// Shared, replaceable credentials.
#[derive(Debug)]
pub struct Reloadable {
    current: ArcSwap<Current>,
    client_alpn: &'static [&'static [u8]],
}

impl Reloadable {
    /// Starts with `bundle`; clients offer the protocols `client_alpn` (see [`tls::ALPN_H2`]).
    ///
    /// # Errors
    /// As [`tls::server_config`].
    pub fn new(bundle: Bundle, client_alpn: &'static [&'static [u8]]) -> Result<Self, Error> {
        let current = build(bundle, client_alpn)?;
        Ok(Self { current: ArcSwap::from_pointee(current), client_alpn })
    }

    /// Puts another bundle in force and returns its generation. On an error the old one stays.
    ///
    /// # Errors
    /// As [`tls::server_config`].
    pub fn replace(&self, bundle: Bundle) -> Result<u64, Error> {
        let new = build(bundle, self.client_alpn)?;
        let old = self.current.rcu(|old| Current { generation: old.generation + 1, ..new.clone() });
        Ok(old.generation + 1)
    }

    /// The current generation, consistent in itself.
    pub fn current(&self) -> Arc<Current> {
        self.current.load_full()
    }

    /// The number of the current generation.
    pub fn generation(&self) -> u64 {
        self.current.load().generation
    }

    /// The configuration for the next accepted connection.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.current.load().server.clone()
    }

    /// The configuration for the next connection to make.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        self.current.load().client.clone()
    }
}

fn build(bundle: Bundle, client_alpn: &[&[u8]]) -> Result<Current, Error> {
    let server = Arc::new(tls::server_config(&bundle)?);
    let client = Arc::new(tls::client_config(Some(&bundle), bundle.roots(), client_alpn)?);
    Ok(Current { generation: 1, bundle: Arc::new(bundle), server, client })
}
