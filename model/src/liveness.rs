//! ⑧ What silence means: when a cluster is Ready, Suspect or Unreachable.
//!
//! Nothing is ever deleted on suspicion: the states steer new decisions only.

use std::time::Duration;

use crate::kinds::ClusterState;

/// How often an agent says that it is there.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// Two heartbeats missed.
pub const SUSPECT_AFTER: Duration = Duration::from_secs(10);
/// Six heartbeats missed.
pub const UNREACHABLE_AFTER: Duration = Duration::from_secs(30);

/// The state of a cluster that was last heard from `silence` ago, or never, by hubs that have listened for `listening`.
/// A cluster that is leaving stays so; one that was never heard from is pending.
///
/// Only a word makes a state better. Silence makes it worse as far as anybody has listened: a hub that took the lead a
/// moment ago has not been told of those that others hear.
#[must_use]
pub fn state(previous: ClusterState, silence: Option<Duration>, listening: Duration) -> ClusterState {
    let unheard = silence.unwrap_or(Duration::MAX).min(listening);
    match (previous, silence) {
        (ClusterState::Leaving, _) => ClusterState::Leaving,
        (_, Some(silence)) if silence < SUSPECT_AFTER => ClusterState::Ready,
        (ClusterState::Pending, _) => ClusterState::Pending,
        _ if unheard < SUSPECT_AFTER => previous,
        (previous, _) if unheard < UNREACHABLE_AFTER => previous.max(ClusterState::Suspect),
        _ => ClusterState::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ClusterState::{Leaving, Pending, Ready, Suspect, Unreachable};

    fn after(seconds: u64) -> Option<Duration> {
        Some(Duration::from_secs(seconds))
    }

    #[test]
    fn silence_is_judged_in_two_steps() {
        for (previous, silence, expected) in [
            (Pending, None, Pending),
            (Pending, after(0), Ready),
            (Pending, after(40), Pending),
            (Ready, after(9), Ready),
            (Ready, after(10), Suspect),
            (Suspect, after(29), Suspect),
            (Suspect, after(30), Unreachable),
            (Ready, after(30), Unreachable),
            (Unreachable, after(1), Ready),
            (Unreachable, after(12), Unreachable),
            (Leaving, after(0), Leaving),
            (Leaving, None, Leaving),
        ] {
            assert_eq!(state(previous, silence, Duration::from_secs(3600)), expected, "{previous:?} {silence:?}");
        }
    }

    #[test]
    fn a_new_leader_suspects_nobody_before_it_has_listened_and_believes_nobody_without_a_word() {
        for (previous, silence, listening, expected) in [
            (Ready, None, 2, Ready),
            (Ready, after(500), 2, Ready),
            (Suspect, None, 2, Suspect),
            (Unreachable, None, 2, Unreachable),
            (Unreachable, after(500), 29, Unreachable),
            (Ready, None, 10, Suspect),
            (Ready, after(500), 29, Suspect),
            (Ready, None, 30, Unreachable),
            (Unreachable, after(1), 2, Ready),
        ] {
            let found = state(previous, silence, Duration::from_secs(listening));
            assert_eq!(found, expected, "{previous:?} {silence:?} {listening}");
        }
    }
}
