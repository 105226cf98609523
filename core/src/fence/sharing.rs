//! Two fences may rest on one entry: what one of them says of itself, and what it leaves to the others (INV-3).

use std::collections::BTreeSet;

use crate::fence::step::Step;
use crate::fence::{Fence, FenceStage};
use crate::model::addr::Entry;
use crate::model::fence_id::FenceContent;

impl Fence {
    /// What it was planned as.
    pub fn target(&self) -> &FenceContent {
        &self.plan.fence
    }

    /// Entries whose removal would lift it.
    pub fn rests_on(&self) -> BTreeSet<Entry> {
        let covers = match &self.stage {
            FenceStage::Fencing(fence) => fence.standing_covers(),
            FenceStage::Releasing(_) => Vec::new(),
        };
        let recorded = self.record.entries.keys().chain(&self.plan.entries).chain(&self.to_chase);
        recorded.copied().chain(covers).collect()
    }

    /// Its own removals are being sent: the gate is closed, and nothing starts any more.
    pub fn is_releasing(&self) -> bool {
        match &self.stage {
            FenceStage::Fencing(_) => false,
            FenceStage::Releasing(_) => true,
        }
    }

    /// Could it remove an entry for good?
    pub fn may_remove(&self) -> bool {
        match &self.stage {
            FenceStage::Fencing(fence) => !fence.standing_covers().is_empty(),
            FenceStage::Releasing(_) => true,
        }
    }

    /// What other fences rest on is not removed by this one. A removal that was decided and not sent yet is dropped.
    pub fn keep(&mut self, kept: &BTreeSet<Entry>) {
        let held = self.held.as_ref().map(Step::removals).unwrap_or_default().to_vec();
        let lifts = held.iter().any(|entry| kept.contains(entry));
        match &mut self.stage {
            FenceStage::Fencing(fence) => {
                fence.keep(kept.clone());
                // One that is replaced is covered meanwhile.
                if lifts && held.iter().all(|entry| fence.is_cover(*entry)) {
                    self.held = None;
                    fence.take_back();
                }
            }
            FenceStage::Releasing(release) => {
                release.keep(kept.clone());
                if lifts && held.iter().any(|entry| entry.is_host()) {
                    self.held = None;
                    release.take_back();
                }
            }
        }
        if self.held.is_none() {
            for entry in held {
                if self.sent.remove(&entry) {
                    self.record.change(|record| record.in_doubt.remove(&entry));
                }
            }
        }
    }
}
