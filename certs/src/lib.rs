//! The trust domain of Fluvial: who may speak, how a newcomer gets to speak, and how that is taken back.
//!
//! One certificate authority per trust domain signs short-lived leaves for four kinds of identity (hub, cluster, node of
//! a cluster, user). A newcomer presents a single-use join token whose text pins the authority's key, so that both sides know
//! each other before the first application byte. On the path this crate stands under step ④ (sessions ⇄ uplink) and
//! under the front door ①; it depends on nothing else of Fluvial.
//!
//! Contents, in reading order:
//!
//! | module | what it holds |
//! |---|---|
//! | [`identity`] | the words: trust domain, identity, its SPIFFE form, what a verified leaf says |
//! | [`pin`] | the fingerprint of an authority's public key, and finding it in a presented chain |
//! | [`keys`] | private keys and the signing requests made with them |
//! | [`csr`] | what the authority reads from a request: the public key and nothing else |
//! | [`authority`] | the CA: generate, load, issue |
//! | [`token`] | join tokens and the pure decision whether one may be used |
//! | [`user_token`] | bearer tokens of users |
//! | [`renewal`] | when a leaf is due for renewal |
//! | [`revocation`] | the deny list, checked at every handshake, call and push |
//! | [`bundle`] | what one side presents and trusts: chain, key, roots |
//! | [`tls`] | rustls configurations: server, client, first contact by pin |
//! | [`reload`] | credentials replaced while connections keep coming |
//! | [`listen`] | the listener that hubs and agents share |
//! | [`files`] | secret and public files on disk, written atomically |
//!
//! Invariants:
//! - No decision reads a clock or a random source: times and random bytes are arguments. Only key and serial
//!   generation draw randomness, and only `rustls` and the listener read the clock, for how long a certificate lives.
//! - No secret appears in `Debug`, in an error or in a log line.
//! - Every TLS configuration names its `ring` provider, speaks TLS 1.3 only and never resumes a session: a resumed
//!   session would skip the check of the client's certificate.
//!
//! Deliberately absent: CRLs and OCSP (the deny list is replicated by the hub and takes effect at once), services, and
//! storage of tokens and deny lists, which belongs to the hub.

pub mod authority;
pub mod bundle;
pub mod csr;
pub mod files;
pub mod identity;
pub mod keys;
pub mod listen;
pub mod pin;
pub mod reload;
pub mod renewal;
pub mod revocation;
mod subject;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod token;
pub mod user_token;

pub use authority::{Authority, Leaf, SubjectAltName};
pub use bundle::Bundle;
pub use csr::Csr;
pub use identity::{Identity, TrustDomain, Verified};
pub use keys::KeyPair;
pub use pin::SpkiPin;
pub use reload::{Current, Reloadable};
pub use renewal::{Due, due};
pub use revocation::{Denied, DenyList, Revoked};
pub use token::{JoinToken, Purpose, Refusal, TokenRecord, Use, Verdict, verdict};
pub use user_token::{USER_SECRET_BYTES, UserSecret};
