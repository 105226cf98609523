//! Who removed an entry of a held fence, as the audit channel of the cluster log has it. It is told with the breach
//! and kept in the fence's record; that nobody is found changes nothing else.
//!
//! And when the fence was lifted, and until when (INV-3). The machine of a fence may see only some epochs: a look at the
//! storage skips others, and a guardian that takes over begins with the newest. So the epochs between the last that held
//! and the first that is known not to are read, as far back as the monitors keep them.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::fence::Fence;
use crate::guardian::context::Ctx;
use crate::guardian::io::Effect;
use crate::guardian::lanes::Lane;
use crate::guardian::report::{Level, Reports};
use crate::model::addr::Entry;
use crate::model::epoch::OsdEpoch;
use crate::model::fence_id::FenceId;
use crate::model::record::{FenceRecord, Removal};

/// A line of the log comes with one of the next proposals of the monitors, after the removal itself.
const AGAIN: Duration = Duration::from_secs(1);
/// After so long nobody will be named.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between the clocks of two monitors, or of two guardians, and the age of the osdmap that the guardian's is compared by.
const SKEW: SignedDuration = SignedDuration::from_secs(60);
/// How long after a guardian recorded a removal of its own the monitors may log it.
const LOGGED_WITHIN: SignedDuration = SignedDuration::from_secs(120);
/// So many removals are kept in a record.
pub(super) const KEPT: usize = 16;
/// How many epochs are read again at most: about as many as the monitors keep (`mon_min_osdmap_epochs`).
const BACK: u32 = 500;

/// A breach whose culprit is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct BreachSearch {
    since: Duration,
    next: Duration,
}

/// The breaches of which not everything is known.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct BreachAudit {
    searches: BTreeMap<FenceId, BreachSearch>,
    /// Fences whose last breach is to be dated by the osdmaps around it, and whether those are being read.
    #[serde(default)]
    undated: BTreeMap<FenceId, bool>,
}

impl BreachAudit {
    /// A fence was breached, and its entry was not over.
    pub(super) fn begin(&mut self, id: FenceId, now: Duration) {
        self.searches.insert(id, BreachSearch { since: now, next: now });
    }

    /// The epochs of the last breach of this fence are to be read, unless it is known to the epoch.
    pub(super) fn begin_dating(&mut self, fence: &Fence) -> bool {
        let unknown = first_undated(fence.record()).is_some();
        if unknown {
            self.undated.insert(fence.id().clone(), false);
        }
        unknown
    }

    /// The epoch after which osdmaps are to be read now.
    pub(super) fn begin_maps(&mut self, ctx: Ctx<'_>) -> OsdEpoch {
        let newest = ctx.map().map_or(OsdEpoch::default(), |map| map.epoch);
        let mut after = newest;
        for (id, asked) in &mut self.undated {
            let first = ctx.fences.get(id).and_then(|fence| first_undated(fence.record()));
            after = after.min(first.unwrap_or(newest));
            *asked = true;
        }
        after
    }

    /// Osdmaps were read: the fences whose breaches they date.
    pub(super) fn handle_maps(&mut self) -> Vec<FenceId> {
        let (asked, later): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.undated).into_iter().partition(|(_, asked)| *asked);
        self.undated = later;
        asked.into_keys().collect()
    }

    pub(super) fn next_effect(&self, ctx: Ctx<'_>) -> Option<Effect> {
        let (id, _) = self.searches.iter().find(|(_, search)| ctx.now.boot >= search.next)?;
        ctx.may_begin(&Lane::Audit).then(|| Effect::ReadAudit(id.clone()))
    }

    /// The log was read. The removals of entries of this fence that are not the guardians' own.
    pub(super) fn handle_audit(
        &mut self,
        ctx: Ctx<'_>,
        id: &FenceId,
        removals: Result<Vec<Removal>, String>,
        reports: &mut Reports,
    ) -> Vec<Removal> {
        let now = ctx.now;
        let Some(search) = self.searches.get(id).copied() else { return Vec::new() };
        // Those of guardians that led before, too: they had other addresses.
        let sent: Vec<(Entry, Timestamp)> = {
            let recorded = ctx.records.fences.values().map(|record| &record.sent);
            let held = ctx.fences.all().map(|fence| &fence.record().sent);
            recorded.chain(held).flatten().map(|(entry, at)| (*entry, *at)).collect()
        };
        let guardians = |removal: &Removal| {
            let after = |at: Timestamp| removal.at.duration_since(at);
            sent.iter().any(|(entry, at)| {
                removal.entry == Some(*entry) && (-SKEW..=LOGGED_WITHIN).contains(&after(*at))
            })
        };
        let Some(fence) = ctx.fences.get(id) else {
            self.searches.remove(id);
            return Vec::new();
        };
        let mut log = |level, text| reports.log(level, "breached-by", fence.member(), text);
        let own: Vec<String> =
            ctx.ceph.world.as_ref().iter().flat_map(|world| &world.own).map(ToString::to_string).collect();
        // The seal was recorded by a guardian's clock, the log is by the monitors'; the removal made the newest osdmap.
        let behind = ctx.map().map_or(SignedDuration::ZERO, |map| now.wall.duration_since(map.modified));
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
        if !found.is_empty() {
            self.searches.remove(id);
            found.iter().for_each(|removal| log(Level::Error, format!("{id}: {removal}")));
        } else if now.boot >= search.since + PATIENCE {
            self.searches.remove(id);
            let why = trouble.unwrap_or_else(|| {
                "the monitors' audit log names nobody; an entry also goes when its time is over".to_owned()
            });
            log(Level::Warn, format!("{id}: who removed its entry is not known: {why}"));
        } else {
            self.searches.insert(id.clone(), BreachSearch { next: now.boot + AGAIN, ..search });
        }
        found
    }
}

/// The epoch after which maps would tell more of the last breach; `None` where it is known to the epoch.
fn first_undated(record: &FenceRecord) -> Option<OsdEpoch> {
    let breach = record.breaches.last()?;
    let held = breach.held?;
    let last = breach.committed.unwrap_or(breach.gone);
    let exact = held.later(1) == breach.gone && last <= breach.gone.later(1);
    (!exact).then(|| held.earlier(1).max(last.earlier(BACK)).max(OsdEpoch(1)))
}
