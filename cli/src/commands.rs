//! One file for each family of commands.

pub(crate) mod hub;
pub(crate) mod query;
pub(crate) mod token;
