//! What the daemon counts and times. The event loop owns it and publishes copies: a scrape never reaches into the loop.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use rbd_guardian_core::model::fence_id::FenceId;
use rbd_guardian_core::model::record::FenceState;

/// Upper bounds in seconds: from a step within one proposal of the monitors to one that waits for OSDs.
pub(crate) const BOUNDS: [f64; 14] =
    [0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// How long something took, each time it was done.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Spread {
    /// By [`BOUNDS`]; what took longer than the last of them is in `count` alone.
    pub(crate) buckets: [u64; BOUNDS.len()],
    pub(crate) count: u64,
    pub(crate) sum: f64,
}

impl Spread {
    pub(crate) fn note(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        if let Some(at) = BOUNDS.iter().position(|bound| seconds <= *bound) {
            self.buckets[at] += 1;
        }
        self.count += 1;
        self.sum += seconds;
    }
}

/// A step of a fence that is timed.
pub(crate) const PHASES: [&str; 3] = ["commit", "seal", "mend"];

/// Since the daemon began.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    pub(crate) inputs: BTreeMap<&'static str, u64>,
    pub(crate) effects: BTreeMap<&'static str, Spread>,
    pub(crate) requests: BTreeMap<&'static str, u64>,
    pub(crate) lines: BTreeMap<&'static str, u64>,
    /// Each time a fence came to this state.
    pub(crate) changes: BTreeMap<&'static str, u64>,
    pub(crate) phases: BTreeMap<&'static str, Spread>,
    pub(crate) ledger_failures: u64,
    pub(crate) events_lost: u64,
    pub(crate) leads: u64,
    /// When a new connection to Ceph was made last.
    pub(crate) logged_in: Option<Timestamp>,
    /// Where each fence in force stands, and since when, by the boot clock.
    stands: BTreeMap<FenceId, (FenceState, Duration)>,
}

impl Figures {
    pub(crate) fn count(counts: &mut BTreeMap<&'static str, u64>, what: &'static str) {
        *counts.entry(what).or_default() += 1;
    }

    /// Compares where fences stand with where they stood: the time from the intent to the entries, from the entries to the
    /// seal, and from a breach to the next seal.
    pub(crate) fn note_fences<'f>(
        &mut self,
        now: Duration,
        fences: impl Iterator<Item = (&'f FenceId, FenceState)>,
    ) {
        let mut stands = BTreeMap::new();
        for (id, state) in fences {
            let before = self.stands.remove(id);
            let Some((last, since)) = before else {
                stands.insert(id.clone(), (state, now));
                continue;
            };
            let same_phase = last == state || (last == FenceState::Committed && state == FenceState::Pending);
            let mends = last == FenceState::Breached && state != FenceState::Sealed;
            if last != state {
                Self::count(&mut self.changes, state.word());
            }
            let took = now.saturating_sub(since);
            let phase = match (last, state) {
                (FenceState::Intended, FenceState::Committed | FenceState::Pending | FenceState::Sealed) => {
                    Some("commit")
                }
                (FenceState::Committed | FenceState::Pending, FenceState::Sealed) => Some("seal"),
                (FenceState::Breached, FenceState::Sealed) => Some("mend"),
                (
                    FenceState::Intended
                    | FenceState::Committed
                    | FenceState::Pending
                    | FenceState::Sealed
                    | FenceState::Breached
                    | FenceState::Releasing
                    | FenceState::Released,
                    _,
                ) => None,
            };
            if let Some(phase) = phase {
                self.phases.entry(phase).or_default().note(took);
            }
            // A breach is mended when it is sealed again, over the states between.
            let kept = match () {
                () if mends => (last, since),
                () if same_phase => (state, since),
                () => (state, now),
            };
            stands.insert(id.clone(), kept);
        }
        self.stands = stands;
    }

    /// Another guardian leads: what its fences do meanwhile is not timed here.
    pub(crate) fn forget_fences(&mut self) {
        self.stands.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_timed_over_the_states_between() {
        let id = FenceId::from("F-1");
        let mut figures = Figures::default();
        let mut at = |second: u64, state: FenceState| {
            figures.note_fences(Duration::from_secs(second), [(&id, state)].into_iter());
        };
        at(0, FenceState::Intended);
        at(2, FenceState::Committed);
        at(3, FenceState::Pending);
        at(7, FenceState::Sealed);
        at(20, FenceState::Breached);
        at(21, FenceState::Committed);
        at(25, FenceState::Sealed);
        let sum = |phase: &str| figures.phases[phase].sum;
        assert_eq!((sum("commit"), sum("seal"), sum("mend")), (2.0, 5.0, 5.0), "{:?}", figures.phases);
        assert_eq!((figures.changes["sealed"], figures.changes["breached"]), (2, 1));
        figures.note_fences(Duration::from_secs(30), std::iter::empty());
        assert!(figures.stands.is_empty());
    }

    #[test]
    fn what_takes_longer_than_the_last_bound_is_counted() {
        let mut spread = Spread::default();
        spread.note(Duration::from_secs(1000));
        spread.note(Duration::from_millis(1));
        assert_eq!((spread.count, spread.buckets.iter().sum::<u64>(), spread.buckets[0]), (2, 1, 1));
    }
}
