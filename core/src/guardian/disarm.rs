//! An operator lets no fence begin by itself for a while, for planned work on the network.
//!
//! What is fenced is held all the same, the gate stays closed for a member that is not sealed, and an operator can fence.

use std::time::Duration;

use jiff::Timestamp;

use crate::guardian::Guardian;
use crate::guardian::report::{Alarm, Level, Outcome, Report};
use crate::model::overrides::reason;
use crate::model::record::{Change, DisarmRecord, Key, Record};
use crate::rules::refusal::Refusal;

/// Longer is no planned work.
const LONGEST: Duration = Duration::from_secs(7 * 86_400);

impl Guardian {
    /// What an operator decided, as long as it counts: it is in the ledger, and its time is not over.
    pub(super) fn disarmed(&self) -> Option<&DisarmRecord> {
        self.records.disarm.as_ref().filter(|disarm| self.now.wall < disarm.until)
    }

    pub(super) fn ask_to_disarm(&mut self, number: u64, until: Timestamp, said: Option<String>, by: String) {
        let Some(reason) = reason(said.as_deref()).map(str::to_owned) else {
            return self.refuse(number, Refusal::NoReason { flags: vec!["disarm".to_owned()] });
        };
        let since = self.now.wall;
        let lasts = Duration::try_from(until.duration_since(since)).unwrap_or_default();
        if lasts.is_zero() || lasts > LONGEST {
            let text = format!("{until} is not within the next seven days by the guardian's clock ({since})");
            return self.reports.push_back(Report::Answer(number, Outcome::Failed(text)));
        }
        let why = format!("{by}: {reason}");
        let change = Change::Put(Record::Disarm(DisarmRecord { since, until, by, reason }));
        self.note_change(number, vec![change], &format!("disarmed until {until}"), why);
    }

    pub(super) fn ask_to_arm(&mut self, number: u64, said: Option<String>, by: &str) {
        let why = reason(said.as_deref()).unwrap_or("no reason given");
        if self.records.disarm.is_none() {
            return self.reports.push_back(Report::Answer(number, Outcome::Noted));
        }
        self.note_change(number, vec![Change::Remove(Key::Disarm)], "armed", format!("{by}: {why}"));
    }

    /// Its time is over: the record goes. That it does not count any more needs no record.
    pub(super) fn disarm_ended(&mut self) -> Option<(Vec<Change>, String, String)> {
        let disarm = self.records.disarm.as_ref().filter(|_| self.disarmed().is_none())?;
        let why = format!("the time that {} disarmed it for is over ({})", disarm.by, disarm.until);
        self.log(Level::Info, "armed", None, format!("fences begin by themselves again: {why}"));
        Some((vec![Change::Remove(Key::Disarm)], "armed".to_owned(), why))
    }

    pub(super) fn disarm_alarm(&self) -> Option<Alarm> {
        let DisarmRecord { until, by, reason, .. } = self.disarmed()?;
        let text = format!("no fence begins by itself until {until}: {by} disarmed the guardians ({reason})");
        let advice = vec!["when the work is done: rbd-guardian arm".to_owned()];
        Some(Alarm { code: "disarmed", member: None, text, about: None, advice })
    }
}
