//! Real hubs: TLS on loopback, a real store on disk.

mod enrolment;
mod fixture;
mod fleet;
mod revocation;
mod session;
