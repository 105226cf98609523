//! What the trail says of each step: who, what and why.

use serde::{Deserialize, Serialize};

use crate::fence::{Fence, GUARDIAN};
use crate::guardian::report::{Level, Outcome, Report};
use crate::guardian::{Guardian, Lane, gate};
use crate::model::overrides::reason;
use crate::model::record::{Change, FenceRecord, FenceState};

/// What an operator does beside the guardian.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct TrailNote {
    number: u64,
    what: String,
    why: String,
    sent: bool,
    /// What it changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    changes: Vec<Change>,
}

/// What is written of a fence, and whom it is about, who asked and why, or who removed an entry.
pub(super) fn of(fence: &Fence, recorded: Option<&FenceRecord>) -> (String, String) {
    let record = fence.record();
    let hosts: Vec<String> =
        record.entries.keys().filter(|entry| entry.is_host()).map(|entry| entry.ip().to_string()).collect();
    let clients = record.entries.len() - hosts.len();
    let whom =
        record.member.as_ref().map_or_else(|| "addresses".to_owned(), |member| format!("member {member}"));
    let at = if hosts.is_empty() { String::new() } else { format!(" at {}", hosts.join(" ")) };
    let what = format!("{} {}", fence.id(), record.state);
    let whom = format!("{whom}{at}, {clients} clients");
    if let Some(release) = fence.release() {
        return (what, format!("{whom}: {}: {}", release.by, release.why));
    }
    let told = recorded.map_or(0, |recorded| recorded.removals.len());
    let state_told = recorded.map(|recorded| recorded.state);
    let breach = record.breaches.last();
    let why = match record.removals.last() {
        Some(removal) if record.removals.len() > told => removal.to_string(),
        _ if record.state == FenceState::Breached && state_told != Some(FenceState::Breached) => {
            match breach.and_then(|breach| breach.ended) {
                Some(end) => format!("an entry ended at {end} by the monitors' clock"),
                None => {
                    let gone =
                        breach.map_or_else(String::new, |breach| format!(" in osdmap epoch {}", breach.gone));
                    format!("an entry was removed{gone}; who removed it follows")
                }
            }
        }
        Some(_) | None => {
            let why = record.evidence.first().cloned().unwrap_or_default();
            // An operator's name is in it where it went over a rule.
            if record.by == GUARDIAN || why.starts_with(&record.by) {
                why
            } else {
                format!("{}: {why}", record.by)
            }
        }
    };
    (what, format!("{whom}: {why}"))
}

impl Guardian {
    pub(super) fn note_what(&mut self, number: u64, what: &str, said: Option<String>, by: &str) {
        let why = reason(said.as_deref()).unwrap_or("no reason given");
        self.log(Level::Warn, "operator", None, format!("{by}: {what} ({why})"));
        self.desk.removing = (what == gate::REMOVE).then_some(self.now.boot);
        self.note_change(number, Vec::new(), what, format!("{by}: {why}"));
    }

    /// An operator's change is to be recorded; it counts from then on.
    pub(super) fn note_change(&mut self, number: u64, changes: Vec<Change>, what: &str, why: String) {
        self.notes.push_back(TrailNote { number, what: what.to_owned(), why, sent: false, changes });
    }

    pub(super) fn note_to_record(&mut self) -> Option<(Vec<Change>, String, String)> {
        let note = self.notes.front_mut()?;
        // Who removes the gate begins when this is recorded: a write on its way would come after the removal.
        if note.what == gate::REMOVE && self.busy.contains_key(&Lane::Gate) {
            return None;
        }
        note.sent = true;
        Some((note.changes.clone(), note.what.clone(), note.why.clone()))
    }

    /// A write ended. A note that was not written is sent again.
    pub(super) fn note_recorded(&mut self, written: bool) {
        let Some(note) = self.notes.front_mut().filter(|note| note.sent) else { return };
        note.sent = false;
        if written && let Some(note) = self.notes.pop_front() {
            self.reports.push_back(Report::Answer(note.number, Outcome::Noted));
        }
    }
}
