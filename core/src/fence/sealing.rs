//! The fence: from a plan to a proof.
//!
//! The machine is level-triggered: each effect is derived from the last osdmap read and from what is proved,
//! never from a remembered position, so that it can begin anywhere, also on what an earlier run left. What a
//! command replied is not believed; the map is read back (INV-9).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::fence::required_entries::WantedEntries;
use crate::fence::step::{Sent, Step, StepMachine, StepOutcome};
use crate::model::addr::Entry;
use crate::model::barrier::{PoolProof, PoolToProve};
use crate::model::blocklist::Blocklist;
use crate::model::ceph_snapshot::{Daemon, DaemonKind, Role};
use crate::model::epoch::OsdEpoch;
use crate::model::osdmap::{Guarded, OsdMap, PoolId, by_number};
use crate::model::record::FenceState;
use crate::mutants::{self, Mutant};
use crate::rules::plan::Plan;

/// Where a fence stands (docs/design.md#states, as far as one command sees it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SealingState {
    /// Nothing is known to be in the blocklist.
    Intended,
    /// The entries were read back; no PG has been asked.
    Committed,
    /// The entries were read back; some PGs have not answered.
    Pending,
    /// Every PG of every guarded pool refuses the target.
    Sealed,
    /// Sealed once, then an entry vanished; being re-asserted.
    Breached,
}

impl From<SealingState> for FenceState {
    fn from(state: SealingState) -> Self {
        match state {
            SealingState::Intended => Self::Intended,
            SealingState::Committed => Self::Committed,
            SealingState::Pending => Self::Pending,
            SealingState::Sealed => Self::Sealed,
            SealingState::Breached => Self::Breached,
        }
    }
}

/// A failure that repeating does not mend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// The monitors refuse to fail a daemon over.
    #[error("could not fail over {daemon}: {status}")]
    FailOver { daemon: String, status: String },
    /// The monitors refuse to add or remove entries.
    #[error("the monitors refused to change the blocklist entry {entry}: {status}")]
    Entry { entry: Entry, status: String },
    /// A removal was not answered, so it may still arrive: the key cannot be relied on (INV-7).
    #[error("no answer to the removal of {entry}: it may still take effect, so that entry is not relied on")]
    InDoubt { entry: Entry },
    /// No key may cover a short entry while it is replaced: another client would be hit, or each is short itself.
    #[error(
        "{entry} ends too soon and cannot be replaced: no whole-host entry may cover it meanwhile (another client or daemon on its address would be hit, or every such entry ends too soon itself)"
    )]
    Uncovered { entry: Entry },
    /// The last guarded pool was deleted.
    #[error("no pool is left that could hold images: there is nothing to prove")]
    NoPools,
    /// A pool can only be proved on its cache tier.
    #[error("pool '{pool}' was overlaid by a cache tier meanwhile: its PGs cannot be proved")]
    CacheTier { pool: String },
    /// The dump of the osdmap does not tell how many PGs a pool has.
    #[error(
        "pool '{pool}' is not understood in the osdmap ({why}), so its PGs cannot be proved: report it with the Ceph release in use"
    )]
    PoolUnclear {
        pool: String,
        /// What is not.
        why: String,
    },
}

/// One fence on its way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sealing {
    plan: Plan,
    wanted: WantedEntries,
    to_fail_over: Vec<Daemon>,
    daemons_settled: bool,
    /// The last map, until something was sent that may have changed it. Whoever writes a fence down writes its maps apart
    /// ([`Sealing::maps`]).
    #[serde(skip)]
    map: Option<Arc<OsdMap>>,
    /// The last map that was read, for comparison.
    #[serde(skip)]
    seen: Option<Arc<OsdMap>>,
    /// The epoch in which all targets were first read back as held without interruption since.
    committed: Option<OsdEpoch>,
    /// The commit that the last barrier was asked for.
    asked: Option<OsdEpoch>,
    /// The last epoch of the last commit, and the first one after it that does not go on with it.
    broken: Option<(OsdEpoch, OsdEpoch)>,
    #[serde(deserialize_with = "by_number")]
    proofs: BTreeMap<PoolId, PoolProof>,
    /// The map was read again after the last PG answered, and shows the same pools and entries.
    verified: bool,
    was_sealed: bool,
    deleted_pools: Vec<String>,
    refused: BTreeMap<Entry, String>,
    failure: Option<Failure>,
    outstanding: bool,
}

impl Sealing {
    /// Begins what the plan says.
    pub fn new(plan: Plan) -> Self {
        Self {
            wanted: WantedEntries::new(plan.entries.clone(), plan.coverable.clone(), plan.required_until),
            to_fail_over: plan.fail_over.clone(),
            daemons_settled: plan.fail_over.is_empty(),
            plan,
            map: None,
            seen: None,
            committed: None,
            asked: None,
            broken: None,
            proofs: BTreeMap::new(),
            verified: false,
            was_sealed: false,
            deleted_pools: Vec::new(),
            refused: BTreeMap::new(),
            failure: None,
            outstanding: false,
        }
    }

    fn decide(&mut self) -> Option<Step> {
        if let Some(daemon) = self.to_fail_over.pop() {
            return Some(Step::FailOver(daemon));
        }
        if !self.daemons_settled {
            return Some(Step::ReadDaemons);
        }
        let Some(map) = &self.map else {
            return Some(Step::ReadMap);
        };
        let add = self.wanted.to_add(map);
        if !add.is_empty() {
            return Some(self.changing(Step::Add(add)));
        }
        if let Some(entry) = self.wanted.uncovered(map) {
            self.failure = Some(Failure::Uncovered { entry });
            return None;
        }
        let Some(epoch) = self.committed else { return Some(Step::ReadMap) };
        let pools = self.unproved(map);
        if !pools.is_empty() {
            self.asked = self.committed;
            let epoch = match () {
                () if mutants::is(Mutant::EarlierEpochAsked) => epoch.earlier(1),
                () if mutants::is(Mutant::NewestEpochAsked) => map.epoch,
                () => epoch,
            };
            return Some(Step::Barrier { pools, epoch });
        }
        if !self.verified {
            return Some(Step::ReadMap);
        }
        let mut remove = self.wanted.to_replace(map);
        if remove.is_empty() {
            remove = self.wanted.to_drop(map);
        }
        (!remove.is_empty()).then(|| self.changing(Step::Remove(remove)))
    }

    fn reassert(&mut self) -> Option<Step> {
        let Some(map) = &self.map else {
            return self.committed.map_or(Some(Step::ReadMap), |_| None);
        };
        let add = self.wanted.to_add(map);
        (!add.is_empty()).then(|| self.changing(Step::Add(add)))
    }

    fn changing(&mut self, step: Step) -> Step {
        self.map = None;
        step
    }

    fn unproved(&self, map: &OsdMap) -> Vec<PoolToProve> {
        let mut unproved = Vec::new();
        for (id, pool) in self.plan.guarded.pools(map) {
            let as_many =
                |proof: &&PoolProof| proof.pool.pg_num == pool.pg_num || mutants::is(Mutant::SplitPoolProved);
            let proof = self.proofs.get(&id).filter(as_many);
            if !proof.is_some_and(PoolProof::is_complete) {
                unproved.push(PoolToProve::new(id, pool));
            }
        }
        unproved
    }

    /// These pools are guarded from now on: those that are new are to be proved.
    pub fn guard(&mut self, guarded: Guarded) {
        self.plan.guarded = guarded;
        self.verified &= self.seen.as_ref().is_some_and(|map| self.unproved(map).is_empty());
    }

    /// An entry that ends before this is short.
    pub fn require_until(&mut self, until: Timestamp) {
        (self.plan.required_until, self.wanted.required_until) = (until, until);
    }

    /// Where it keeps maps.
    pub fn maps(&mut self) -> [&mut Option<Arc<OsdMap>>; 2] {
        [&mut self.map, &mut self.seen]
    }

    fn handle_failed_over(&mut self, daemon: &Daemon, sent: Sent) {
        match sent {
            // Whether it happened is read from the daemons, in both cases.
            Sent::Acknowledged | Sent::Unknown => {}
            Sent::Refused(status) => {
                self.failure = Some(Failure::FailOver { daemon: daemon.to_string(), status });
            }
        }
    }

    /// The daemons as they are now: settled when every kind that was moved is active elsewhere.
    fn handle_daemons(&mut self, daemons: &[Daemon]) {
        let hosts = self.plan.hosts();
        let active =
            |kind: DaemonKind| daemons.iter().filter(move |d| d.kind == kind && d.role == Role::Active);
        let on_target = |daemon: &Daemon| daemon.ips.is_empty() || daemon.is_at(&hosts);
        let moved =
            |kind: DaemonKind, before: usize| active(kind).count() >= before && !active(kind).any(on_target);
        self.daemons_settled = self.plan.active_before.iter().all(|(kind, before)| moved(*kind, *before));
        let planned = |kind: DaemonKind| self.plan.fail_over.iter().any(|daemon| daemon.kind == kind);
        let back = |d: &&Daemon| d.role == Role::Active && d.is_at(&hosts);
        self.to_fail_over = daemons.iter().filter(|d| planned(d.kind)).filter(back).cloned().collect();
    }

    /// The last step was not performed: what is to be done is decided anew.
    pub fn take_back(&mut self) {
        self.outstanding = false;
    }

    /// Entries were sent; the map will tell what came of it.
    fn handle_added(&mut self, sent: Vec<(Entry, Sent)>) {
        self.refused = sent.into_iter().filter_map(|(entry, sent)| Some((entry, sent.refused()?))).collect();
    }

    /// Removals were sent.
    fn handle_removed(&mut self, sent: Vec<(Entry, Sent)>) {
        for (entry, sent) in sent {
            match sent {
                Sent::Acknowledged => {}
                Sent::Refused(status) => self.failure = Some(Failure::Entry { entry, status }),
                Sent::Unknown => self.failure = Some(Failure::InDoubt { entry }),
            }
        }
    }

    fn handle_map(&mut self, map: Arc<OsdMap>) {
        if self.note(&map) {
            self.verified =
                self.committed.is_some() && !self.proofs.is_empty() && self.unproved(&map).is_empty();
            self.was_sealed |= self.verified;
            self.map = Some(map);
        }
    }

    /// A map that was read for another reason, perhaps before the last effect was answered: it can show that the fence
    /// does not stand, never that it does.
    pub fn observe(&mut self, map: &Arc<OsdMap>) {
        if self.note(map) {
            self.verified &= self.committed.is_some() && self.unproved(map).is_empty();
            if self.map.is_some() && !self.outstanding {
                self.map = Some(map.clone());
            }
        }
    }

    /// `false` for a map older than one that was seen.
    fn note(&mut self, map: &Arc<OsdMap>) -> bool {
        if self.seen.as_ref().is_some_and(|seen| map.epoch < seen.epoch) {
            return false;
        }
        self.note_refused_entries(map);
        self.note_commit(map);
        self.note_pools(map);
        self.seen = Some(map.clone());
        true
    }

    fn note_refused_entries(&mut self, map: &OsdMap) {
        let missing = std::mem::take(&mut self.refused).into_iter();
        let mut missing = missing.filter(|(entry, _)| map.blocklist.until(*entry).is_none());
        self.failure = self.failure.take().or_else(|| {
            let (entry, status) = missing.next()?;
            Some(Failure::Entry { entry, status })
        });
    }

    fn note_commit(&mut self, map: &OsdMap) {
        let before = self.seen.as_ref().map(|seen| &seen.blocklist);
        let unbroken = before.is_some_and(|before| self.wanted.continuous(before, &map.blocklist));
        if self.committed.is_some() && !unbroken && !mutants::is(Mutant::BreachNotSeen) {
            self.broken = self.seen.as_ref().map(|seen| (seen.epoch, map.epoch));
            self.committed = None;
            self.proofs.clear();
        }
        let is_believed = mutants::is(Mutant::ReplyBelieved) && self.seen.is_some();
        if self.committed.is_none() && (self.wanted.held(&map.blocklist) || is_believed) {
            self.committed = Some(map.epoch);
        }
    }

    fn note_pools(&mut self, map: &OsdMap) {
        let guarded = self.plan.guarded.pools(map);
        let gone = self.proofs.iter().filter(|(id, _)| !map.pools.contains_key(id));
        self.deleted_pools.extend(gone.map(|(_, proof)| proof.pool.name.clone()));
        // Of a pool that is guarded no more nobody waits for the rest: should it be guarded again, it is asked anew.
        self.proofs.retain(|id, _| guarded.contains_key(id));
        if guarded.is_empty() {
            self.failure = Some(Failure::NoPools);
        }
        let tiered = guarded.values().find(|pool| pool.overlay.is_some());
        if let Some(pool) = tiered {
            self.failure = Some(Failure::CacheTier { pool: pool.name.clone() });
        }
        let unclear = guarded.values().find_map(|pool| Some((pool.name.clone(), pool.unclear.clone()?)));
        if let Some((pool, why)) = unclear {
            self.failure = Some(Failure::PoolUnclear { pool, why });
        }
    }

    /// What the barrier found. Pools left pending are asked for again.
    fn handle_barrier(&mut self, proofs: Vec<PoolProof>) {
        self.verified = false;
        // Proved is only what the map, read again, still shows with as many PGs.
        self.map = None;
        // The entries went meanwhile, and stand anew at best: of those the PGs were not asked (INV-1).
        if self.committed != self.asked && !mutants::is(Mutant::AnswersOfBefore) {
            return;
        }
        for mut proof in proofs {
            if mutants::is(Mutant::OnePgProvesPool) && proof.pending.len() < proof.pool.pg_num as usize {
                proof.pending.clear();
            }
            // A PG that answered once stays proved: its map only moves forward.
            if let Some(before) = self.proofs.get(&proof.pool.id)
                && before.pool.pg_num == proof.pool.pg_num
            {
                proof.pending.retain(|pg| before.pending.contains(pg));
            }
            self.proofs.insert(proof.pool.id, proof);
        }
        if mutants::is(Mutant::MapNotReadAgain) {
            self.map.clone_from(&self.seen);
            self.verified = self.map.as_deref().is_some_and(|map| self.unproved(map).is_empty());
            self.was_sealed |= self.verified;
        }
    }

    /// Where it stands.
    pub fn state(&self) -> SealingState {
        match self.committed {
            None if self.was_sealed => SealingState::Breached,
            None => SealingState::Intended,
            Some(_) if self.verified => SealingState::Sealed,
            Some(_) if self.proofs.is_empty() => SealingState::Committed,
            Some(_) => SealingState::Pending,
        }
    }

    /// Does this blocklist hold every target for long enough?
    pub fn holds(&self, blocklist: &Blocklist) -> bool {
        self.wanted.held(blocklist)
    }

    /// Is every target held by one and the same entry in both?
    pub fn goes_on(&self, before: &Blocklist, after: &Blocklist) -> bool {
        self.wanted.continuous(before, after)
    }

    /// What another fence rests on: a cover of this one that is of that kind stays.
    pub fn keep(&mut self, kept: BTreeSet<Entry>) {
        self.wanted.kept = kept;
    }

    /// Was a map read since it began?
    pub fn has_looked(&self) -> bool {
        self.seen.is_some()
    }

    /// What it was begun with.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What went wrong for good.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// The epoch in which the entries were read back.
    pub fn committed(&self) -> Option<OsdEpoch> {
        self.committed
    }

    /// The last epoch that held the entries before they were found gone, or to have been, and the epoch that showed it.
    pub fn broken(&self) -> Option<(OsdEpoch, OsdEpoch)> {
        self.broken
    }

    /// The newest epoch that was examined.
    pub fn examined(&self) -> Option<OsdEpoch> {
        self.seen.as_ref().map(|map| map.epoch)
    }

    /// Of entries that ended so when they stood, the end of one that is gone because the monitors' clock has passed it.
    pub fn ended(&self, stood: &BTreeMap<Entry, Option<Timestamp>>) -> Option<Timestamp> {
        let clock = self.seen.as_ref()?.modified;
        let gone = self.entries().filter(|(_, until)| until.is_none());
        let mut ends = gone.filter_map(|(entry, _)| stood.get(&entry).copied().flatten());
        ends.find(|end| *end <= clock)
    }

    /// What is proved, and what is not, pool by pool.
    pub fn proofs(&self) -> impl Iterator<Item = &PoolProof> {
        self.proofs.values()
    }

    /// Pools that were deleted under the barrier: nothing is proved about them.
    pub fn deleted_pools(&self) -> &[String] {
        &self.deleted_pools
    }

    /// Until when each entry stands, as last read back; `None` for one that was not seen.
    pub fn entries(&self) -> impl Iterator<Item = (Entry, Option<Timestamp>)> {
        let until = |entry: Entry| self.seen.as_ref().and_then(|map| map.blocklist.until(entry));
        self.plan.entries.iter().map(move |entry| (*entry, until(*entry)))
    }

    /// Did this run put it up as a cover?
    pub fn is_cover(&self, entry: Entry) -> bool {
        self.wanted.is_cover(entry)
    }

    /// Whole-host entries this run put up as covers and that stand still: every client of their IP is refused.
    pub fn standing_covers(&self) -> Vec<Entry> {
        self.seen.as_ref().map_or_else(Vec::new, |map| self.wanted.standing_covers(&map.blocklist).collect())
    }

    /// Is reading paused for the whole cluster (`pauserd`), so that no PG can answer?
    pub fn reads_paused(&self) -> bool {
        self.seen.as_ref().is_some_and(|map| map.reads_paused)
    }
}

impl StepMachine for Sealing {
    fn next_step(&mut self) -> Option<Step> {
        if self.outstanding {
            return None;
        }
        let step = match &self.failure {
            None => self.decide(),
            // Nothing can be proved, but what was removed is still put back.
            Some(Failure::NoPools | Failure::CacheTier { .. } | Failure::PoolUnclear { .. }) => {
                self.reassert()
            }
            Some(
                Failure::FailOver { .. }
                | Failure::Entry { .. }
                | Failure::InDoubt { .. }
                | Failure::Uncovered { .. },
            ) => None,
        };
        self.outstanding = step.is_some();
        step
    }

    fn handle(&mut self, outcome: StepOutcome) {
        self.outstanding = false;
        match outcome {
            StepOutcome::FailedOver(daemon, sent) => self.handle_failed_over(&daemon, sent),
            StepOutcome::Daemons(Some(daemons)) => self.handle_daemons(&daemons),
            StepOutcome::Added(sent) => self.handle_added(sent),
            StepOutcome::Removed(sent) => self.handle_removed(sent),
            StepOutcome::Map(Some(map)) => self.handle_map(map),
            StepOutcome::Proved(proofs) => self.handle_barrier(proofs),
            // What could not be read is asked for again; for clients asks the release alone.
            StepOutcome::Daemons(None)
            | StepOutcome::Map(None)
            | StepOutcome::Clients(_)
            | StepOutcome::Unread(_) => {}
        }
    }

    /// Sealed, and every entry stands by itself for long enough.
    fn is_done(&self) -> bool {
        let settled = |map: &OsdMap| {
            self.wanted.clone().to_add(map).is_empty()
                && self.wanted.to_replace(map).is_empty()
                && self.wanted.to_drop(map).is_empty()
        };
        self.failure.is_none() && self.verified && self.map.as_deref().is_some_and(settled)
    }
}
