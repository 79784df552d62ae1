//! Every call × every identity, over real TLS: what is not written here as open is closed.
//!
//! [`grpc`] has one line for each method of the protocol's descriptors, [`rest`] one for each kind and each route; what has
//! no line fails. [`callers`] are the identities. [`isolation`] is about whose things a caller touches that may call.

mod callers;
mod grpc;
mod isolation;
mod rest;
