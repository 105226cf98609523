//! How long reading everything may take. A cluster with many images, a slow monitor or a PG that is inactive for a while needs
//! longer: a time that is always too short would never let a release or a gate go on.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::ceph::look::CLIENTS_WITHIN;

/// A sweep: 20,000 images a second, and PGs that do not answer.
const SWEEP: Duration = Duration::from_secs(20);
/// No reading takes longer.
const LONGEST: Duration = Duration::from_secs(600);
/// So many images tell how long many take.
const ENOUGH: u64 = 512;
/// A look holds up fences: silent PGs and monitors must not do so for longer.
const LOOK_LONGEST: Duration = Duration::from_secs(30);

/// What earlier readings took.
#[derive(Debug, Default)]
pub(super) struct TimeBudget {
    /// Milliseconds that a sweep of all images takes, by the last complete one.
    swept: AtomicU64,
    /// Sweeps, and readings of all clients, in a row that were not complete.
    sweeps_late: AtomicU32,
    clients_late: AtomicU32,
}

impl TimeBudget {
    pub(super) fn sweep(&self) -> Duration {
        longer(SWEEP.max(self.last() * 3), &self.sweeps_late)
    }

    /// For all clients of a release.
    pub(super) fn clients(&self) -> Duration {
        longer(CLIENTS_WITHIN.max(self.last() * 3), &self.clients_late)
    }

    /// For the clients of a look.
    pub(super) fn look(&self) -> Duration {
        CLIENTS_WITHIN.max(self.last() * 2).min(LOOK_LONGEST)
    }

    /// A sweep took so long to read so many of the images that are listed.
    pub(super) fn note_sweep(&self, took: Duration, read: u64, listed: u64, complete: bool) {
        let last =
            if complete { of_all(took, read, listed) } else { self.last().max(took.min(LOOK_LONGEST)) };
        self.swept.store(u64::try_from(last.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        note(&self.sweeps_late, complete);
    }

    pub(super) fn note_clients(&self, complete: bool) {
        note(&self.clients_late, complete);
    }

    fn last(&self) -> Duration {
        Duration::from_millis(self.swept.load(Ordering::Relaxed))
    }
}

/// How long all images take where so many took so long. The least sweep takes some time: from a few images nothing follows for
/// many.
fn of_all(took: Duration, read: u64, listed: u64) -> Duration {
    let times = if read < ENOUGH { 1.0 } else { listed.max(read) as f64 / read as f64 };
    took.mul_f64(times).min(LONGEST)
}

fn note(late: &AtomicU32, complete: bool) {
    late.store(if complete { 0 } else { late.load(Ordering::Relaxed).saturating_add(1) }, Ordering::Relaxed);
}

/// Twice as long after each that was late.
fn longer(time: Duration, late: &AtomicU32) -> Duration {
    let times = 2u32.saturating_pow(late.load(Ordering::Relaxed).min(8));
    time.saturating_mul(times).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_was_late_gets_longer_and_what_took_long_has_that_time() {
        let budget = TimeBudget::default();
        assert_eq!((budget.clients(), budget.look(), budget.sweep()), (3 * SECOND, 3 * SECOND, 20 * SECOND));
        budget.note_clients(false);
        budget.note_clients(false);
        assert_eq!(budget.clients(), 12 * SECOND);
        (0..20).for_each(|_| budget.note_clients(false));
        assert_eq!(budget.clients(), LONGEST);
        budget.note_clients(true);
        budget.note_sweep(8 * SECOND, 1, 1, true);
        assert_eq!(
            (budget.clients(), budget.look(), budget.sweep()),
            (24 * SECOND, 16 * SECOND, 24 * SECOND)
        );
        budget.note_sweep(24 * SECOND, 1, 1, false);
        assert_eq!(budget.sweep(), 144 * SECOND);
        // A tenth of all images took a second.
        budget.note_sweep(SECOND, 1000, 10_000, true);
        assert_eq!(budget.look(), 20 * SECOND);
        // A few take as long as fewer.
        budget.note_sweep(SECOND, 10, 10_000, true);
        assert_eq!(budget.look(), 3 * SECOND);
    }
}
