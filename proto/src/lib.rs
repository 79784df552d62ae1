//! The wire and the disk format of Fluvial: generated messages, and their conversions to and from `fluvial-model`.
//!
//! Invariants: fields are added, never renumbered; what is removed stays reserved. Only this crate knows both shapes.

/// Generated from `proto/fluvial/v1/*.proto`.
#[allow(clippy::all, missing_docs, unused_qualifications)]
pub mod v1 {
    tonic::include_proto!("fluvial.v1");
}

pub mod codec;
pub mod convert;

/// The path of every method of every service, `/fluvial.v1.SERVICE/METHOD`, as the descriptors have them.
pub const METHODS: &[&str] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));
