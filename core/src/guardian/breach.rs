//! When a fence was lifted, and until when: what the record says of it (INV-3).
//!
//! The machine of a fence may see only some epochs: a look at the storage skips others, and a guardian that takes over
//! begins with the newest. So the epochs between the last that held and the first that is known not to are read, as far
//! back as the monitors keep them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::guardian::Guardian;
use crate::model::epoch::OsdEpoch;
use crate::model::fence_id::FenceId;
use crate::model::osdmap::OsdMap;
use crate::model::record::FenceRecord;

/// How many epochs are read again at most: about as many as the monitors keep (`mon_min_osdmap_epochs`).
const BACK: u32 = 500;

impl Guardian {
    /// The epoch after which osdmaps are to be read.
    pub(super) fn read_maps_after(&mut self) -> OsdEpoch {
        let newest = self.map.as_ref().map_or(OsdEpoch::default(), |map| map.epoch);
        let mut after = newest;
        for (id, asked) in &mut self.undated {
            let first = self.fences.get(id).and_then(|fence| first_undated(fence.record()));
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
            if let Some(fence) = self.fences.get_mut(id) {
                fence.date_breaches(maps);
            }
        }
    }

    /// The epochs of the last breach of this fence are to be read.
    pub(super) fn undate(&mut self, id: &FenceId) {
        if self.fences.get(id).is_some_and(|fence| first_undated(fence.record()).is_some()) {
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
