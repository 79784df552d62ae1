//! Where work that blocks is done: on a thread where that is fine or, in a simulation, in place and in virtual time.

use std::io;

/// Does `work` on a thread where blocking is fine. Once begun it is done, whether or not anyone still waits.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    #[cfg(feature = "simulation")]
    if crate::simulation::running() {
        let in_place = async move {
            crate::simulation::disk_time().await;
            work()
        };
        return tokio::spawn(in_place).await.map_err(io::Error::other);
    }
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// Whether a known bug is switched on, which only a simulation can do (`crate::simulation`).
#[cfg(feature = "simulation")]
macro_rules! known_bug {
    ($bug:ident) => {
        crate::simulation::bug(crate::simulation::Bug::$bug)
    };
}
#[cfg(not(feature = "simulation"))]
macro_rules! known_bug {
    ($bug:ident) => {
        crate::blocking::none_is_shipped()
    };
}

#[cfg(not(feature = "simulation"))]
pub const fn none_is_shipped() -> bool {
    false
}

/// Shows a simulation what this node does.
#[cfg(feature = "simulation")]
macro_rules! seen {
    ($($what:tt)*) => {
        crate::simulation::seen(|| crate::simulation::Seen::$($what)*)
    };
}
#[cfg(not(feature = "simulation"))]
macro_rules! seen {
    ($($what:tt)*) => {};
}

pub(crate) use {known_bug, seen};
