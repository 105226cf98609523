//! Whether instances of the member may start elsewhere, as far as its fence is concerned (INV-2).

use crate::fence::Fence;
use crate::model::osdmap::OsdMap;
use crate::model::record::{FenceRecord, FenceState};
use crate::model::target::Coverage;
use crate::mutants::{self, Mutant};

impl Fence {
    /// Guarded pools of a map that the recorded seal does not cover: they came to be guarded since (INV-1).
    pub fn uncovered<'m>(&self, recorded: Option<&FenceRecord>, map: &'m OsdMap) -> Vec<&'m str> {
        let proofs = recorded.map_or(&[][..], |record| &record.proofs);
        let pools = self.plan.guarded.pools(map).into_iter();
        let covered = |id| proofs.iter().any(|proof| proof.id == id);
        pools.filter(|(id, _)| !covered(*id)).map(|(_, pool)| pool.name.as_str()).collect()
    }

    /// May instances of the member start elsewhere, as far as this fence is concerned? Only what the ledger backs
    /// counts (INV-8).
    pub fn opens_gate(&self, recorded: Option<&FenceRecord>, map: Option<&OsdMap>) -> bool {
        let state = self.record.state;
        let is_early = (mutants::is(Mutant::OpenAtCommit)
            && matches!(state, FenceState::Committed | FenceState::Pending))
            || (mutants::is(Mutant::OpenWhileBreached) && state == FenceState::Breached);
        if is_early && self.release.is_none() {
            return true;
        }
        let sealed = |record: &FenceRecord| record.state == FenceState::Sealed;
        let covered = self.record.coverage == Coverage::WholeHost
            || self.record.overrides.accept_incomplete
            || mutants::is(Mutant::OpenForKnownClients);
        self.release.is_none()
            && sealed(&self.record)
            && recorded.is_some_and(sealed)
            && covered
            && (self.clear || mutants::is(Mutant::OutsideIgnored))
            && self.to_chase.is_empty()
            && !self.crowd.is_open()
            && self.trouble.is_none()
            // Last: it goes through all pools.
            && map.is_some_and(|map| {
                self.uncovered(recorded, map).is_empty() || mutants::is(Mutant::NewPoolUnproved)
            })
    }
}
