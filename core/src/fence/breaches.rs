//! When a fence was lifted, and until when: what its record says of it (INV-3).

use std::sync::Arc;

use jiff::Timestamp;

use crate::fence::sealing::Sealing;
use crate::model::epoch::OsdEpoch;
use crate::model::osdmap::OsdMap;
use crate::model::record::{BREACHES, Breach, FenceRecord};

/// Dates breaches by maps, oldest first.
pub(super) fn date(record: &mut FenceRecord, fence: &Sealing, maps: &[Arc<OsdMap>]) {
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
pub(super) fn note(record: &mut FenceRecord, fence: &Sealing, seen: Timestamp) {
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
