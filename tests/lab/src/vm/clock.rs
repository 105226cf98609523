//! The machine's clock, told in the lab's time.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::LOCAL;
use super::channel::Channel;
use crate::wait::monotonic;

/// Of so many comparisons the best counts.
const COMPARISONS: usize = 10;

/// When the machine's `CLOCK_MONOTONIC` was zero, in the lab's [`monotonic`] time.
#[derive(Debug)]
pub(super) struct Clock {
    zero: Duration,
    error: Duration,
}

impl Clock {
    /// Asks the machine what time it is. The question took some time, so that its zero is known with that
    /// error: the latest possible one is taken, and no event of the machine looks earlier than it was.
    pub(super) fn compare(channel: &mut Channel) -> Result<Clock> {
        let mut best: Option<Clock> = None;
        for _ in 0..COMPARISONS {
            let before = monotonic();
            let answer = channel.run("guest clock", LOCAL)?.context("the machine does not tell its time")?;
            let after = monotonic();
            let there = Duration::from_nanos(
                answer.output.parse().with_context(|| format!("not a time: {:?}", answer.output))?,
            );
            let clock = Clock { zero: after.saturating_sub(there), error: after.saturating_sub(before) };
            if best.as_ref().is_none_or(|best| clock.error < best.error) {
                best = Some(clock);
            }
        }
        best.context("never compared")
    }

    pub(super) fn here(&self, there: Duration) -> Duration {
        self.zero + there
    }

    pub(super) fn error(&self) -> Duration {
        self.error
    }
}
