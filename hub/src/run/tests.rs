//! Real hubs: TLS on loopback, a real store on disk.

mod audit;
mod enrolment;
mod fixture;
mod fleet;
mod hooks;
mod matrix;
mod port;
mod revocation;
mod rights;
mod session;
mod snapshot;
mod upgrade;
