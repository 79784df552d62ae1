//! Conversions between the wire's messages and the model's words, one file per family.

mod audit;
pub mod store;
