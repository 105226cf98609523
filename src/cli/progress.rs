//! A line on stderr for whatever takes longer than two seconds.

use std::time::{Duration, Instant};

use crate::cli::output::say;
use crate::clock;

/// Says what is waited for, every two seconds.
pub(super) struct Progress {
    last: Instant,
}

const EVERY: Duration = Duration::from_secs(2);

impl Progress {
    pub(super) fn new() -> Self {
        Self { last: clock::monotonic() }
    }

    pub(super) fn say(&mut self, what: impl FnOnce() -> String) {
        let now = clock::monotonic();
        if now.duration_since(self.last) >= EVERY {
            self.last = now;
            say(&what());
        }
    }
}
