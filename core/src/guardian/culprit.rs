//! Who removed an entry of a held fence, as the audit channel of the cluster log has it. It is told with the breach
//! and kept in the fence's record; that nobody is found changes nothing else.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::guardian::Guardian;
use crate::guardian::io::Effect;
use crate::guardian::pace::Lane;
use crate::guardian::report::Level;
use crate::model::addr::Entry;
use crate::model::fence_id::FenceId;
use crate::model::record::Removal;

/// A line of the log comes with one of the next proposals of the monitors, after the removal itself.
const AGAIN: Duration = Duration::from_secs(1);
/// After so long nobody will be named.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between the clocks of two monitors, or of two guardians, and the age of the osdmap that the guardian's is compared by.
const SKEW: SignedDuration = SignedDuration::from_secs(60);
/// How long after a guardian recorded a removal of its own the monitors may log it.
const LOGGED_WITHIN: SignedDuration = SignedDuration::from_secs(120);
/// So many are kept in a record.
const KEPT: usize = 16;

/// A breach whose culprit is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct BreachSearch {
    since: Duration,
    next: Duration,
}

impl Guardian {
    pub(super) fn search_culprit(&mut self, id: FenceId) {
        let now = self.now.boot;
        self.searches.insert(id, BreachSearch { since: now, next: now });
    }

    pub(super) fn read_audit(&mut self) -> Option<Effect> {
        let now = self.now.boot;
        let due = self.searches.iter().find(|(_, search)| now >= search.next);
        let id = due.map(|(id, _)| id.clone())?;
        self.take(Lane::Audit).then_some(Effect::ReadAudit(id))
    }

    pub(super) fn audited(&mut self, id: &FenceId, removals: Result<Vec<Removal>, String>) {
        let now = self.now;
        let Some(search) = self.searches.get(id).copied() else { return };
        // Those of guardians that led before, too: they had other addresses.
        let sent: Vec<(Entry, Timestamp)> = {
            let recorded = self.records.fences.values().map(|record| &record.sent);
            let held = self.fences.values().map(|fence| &fence.record().sent);
            recorded.chain(held).flatten().map(|(entry, at)| (*entry, *at)).collect()
        };
        let guardians = |removal: &Removal| {
            let after = |at: Timestamp| removal.at.duration_since(at);
            sent.iter().any(|(entry, at)| {
                removal.entry == Some(*entry) && (-SKEW..=LOGGED_WITHIN).contains(&after(*at))
            })
        };
        let Some(fence) = self.fences.get_mut(id) else {
            self.searches.remove(id);
            return;
        };
        let member = fence.member().map(str::to_owned);
        let own: Vec<String> =
            self.world.iter().flat_map(|world| &world.own).map(ToString::to_string).collect();
        // The seal was recorded by a guardian's clock, the log is by the monitors'; the removal made the newest osdmap.
        let behind =
            self.map.as_ref().map_or(SignedDuration::ZERO, |map| now.wall.duration_since(map.modified));
        let sealed = fence.record().sealed.and_then(|sealed| sealed.checked_sub(behind + SKEW).ok());
        let record = fence.record();
        let mut found: Vec<Removal> = Vec::new();
        let (removals, trouble) = match removals {
            Ok(removals) => (removals, None),
            Err(why) => (Vec::new(), Some(why)),
        };
        for removal in removals {
            let ours = own.contains(&removal.address) || guardians(&removal);
            let of_fence = record.entries.keys().any(|entry| removal.removes(*entry));
            let since = sealed.is_none_or(|sealed| removal.at >= sealed);
            if !ours && of_fence && since && !record.removals.contains(&removal) && !found.contains(&removal)
            {
                found.push(removal);
            }
        }
        fence.note_removals(&found, KEPT);
        if !found.is_empty() {
            self.searches.remove(id);
            for removal in found {
                self.log(Level::Error, "breached-by", member.clone(), format!("{id}: {removal}"));
            }
        } else if self.now.boot >= search.since + PATIENCE {
            self.searches.remove(id);
            let why = trouble.unwrap_or_else(|| {
                "the monitors' audit log names nobody; an entry also goes when its time is over".to_owned()
            });
            self.log(
                Level::Warn,
                "breached-by",
                member,
                format!("{id}: who removed its entry is not known: {why}"),
            );
        } else {
            self.searches.insert(id.clone(), BreachSearch { next: self.now.boot + AGAIN, ..search });
        }
    }
}
