//! Who removed an entry of a held fence, as the audit channel of the cluster log has it. It is told with the breach
//! and kept in the fence's record; that nobody is found changes nothing else.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::fence::Fence;
use crate::guardian::report::{Level, Report};
use crate::model::addr::Entry;
use crate::model::ceph_snapshot::CephSnapshot;
use crate::model::fence_id::FenceId;
use crate::model::now::Now;
use crate::model::osdmap::OsdMap;
use crate::model::record::{Records, Removal};

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
struct BreachSearch {
    since: Duration,
    next: Duration,
}

/// The breaches whose culprit is looked for. It owns nothing else, and answers with what is to be logged.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct BreachAudit {
    searches: BTreeMap<FenceId, BreachSearch>,
}

/// What it may look at, and the fences whose removals it records.
pub(super) struct AuditContext<'a> {
    pub(super) now: Now,
    pub(super) records: &'a Records,
    pub(super) fences: &'a mut BTreeMap<FenceId, Fence>,
    pub(super) world: Option<&'a CephSnapshot>,
    pub(super) map: Option<&'a OsdMap>,
}

impl BreachAudit {
    /// A fence was breached, and its entry was not over.
    pub(super) fn begin(&mut self, id: FenceId, now: Duration) {
        self.searches.insert(id, BreachSearch { since: now, next: now });
    }

    /// The fence for which the log is to be read now.
    pub(super) fn due(&self, now: Duration) -> Option<&FenceId> {
        self.searches.iter().find(|(_, search)| now >= search.next).map(|(id, _)| id)
    }

    /// The log was read.
    pub(super) fn handle_audit(
        &mut self,
        ctx: AuditContext<'_>,
        id: &FenceId,
        removals: Result<Vec<Removal>, String>,
    ) -> Vec<Report> {
        let now = ctx.now;
        let Some(search) = self.searches.get(id).copied() else { return Vec::new() };
        // Those of guardians that led before, too: they had other addresses.
        let sent: Vec<(Entry, Timestamp)> = {
            let recorded = ctx.records.fences.values().map(|record| &record.sent);
            let held = ctx.fences.values().map(|fence| &fence.record().sent);
            recorded.chain(held).flatten().map(|(entry, at)| (*entry, *at)).collect()
        };
        let guardians = |removal: &Removal| {
            let after = |at: Timestamp| removal.at.duration_since(at);
            sent.iter().any(|(entry, at)| {
                removal.entry == Some(*entry) && (-SKEW..=LOGGED_WITHIN).contains(&after(*at))
            })
        };
        let Some(fence) = ctx.fences.get_mut(id) else {
            self.searches.remove(id);
            return Vec::new();
        };
        let member = fence.member().map(str::to_owned);
        let mut reports = Vec::new();
        let mut log = |level, text| {
            reports.push(Report::Log { level, code: "breached-by", member: member.clone(), text });
        };
        let own: Vec<String> =
            ctx.world.iter().flat_map(|world| &world.own).map(ToString::to_string).collect();
        // The seal was recorded by a guardian's clock, the log is by the monitors'; the removal made the newest osdmap.
        let behind = ctx.map.map_or(SignedDuration::ZERO, |map| now.wall.duration_since(map.modified));
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
            found.into_iter().for_each(|removal| log(Level::Error, format!("{id}: {removal}")));
        } else if now.boot >= search.since + PATIENCE {
            self.searches.remove(id);
            let why = trouble.unwrap_or_else(|| {
                "the monitors' audit log names nobody; an entry also goes when its time is over".to_owned()
            });
            log(Level::Warn, format!("{id}: who removed its entry is not known: {why}"));
        } else {
            self.searches.insert(id.clone(), BreachSearch { next: now.boot + AGAIN, ..search });
        }
        reports
    }
}
