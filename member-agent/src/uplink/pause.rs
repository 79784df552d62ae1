//! How long to wait before the next attempt. Pure: chance is an argument, from 0 to 1.

use std::time::Duration;

/// The shortest pause.
const SHORTEST: Duration = Duration::from_millis(200);
/// The longest.
const LONGEST: Duration = Duration::from_secs(15);

/// The pause after so many failures in a row: anything up to a bound that doubles, never below the shortest.
#[must_use]
pub fn after(failures: u32, chance: f64) -> Duration {
    let doubled = 2u32.checked_pow(failures).and_then(|factor| SHORTEST.checked_mul(factor));
    doubled.unwrap_or(LONGEST).min(LONGEST).mul_f64(chance.clamp(0.0, 1.0)).max(SHORTEST)
}

/// A pause, a quarter shorter or longer by chance.
#[must_use]
pub fn spread(pause: Duration, chance: f64) -> Duration {
    pause.mul_f64(0.75 + 0.5 * chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_fill_the_whole_range_below_it() {
        let longest: Vec<_> = [0, 1, 3, 6, 7, 40, u32::MAX].map(|failures| after(failures, 1.0).as_millis()).to_vec();
        assert_eq!(longest, [200, 400, 1600, 12_800, 15_000, 15_000, 15_000]);
        assert_eq!(after(7, 0.5), Duration::from_millis(7500));
        assert_eq!(after(7, 0.0), SHORTEST);
        assert_eq!((spread(LONGEST, 0.0), spread(LONGEST, 1.0)), (LONGEST.mul_f64(0.75), LONGEST.mul_f64(1.25)));
    }
}
