//! What is told of changes: of each state of a fence, and of alarms that begin or end.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::guardian::Guardian;
use crate::guardian::report::Level;
use crate::model::fence_id::FenceId;
use crate::model::record::{Breach, FenceState};

/// Alarms whose beginning is told where it happens, with more than the alarm says.
const BEGUN: [&str; 7] =
    ["breached", "returned-stale", "refused", "not-placed", "cannot-record", "view-lost", "storage-lost"];

/// Those of them whose end has a line of its own. A moment without an answer is told by that alone.
const ENDED: [&str; 3] = ["cannot-record", "view-lost", "storage-lost"];
const MOMENT: Duration = Duration::from_secs(5);

impl Guardian {
    /// Alarms that began or ended. That some begin is told already where it comes from.
    pub(super) fn tell_alarms(&mut self) {
        let mut now = BTreeMap::new();
        for alarm in self.alarms() {
            let begun = BEGUN.contains(&alarm.code);
            let about = alarm.about.filter(|_| !begun);
            let about = about.unwrap_or_else(|| if begun { String::new() } else { alarm.text.clone() });
            let key = (alarm.code.to_owned(), alarm.member.clone(), about);
            if now.contains_key(&key) {
                continue;
            }
            let told = self.told.remove(&key);
            if told.is_none() {
                self.told_since.insert(key.clone(), self.now.boot);
            }
            if told.is_none() && !begun {
                let text = format!("{}: {}", alarm.text, alarm.advice.join("; "));
                self.log(Level::Error, alarm.code, alarm.member, text.trim_end_matches(": ").to_owned());
            }
            now.insert(key, told.unwrap_or(alarm.text));
        }
        for (key, text) in std::mem::replace(&mut self.told, now) {
            let since = self.told_since.remove(&key);
            let (code, member, _) = key;
            let lasted = since.map(|since| self.now.boot.saturating_sub(since));
            if ENDED.contains(&code.as_str()) && lasted.is_none_or(|lasted| lasted < MOMENT) {
                continue;
            }
            // One of a checkpoint of an earlier version has no beginning.
            let after = lasted.map_or_else(String::new, |lasted| format!(" after {} s", lasted.as_secs()));
            self.log(Level::Info, "alarm-over", member, format!("over{after}: {code}: {text}"));
        }
    }

    pub(super) fn states(&self) -> Vec<(FenceId, FenceState)> {
        self.fences.iter().map(|(id, fence)| (id.clone(), fence.record().state)).collect()
    }

    pub(super) fn tell_changes(&mut self, before: &[(FenceId, FenceState)]) {
        for (id, state) in before {
            let Some(fence) = self.fences.get(id) else { continue };
            let (after, member) = (fence.record().state, fence.member().map(str::to_owned));
            if after == *state {
                continue;
            }
            let level = if after == FenceState::Breached { Level::Error } else { Level::Info };
            let pending = fence.pending();
            let ended = |breach: Option<&Breach>| breach.and_then(|breach| breach.ended);
            let by_somebody = ended(fence.record().breaches.last()).is_none();
            let text = match after {
                FenceState::Breached => {
                    let breach = fence.record().breaches.last();
                    let gone = breach.map_or_else(String::new, |breach| {
                        let held = breach.held.map_or_else(String::new, |held| format!("held in {held}, "));
                        format!(" (osdmap epochs: {held}not in {})", breach.gone)
                    });
                    let how = ended(breach).map_or_else(
                        || "somebody removed an entry of it".to_owned(),
                        |end| format!("an entry of it ended at {end} by the monitors' clock"),
                    );
                    format!("{how}{gone}: writes may have been accepted; it is being re-asserted")
                }
                FenceState::Pending => format!("waiting for {} PGs: {}", pending.len(), pending.join(" ")),
                FenceState::Sealed => {
                    let over = |breach: &&Breach| breach.sealed == Some(self.now.wall);
                    let lifted =
                        fence.record().breaches.last().filter(over).map_or_else(String::new, |breach| {
                            let again = breach.committed.unwrap_or_default();
                            format!("; it was lifted from osdmap epoch {} to {again}", breach.gone)
                        });
                    format!("every PG of every guarded pool refuses it{lifted}")
                }
                FenceState::Intended
                | FenceState::Committed
                | FenceState::Releasing
                | FenceState::Released => format!("was {state}"),
            };
            self.log(level, after.word(), member, format!("{id} {after}: {text}"));
            if after == FenceState::Breached && by_somebody {
                self.breach_audit.begin(id.clone(), self.now.boot);
            }
            if matches!(after, FenceState::Breached | FenceState::Sealed) {
                self.undate(id);
            }
        }
    }
}
