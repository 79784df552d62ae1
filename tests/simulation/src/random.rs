//! A small generator, so that a run can be repeated: a test prints its seed and takes it from `FLUVIAL_SEED`.

use std::time::SystemTime;

/// Knuth's linear congruential generator (MMIX); only its high bits are used.
#[derive(Debug, Clone)]
pub struct Random(u64);

/// A number of the environment.
pub fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// `FLUVIAL_SEED`, or a seed that no other run had.
///
/// # Panics
/// Never on a machine whose clock is after 1970.
pub fn seed() -> u64 {
    let clock = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970").subsec_nanos();
    number("FLUVIAL_SEED").unwrap_or_else(|| u64::from(clock()))
}

impl Random {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}
