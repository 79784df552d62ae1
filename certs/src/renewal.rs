//! When a leaf is due for renewal: at half its life, spread by ±10 % so that a fleet started together does not come
//! back together.

use std::time::Duration;

use jiff::Timestamp;

/// Part of the half life by which the moment is moved either way.
const SPREAD: f64 = 0.10;

/// When to renew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// At once.
    Now,
    /// After this time.
    In(Duration),
}

/// When a leaf issued at `issued_at` and valid until `not_after` is due, seen at `now`.
///
/// Not from its `not_before`, which lies a little earlier for clocks that are behind: a short-lived leaf would be due at
/// once, for ever.
///
/// `jitter` is a random number from 0 to 1, drawn once per certificate; 0.5 is exactly half life. Values outside (and
/// not-a-number) count as the nearest bound (or 0.5). A leaf whose life is empty or reversed is due now.
pub fn due(issued_at: Timestamp, not_after: Timestamp, now: Timestamp, jitter: f64) -> Due {
    let Ok(life) = Duration::try_from(not_after.duration_since(issued_at)) else { return Due::Now };
    let jitter = if jitter.is_nan() { 0.5 } else { jitter.clamp(0.0, 1.0) };
    // 0.45 … 0.55 of the life: never negative, never beyond it.
    let after_start = life.mul_f64(0.5 * (1.0 + SPREAD * (2.0 * jitter - 1.0)));
    let passed = now.duration_since(issued_at);
    match Duration::try_from(passed) {
        Ok(passed) if passed >= after_start => Due::Now,
        Ok(passed) => Due::In(after_start - passed),
        // Our clock is behind the certificate's start: wait the difference as well.
        Err(_) => Due::In(after_start.saturating_add(passed.unsigned_abs())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn a_leaf_is_due_at_half_life_with_a_tenth_of_spread() {
        let cases = [
            ("fresh, middle", 0, 0.5, Due::In(Duration::from_secs(500))),
            ("fresh, earliest", 0, 0.0, Due::In(Duration::from_secs(450))),
            ("fresh, latest", 0, 1.0, Due::In(Duration::from_secs(550))),
            ("just before", 499, 0.5, Due::In(Duration::from_secs(1))),
            ("at half life", 500, 0.5, Due::Now),
            ("expired", 2000, 0.5, Due::Now),
            ("our clock behind", -100, 0.5, Due::In(Duration::from_secs(600))),
            ("jitter out of range", 0, 7.0, Due::In(Duration::from_secs(550))),
            ("jitter not a number", 0, f64::NAN, Due::In(Duration::from_secs(500))),
        ];
        for (name, now, jitter, expected) in cases {
            assert_eq!(due(at(0), at(1000), at(now), jitter), expected, "{name}");
        }
    }

    #[test]
    fn an_empty_or_reversed_validity_is_due_now() {
        assert_eq!(due(at(10), at(10), at(10), 0.5), Due::Now);
        assert_eq!(due(at(10), at(5), at(0), 0.5), Due::Now);
    }

    proptest! {
        #[test]
        fn renewal_is_never_planned_past_the_end(life in 1i64..10_000_000, passed in 0i64..10_000_000, jitter in 0.0..=1.0) {
            if let Due::In(wait) = due(at(0), at(life), at(passed), jitter) {
                prop_assert!(wait.as_secs_f64() + passed as f64 <= life as f64);
            }
        }
    }
}
