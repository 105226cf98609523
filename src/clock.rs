//! The one place that reads clocks. Everything else gets the time as an argument.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

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

/// Since this host booted, the time it slept included (`CLOCK_BOOTTIME`). Never steps.
pub fn boot() -> Duration {
    // Linux has had the clock since 2.6.39 and gives it to everybody: the other one is for where a sandbox hides it.
    let read = clock_gettime(ClockId::CLOCK_BOOTTIME).or_else(|_| clock_gettime(ClockId::CLOCK_MONOTONIC));
    read.map(Duration::from).unwrap_or_default()
}
