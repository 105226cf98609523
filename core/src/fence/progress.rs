//! What a fence's machines show, taken into its record.

use jiff::Timestamp;

use crate::fence::preconditions::GateClosed;
use crate::fence::sealing::{Sealing, SealingState};
use crate::fence::step::StepMachine as _;
use crate::fence::{Fence, FenceStage, RETRY, breaches};
use crate::model::addr::Entry;
use crate::model::barrier::PoolProof;
use crate::model::now::Now;
use crate::model::record::{FenceState, Proof};
use crate::model::span::whole_millis;
use crate::mutants::{self, Mutant};

impl Fence {
    /// Brings the record to what is known now.
    pub fn update(&mut self, now: Now, boot_id: &str, gate: GateClosed) {
        if self.release.is_some() {
            self.update_release(now);
            return;
        }
        self.begin_chase();
        let FenceStage::Fencing(fence) = &self.stage else { return };
        if let Some(failure) = fence.failure() {
            let again = self.trouble.as_ref().map_or(now.boot + RETRY, |(_, again)| *again);
            self.trouble = Some((failure.to_string(), again));
        }
        if !fence.has_looked() {
            return;
        }
        if fence.failure().is_some() {
            // Nothing can be proved now; what is known to be gone is told all the same.
            if self.record.state == FenceState::Sealed && fence.committed().is_none() {
                self.record.change(|record| {
                    record.state = FenceState::Breached;
                    breaches::note(record, fence, now.wall);
                });
                self.sealed_at = None;
                self.clear = false;
            }
            return;
        }
        // Over only now that it was looked again: what could not be proved does not open the gate meanwhile.
        self.trouble = None;
        let state = match fence.state() {
            // INV-3: a write of the gate that comes late must not open what was lifted meanwhile.
            SealingState::Sealed if self.is_lifted() && gate == GateClosed::NotYet => self.record.state,
            SealingState::Sealed => FenceState::Sealed,
            SealingState::Breached => FenceState::Breached,
            SealingState::Intended | SealingState::Committed | SealingState::Pending
                if self.resumed_unbroken(fence) =>
            {
                return;
            }
            SealingState::Intended | SealingState::Committed if self.goes_on_unbroken(fence) => {
                self.record.state
            }
            SealingState::Intended if self.record.sealed.is_some() => FenceState::Breached,
            SealingState::Committed if self.record.sealed.is_some() => FenceState::Breached,
            SealingState::Intended => FenceState::Intended,
            SealingState::Committed => FenceState::Committed,
            // Every PG has answered, and the map is being read again.
            SealingState::Pending if fence.proofs().all(PoolProof::is_complete) => return,
            SealingState::Pending => FenceState::Pending,
        };
        self.resumed &= state != FenceState::Sealed;
        if state == FenceState::Sealed {
            self.note_sealed(now, boot_id);
        } else {
            self.sealed_at = None;
            self.clear = false;
        }
        let FenceStage::Fencing(fence) = &self.stage else { return };
        self.record.change(|record| {
            if state == FenceState::Breached {
                breaches::note(record, fence, now.wall);
            }
            // An intent keeps what stood before it.
            if state != FenceState::Intended {
                record.entries = fence.entries().collect();
            }
            record.state = state;
        });
        // Once entries stand there is no way back but release, whoever sent them.
        self.began |= state != FenceState::Intended;
    }

    /// Every PG refuses it: since when, and what proved it.
    fn note_sealed(&mut self, now: Now, boot_id: &str) {
        let FenceStage::Fencing(fence) = &self.stage else { return };
        let is_new = self.sealed_at.is_none();
        self.sealed_at.get_or_insert(now.boot);
        let epoch = fence.committed().unwrap_or_default();
        let proof = |proof: &PoolProof| Proof {
            id: proof.pool.id,
            pool: proof.pool.name.clone(),
            pgs: proof.pool.pg_num,
            epoch,
        };
        // A pool that is guarded no more may have been left half way.
        let proofs: Vec<Proof> = fence.proofs().filter(|proof| proof.is_complete()).map(proof).collect();
        let covers = |proof: &Proof| (proof.id, proof.pool.clone(), proof.pgs);
        // What was proved before a restart is proved: hundreds of fences need not be recorded anew for an epoch.
        let proved_before = self.record.state == FenceState::Sealed
            && proofs.iter().map(covers).eq(self.record.proofs.iter().map(covers));
        self.record.change(|record| {
            if is_new {
                // Once sealed, only a breach begins it anew: who appears later puts off no proof of a reboot, and is not
                // proved dead by it.
                record.marks.entry(boot_id.to_owned()).or_insert(whole_millis(now.boot));
                record.sealed.get_or_insert(now.wall);
            }
            if !proved_before {
                record.proofs = proofs;
            }
            if let Some(breach) = record.breaches.last_mut().filter(|breach| breach.sealed.is_none()) {
                (breach.committed, breach.sealed) = (Some(epoch), Some(now.wall));
            }
        });
    }

    /// Somebody lifted it, and it is not reported as sealed since.
    pub fn is_lifted(&self) -> bool {
        self.record.state != FenceState::Sealed
            && self.record.breaches.last().is_some_and(|breach| breach.sealed.is_none())
    }

    /// After a restart: the entries stand as the ledger knows them, to the microsecond of their ends, so they stood all
    /// the time, and what was sealed is sealed while the proof is repeated.
    fn resumed_unbroken(&self, fence: &Sealing) -> bool {
        // A pool that nobody proved before waits for its PGs like any other.
        let covered = |proof: &PoolProof| {
            proof.is_complete() || self.record.proofs.iter().any(|before| before.id == proof.pool.id)
        };
        if mutants::is(Mutant::ResumedUnseen) && self.resumed {
            return self.record.state == FenceState::Sealed;
        }
        self.resumed
            && self.record.state == FenceState::Sealed
            && fence.entries().all(|(entry, until)| until.is_some() && self.is_as_recorded(entry, until))
            && fence.proofs().all(covered)
    }

    /// Everything that stood before stands, and what is missing is being chased: this guardian began that, or one before
    /// it.
    fn goes_on_unbroken(&self, fence: &Sealing) -> bool {
        matches!(self.record.state, FenceState::Committed | FenceState::Pending)
            && fence.entries().all(|(entry, until)| {
                self.record.entries.get(&entry) == Some(&None) || self.is_as_recorded(entry, until)
            })
    }

    fn is_as_recorded(&self, entry: Entry, until: Option<Timestamp>) -> bool {
        self.record.entries.get(&entry) == Some(&until)
    }

    fn update_release(&mut self, now: Now) {
        self.sealed_at = None;
        self.clear = false;
        match &self.stage {
            FenceStage::Fencing(_) => self.record.change(|record| record.state = FenceState::Releasing),
            FenceStage::Releasing(release) => {
                if let (Some(failure), None) = (release.failure(), &self.trouble) {
                    self.trouble = Some((failure.to_string(), now.boot + RETRY));
                }
                if release.is_done() && !self.in_flight && self.record.state != FenceState::Released {
                    self.record.change(|record| {
                        record.state = FenceState::Released;
                        record.released = Some(now.wall);
                        let fenced = record.entries.keys().filter_map(|entry| entry.client());
                        record.dead = fenced.filter(|client| !record.seen.contains(client)).collect();
                        let kept = release.kept().filter(|(entry, _)| !entry.is_host());
                        record.entries.retain(|entry, _| !entry.is_host());
                        record.entries.extend(kept);
                        record.refused_by = release.refused_by();
                    });
                }
            }
        }
    }
}
