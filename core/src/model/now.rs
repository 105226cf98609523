//! The time, which every decision takes as an argument.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The time, as two clocks tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Now {
    /// Since the guardian's host booted (`CLOCK_BOOTTIME`): never steps, goes on while the host sleeps.
    pub boot: Duration,
    /// The wall clock: for what ends at a wall-clock time (blocklist entries), and for people.
    pub wall: Timestamp,
}
