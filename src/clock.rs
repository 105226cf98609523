//! The one place that reads clocks. Everything else gets the time as an argument.

use std::time::Instant;

use jiff::Timestamp;

/// The wall clock. Blocklist entries end at a wall-clock time of the monitors, so it is needed to judge them.
#[allow(clippy::disallowed_methods)]
pub fn wall() -> Timestamp {
    Timestamp::now()
}

/// The monotonic clock, for deadlines and durations.
#[allow(clippy::disallowed_methods)]
pub fn monotonic() -> Instant {
    Instant::now()
}
