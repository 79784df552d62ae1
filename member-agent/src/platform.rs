//! What the agent runs on. One so far: a bare machine.

pub mod host;
