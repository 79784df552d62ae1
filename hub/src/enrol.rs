//! How a newcomer becomes one of us, and how that is taken back.
//!
//! [`tokens`] hands out join tokens; [`join`] lets one in, once; [`issuer`] makes certificates, here and at renewal;
//! [`revocations`] keeps in the store what is denied and puts it in force on every hub; [`rate`] slows guessers down;
//! [`nodes`] answers the nodes of clusters.
//!
//! Invariants: the store holds hashes of tokens, never tokens; a token is consumed by the same transaction that makes
//! the Cluster object or gives out the hub's number, so neither happens without the other; a certificate is issued only
//! for the identity that a token or a valid certificate proves.
//!
//! Deliberately absent: who may ask for tokens (the API's rules).

pub mod issuer;
pub mod join;
pub mod nodes;
mod rate;
pub mod revocations;
pub mod tokens;

pub use issuer::Issuer;
pub use join::{HubSecrets, Joins};
pub use nodes::NodeCalls;
pub use revocations::{REVOCATIONS, Revocation, revocation, revocation_key};
pub use tokens::{MintedToken, TokenRequest, mint};
