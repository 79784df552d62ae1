//! The API from outside: requests into the router, over a real single-node store.

mod bad_input;
mod deletion;
mod harness;
mod objects;
mod references;
mod rights;
mod roles;
mod watching;
