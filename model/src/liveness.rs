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

/// The state of a cluster that was last heard from `silence` ago. A cluster that is leaving stays so; one that was
/// never heard from is pending.
#[must_use]
pub fn state(previous: ClusterState, silence: Option<Duration>) -> ClusterState {
    match (previous, silence) {
        (ClusterState::Leaving, _) => ClusterState::Leaving,
        (previous, None) => previous,
        (_, Some(silence)) if silence < SUSPECT_AFTER => ClusterState::Ready,
        (ClusterState::Pending, Some(_)) => ClusterState::Pending,
        (_, Some(silence)) if silence < UNREACHABLE_AFTER => ClusterState::Suspect,
        (_, Some(_)) => ClusterState::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_judged_in_two_steps() {
        use ClusterState::{Leaving, Pending, Ready, Suspect, Unreachable};
        let after = |seconds| Some(Duration::from_secs(seconds));
        for (previous, silence, expected) in [
            (Pending, None, Pending),
            (Pending, after(0), Ready),
            (Ready, after(9), Ready),
            (Ready, after(10), Suspect),
            (Suspect, after(29), Suspect),
            (Suspect, after(30), Unreachable),
            (Unreachable, after(1), Ready),
            (Ready, None, Ready),
            (Leaving, after(0), Leaving),
        ] {
            assert_eq!(state(previous, silence), expected, "{previous:?} {silence:?}");
        }
    }
}
