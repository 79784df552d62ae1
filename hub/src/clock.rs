//! The hub's only source of time and of fresh names, so that tests can say what time it is.

use std::sync::Arc;

use jiff::Timestamp;

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        // Whole microseconds: what clients parse and what sorts as text.
        let now = Timestamp::now();
        Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
    }
}

/// A shared clock.
pub type SharedClock = Arc<dyn Clock>;

/// A new object's uid.
#[must_use]
pub fn fresh_uid() -> String {
    uuid::Uuid::new_v4().to_string()
}
