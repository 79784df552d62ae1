//! Waiting for a condition, with a deadline and a report of what was last seen.
//!
//! Every wait of a system test goes through here. A probe answers `Ok` with what the test wants, or `Err` with the
//! state it found instead; when time runs out, that last state is in the panic, so that a failure in CI can be read
//! without running it again. Absent on purpose: waiting for time to pass.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How long to rest between two looks: short beside any wait worth having, long enough to leave the cores alone.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Asks `probe` until it answers `Ok`, and returns that answer.
///
/// # Panics
/// When `deadline` has passed, naming `what` and the last `Err`. The probe is asked at least once. It must itself be
/// bounded: a probe that blocks for ever is not interrupted (use [`wait_for_async`] for one that may).
#[track_caller]
pub fn wait_for<T, S: Debug>(deadline: Duration, what: &str, mut probe: impl FnMut() -> Result<T, S>) -> T {
    let started = Instant::now();
    loop {
        let state = match probe() {
            Ok(reached) => return reached,
            Err(state) => state,
        };
        assert!(started.elapsed() < deadline, "waited {deadline:?} for {what}; last state: {state:?}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// As [`wait_for`], for an asynchronous probe, which is also cut off at the deadline.
///
/// # Panics
/// When `deadline` has passed, naming `what` and the last `Err`, or `None` if the probe never answered.
pub async fn wait_for_async<T, S: Debug>(
    deadline: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> Result<T, S>,
) -> T {
    let mut last: Option<S> = None;
    let reached = tokio::time::timeout(deadline, async {
        loop {
            match probe().await {
                Ok(reached) => return reached,
                Err(state) => last = Some(state),
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    })
    .await;
    match reached {
        Ok(reached) => reached,
        Err(_) => panic!("waited {deadline:?} for {what}; last state: {last:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    fn panic_message(run: impl FnOnce()) -> String {
        let payload = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
        *payload.downcast::<String>().unwrap()
    }

    #[test]
    fn a_condition_that_comes_true_ends_the_wait_with_its_value() {
        let mut looks = 0;
        let value = wait_for(Duration::from_secs(10), "the third look", || {
            looks += 1;
            if looks == 3 { Ok("reached") } else { Err(looks) }
        });
        assert_eq!((value, looks), ("reached", 3));
    }

    #[test]
    fn a_wait_that_runs_out_names_what_and_the_last_state() {
        let message = panic_message(|| wait_for(Duration::ZERO, "three voters", || Err::<(), _>("two voters")));
        assert_eq!(message, r#"waited 0ns for three voters; last state: "two voters""#);
    }

    #[test]
    fn an_asynchronous_probe_that_hangs_is_cut_off_with_the_last_state() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let message = panic_message(|| {
            runtime.block_on(async {
                let mut first = true;
                wait_for_async(Duration::from_millis(100), "an answer", async || {
                    if std::mem::take(&mut first) {
                        return Err::<(), _>(503);
                    }
                    std::future::pending().await
                })
                .await;
            });
        });
        assert_eq!(message, "waited 100ms for an answer; last state: Some(503)");
    }
}
