//! What is told of changes: of each state of a fence, and of alarms that begin or end.

use std::collections::BTreeMap;

use crate::guardian::Guardian;
use crate::guardian::report::Level;
use crate::model::fence_id::FenceId;
use crate::model::record::{Breach, FenceState};

impl Guardian {
    /// Alarms that began or ended. Of some it is told already what they come from.
    pub(super) fn tell_alarms(&mut self) {
        let told = [
            "breached",
            "returned-stale",
            "refused",
            "not-placed",
            "cannot-record",
            "view-lost",
            "storage-lost",
        ];
        let mut now = BTreeMap::new();
        for alarm in self.alarms().into_iter().filter(|alarm| !told.contains(&alarm.code)) {
            let about = alarm.about.unwrap_or_else(|| alarm.text.clone());
            let key = (alarm.code.to_owned(), alarm.member.clone(), about);
            if now.contains_key(&key) {
                continue;
            }
            let told = self.told.remove(&key);
            if told.is_none() {
                let text = format!("{}: {}", alarm.text, alarm.advice.join("; "));
                self.log(Level::Error, alarm.code, alarm.member, text.trim_end_matches(": ").to_owned());
            }
            now.insert(key, told.unwrap_or(alarm.text));
        }
        for ((code, member, _), text) in std::mem::replace(&mut self.told, now) {
            self.log(Level::Info, "alarm-over", member, format!("{code}: {text}"));
        }
    }

    pub(super) fn states(&self) -> Vec<(FenceId, FenceState)> {
        self.cases.iter().map(|(id, case)| (id.clone(), case.record.state)).collect()
    }

    pub(super) fn tell_changes(&mut self, before: &[(FenceId, FenceState)]) {
        for (id, state) in before {
            let Some(case) = self.cases.get(id) else { continue };
            let (after, member) = (case.record.state, case.member().map(str::to_owned));
            if after == *state {
                continue;
            }
            let level = if after == FenceState::Breached { Level::Error } else { Level::Info };
            let pending = case.pending();
            let ended = |breach: Option<&Breach>| breach.and_then(|breach| breach.ended);
            let by_somebody = ended(case.record.breaches.last()).is_none();
            let text = match after {
                FenceState::Breached => {
                    let breach = case.record.breaches.last();
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
                        case.record.breaches.last().filter(over).map_or_else(String::new, |breach| {
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
            self.log(level, code(after), member, format!("{id} {after}: {text}"));
            if after == FenceState::Breached && by_somebody {
                self.search_culprit(id.clone());
            }
            if matches!(after, FenceState::Breached | FenceState::Sealed) {
                self.undate(id);
            }
        }
    }
}

/// A stable word for a state.
pub(super) fn code(state: FenceState) -> &'static str {
    match state {
        FenceState::Intended => "intended",
        FenceState::Committed => "committed",
        FenceState::Pending => "pending",
        FenceState::Sealed => "sealed",
        FenceState::Breached => "breached",
        FenceState::Releasing => "releasing",
        FenceState::Released => "released",
    }
}
