//! What the trail says of each step: who, what and why.

use serde::{Deserialize, Serialize};

use crate::fence::{Fence, GUARDIAN};
use crate::model::record::{Change, FenceRecord, FenceState};

/// What the ledger is to hold, and what the trail says of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct DueChange {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) changes: Vec<Change>,
    pub(super) what: String,
    pub(super) why: String,
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
