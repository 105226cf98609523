//! When a fence was lifted, and until when: what the record says of it (INV-3).
//!
//! The machine of a fence may see only some epochs: a look at the storage skips others, and a guardian that takes over
//! begins with the newest. So the epochs between the last that held and the first that is known not to are read, as far
//! back as the monitors keep them.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::fence::sealing::Fence;
use crate::guardian::Guardian;
use crate::model::epoch::OsdEpoch;
use crate::model::fence_id::FenceId;
use crate::model::osdmap::OsdMap;
use crate::model::record::{BREACHES, Breach, FenceRecord};

/// How many epochs are read again at most: about as many as the monitors keep (`mon_min_osdmap_epochs`).
const BACK: u32 = 500;

impl Guardian {
    /// The epoch after which osdmaps are to be read.
    pub(super) fn read_maps_after(&mut self) -> OsdEpoch {
        let newest = self.map.as_ref().map_or(OsdEpoch::default(), |map| map.epoch);
        let mut after = newest;
        for (id, asked) in &mut self.undated {
            let first = self.cases.get(id).and_then(|case| first_undated(&case.record));
            after = after.min(first.unwrap_or(newest));
            *asked = true;
        }
        after
    }

    /// Osdmaps were read, oldest first.
    pub(super) fn date_breaches(&mut self, maps: &[Arc<OsdMap>]) {
        let (asked, later): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.undated).into_iter().partition(|(_, asked)| *asked);
        self.undated = later;
        for id in asked.keys() {
            if let Some(case) = self.cases.get_mut(id) {
                case.date_breaches(maps);
            }
        }
    }

    /// The epochs of the last breach of this fence are to be read.
    pub(super) fn undate(&mut self, id: &FenceId) {
        if self.cases.get(id).is_some_and(|case| first_undated(&case.record).is_some()) {
            self.undated.insert(id.clone(), false);
            self.schedule.maps = None;
        }
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

/// Dates breaches by maps, oldest first.
pub(super) fn date(record: &mut FenceRecord, fence: &Fence, maps: &[Arc<OsdMap>]) {
    for breach in &mut record.breaches {
        let Some(mut held) = breach.held else { continue };
        let mut before: Option<&OsdMap> = None;
        // Since when it has been held without interruption.
        let mut since: Option<OsdEpoch> = None;
        for map in maps {
            let holds = fence.holds(&map.blocklist);
            let goes_on = before.is_none_or(|before| fence.goes_on(&before.blocklist, &map.blocklist));
            since = match (holds, goes_on) {
                (false, _) => None,
                (true, false) => Some(map.epoch),
                (true, true) => since.or(Some(map.epoch)),
            };
            let between = map.epoch > held && map.epoch < breach.gone;
            if between && !(holds && goes_on) {
                breach.gone = map.epoch;
            } else if between && since.is_some_and(|since| since <= held) {
                held = map.epoch;
            }
            if breach.committed == Some(map.epoch) {
                breach.committed = since.filter(|since| *since >= breach.gone).or(breach.committed);
            }
            before = Some(map);
        }
        breach.held = Some(held);
    }
}

/// Once for each time it is lifted until it is sealed again.
pub(super) fn note(record: &mut FenceRecord, fence: &Fence, seen: Timestamp) {
    record.marks.clear();
    if record.breaches.last().is_some_and(|breach| breach.sealed.is_none()) {
        return;
    }
    let proved = record.proofs.iter().map(|proof| proof.epoch).max();
    let (held, gone) = match fence.broken() {
        Some((held, gone)) => (Some(held), gone),
        // This guardian never saw it hold: an earlier one proved it.
        None => (proved, fence.examined().unwrap_or_default()),
    };
    let ended = fence.ended(&record.entries);
    record.breaches.push(Breach { seen, held, gone, ended, committed: None, sealed: None });
    record.breaches.drain(..record.breaches.len().saturating_sub(BREACHES));
}
