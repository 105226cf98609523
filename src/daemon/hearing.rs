//! How the log tells of the events that come or do not: a flood of them is a few lines.

use std::collections::BTreeMap;
use std::time::Duration;

use rbd_guardian_core::guardian::report::Level;

use super::log;
use crate::incus::events::Signal;

/// Between two lines of one kind.
const EVERY: Duration = Duration::from_secs(10);

/// What was told, and what was not.
#[derive(Debug, Default)]
pub(super) struct EventLog {
    /// When something of a kind was told last, and how often it happened since.
    told: BTreeMap<(&'static str, String), (Duration, u64)>,
    /// Events that were not kept since that was told last.
    lost: u64,
}

impl EventLog {
    pub(super) fn tell(&mut self, now: Duration, signal: &Signal) {
        let (level, code, about, text) = match signal {
            Signal::Lost { endpoint, why } => {
                (Level::Warn, "events-lost", endpoint.to_string(), why.to_string())
            }
            Signal::Connected { endpoint } => {
                (Level::Info, "events", endpoint.to_string(), format!("listening to {endpoint}"))
            }
            Signal::Overflow { lost } => {
                self.lost += lost;
                (Level::Warn, "events-overflow", String::new(), format!("{} events were not kept", self.lost))
            }
            Signal::Event(_) => return,
        };
        let Some(untold) = self.may_tell(now, (code, about)) else { return };
        if code == "events-overflow" {
            self.lost = 0;
        }
        let more =
            if untold > 0 { format!(" ({untold} more times since the last report)") } else { String::new() };
        log::line(level, code, None, &format!("{text}{more}"));
    }

    /// How often it happened and was not told, if it is told now.
    fn may_tell(&mut self, now: Duration, kind: (&'static str, String)) -> Option<u64> {
        match self.told.get_mut(&kind) {
            Some((told, untold)) if now.saturating_sub(*told) < EVERY => {
                *untold += 1;
                None
            }
            Some((told, untold)) => {
                *told = now;
                Some(std::mem::take(untold))
            }
            None => {
                self.told.insert(kind, (now, 0));
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_line_in_ten_seconds_and_what_was_not_told_is_counted() {
        let mut hearing = EventLog::default();
        let kind = || ("events-overflow", String::new());
        let second = Duration::from_secs(1);
        assert_eq!(hearing.may_tell(second, kind()), Some(0));
        for at in 0..90 {
            assert_eq!(hearing.may_tell(second + Duration::from_millis(at * 100), kind()), None);
        }
        assert_eq!(hearing.may_tell(second * 2, ("events-lost", "n1".to_owned())), Some(0), "of each kind");
        assert_eq!(hearing.may_tell(second * 11, kind()), Some(90));
        assert_eq!(hearing.may_tell(second * 30, kind()), Some(0));
    }
}
