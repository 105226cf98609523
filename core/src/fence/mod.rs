//! One fence, from the intent to the release.
//!
//! What is to happen is derived each time from three things: what the ledger holds, what the machine of the fence or
//! release last read, and what the platform last showed. The ledger goes first (INV-8): a step that it does not back
//! yet is held back, and the record that is missing is what [`Fence::record`] differs in.

mod breaches;
pub mod chasing;
mod confirmation;
mod crowd;
mod due_record;
mod opening;
pub mod preconditions;
mod progress;
pub mod releasing;
pub mod required_entries;
pub mod sealing;
mod sharing;
pub mod step;
pub mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::fence::confirmation::Confirmation;
use crate::fence::crowd::ClientFlood;
use crate::fence::due_record::DueRecord;
use crate::fence::preconditions::{GateClosed, Preconditions};
use crate::fence::releasing::Release;
use crate::fence::sealing::{Sealing, SealingState};
use crate::fence::step::{Sent, Step, StepMachine, StepOutcome};
use crate::model::addr::{ClientAddr, Entry};
use crate::model::barrier::PoolProof;
use crate::model::blocklist::Blocklist;
use crate::model::ceph_snapshot::DaemonKind;
use crate::model::fence_id::FenceId;
use crate::model::now::Now;
use crate::model::osdmap::{Guarded, OsdMap};
use crate::model::overrides::Overrides;
use crate::model::policy::Policy;
use crate::model::record::{FenceRecord, FenceState, Removal};
use crate::model::span::whole_millis;
use crate::mutants::{self, Mutant};
use crate::rules::plan::Plan;

/// How a record is signed when nobody asked.
pub const GUARDIAN: &str = "the guardian";

/// Why and by whom a member is let back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Releasing {
    /// `the guardian`, or the operator.
    pub by: String,
    /// The proof, or what the operator asserts.
    pub why: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fence {
    id: FenceId,
    /// What the ledger should hold.
    record: DueRecord,
    /// Requests to be answered when it is sealed or released.
    requests: BTreeSet<u64>,
    /// When the machine saw it sealed last, without interruption since.
    sealed_at: Option<Duration>,
    /// Nobody outside the fence uses the member's images, in a sweep since it was sealed.
    clear: bool,
    /// What stands against that, by the last sweep: images that could not be read, users that the fence does not cover.
    #[serde(default)]
    unclear: Vec<String>,
    /// Images of the member that no look since the seal has found, in words.
    #[serde(default)]
    unfound: Vec<String>,
    #[serde(default)]
    outside: BTreeSet<ClientAddr>,
    /// Why and by whom the fence is to be released; `None` while it is held.
    release: Option<Releasing>,
    /// Clients that appeared since, to be fenced as well as soon as nothing is on its way.
    to_chase: BTreeSet<Entry>,
    /// What the last look showed of such clients.
    crowd: ClientFlood,
    /// The last failure, in words, and when to try again.
    trouble: Option<(String, Duration)>,
    /// Begun after a restart from what the ledger holds, and not proved again yet.
    resumed: bool,
    /// Removals that this guardian put in doubt itself, and that were not answered yet.
    sent: BTreeSet<Entry>,
    /// What could not be read when clients were asked for last, for the release.
    #[serde(default)]
    unread: Vec<String>,
    /// Operations that could start an instance when the gate was first seen closed for the release.
    #[serde(alias = "waits_for")]
    began_before: Option<BTreeSet<String>>,
    /// When this guardian planned it (boot clock), or first wrote it where the ledger held it already: what is read since tells
    /// whether it is still wanted.
    #[serde(default, alias = "planned_at")]
    decided_at: Option<Duration>,
    /// Has this guardian written it to the ledger?
    #[serde(default)]
    is_recorded: bool,
    #[serde(flatten)]
    confirmation: Confirmation,
    /// Something was sent that may have changed the blocklist.
    began: bool,
    plan: Plan,
    stage: FenceStage,
    #[serde(deserialize_with = "step::earlier")]
    held: Option<Step>,
    in_flight: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum FenceStage {
    Fencing(Box<Sealing>),
    Releasing(Box<Release>),
}

/// After a failure that repeating does not mend, the world may have changed.
const RETRY: Duration = Duration::from_secs(5);

impl Fence {
    /// A fence that was just planned.
    pub fn new(plan: Plan, why: String, by: String, reason: Option<String>, now: Now) -> Self {
        let id = FenceId::from(&plan.fence);
        let record = FenceRecord {
            id: id.clone(),
            member: plan.member.clone(),
            state: FenceState::Intended,
            entries: plan.entries.iter().map(|entry| (*entry, None)).collect(),
            coverage: plan.coverage,
            overrides: plan.overrides,
            in_doubt: BTreeSet::new(),
            evidence: std::iter::once(why).chain(plan.notes.clone()).collect(),
            reason,
            proofs: Vec::new(),
            by,
            since: now.wall,
            sealed: None,
            breaches: Vec::new(),
            marks: BTreeMap::new(),
            seen: BTreeSet::new(),
            released: None,
            dead: BTreeSet::new(),
            removals: Vec::new(),
            sent: BTreeMap::new(),
            refused_by: BTreeSet::new(),
        };
        Self { decided_at: Some(now.boot), ..Self::of(id, record, plan, false) }
    }

    /// What of its entries stands before anything is sent.
    pub fn note_standing(&mut self, blocklist: &Blocklist) {
        self.record.change(|record| {
            for (entry, until) in &mut record.entries {
                *until = blocklist.until(*entry);
            }
        });
    }

    /// An intent of a guardian that died, planned anew: what it sent may stand, or arrive yet.
    pub fn take_over(&mut self, before: &FenceRecord) {
        // What the operator's word ends: doubt about what the fence rests on.
        let ended = if self.plan.overrides.doubt { self.plan.entries.clone() } else { BTreeSet::new() };
        self.record.change(|record| {
            // As it was before *that* one sent anything.
            for (entry, until) in &mut record.entries {
                *until = before.entries.get(entry).copied().flatten();
            }
            record.in_doubt = before.in_doubt.difference(&ended).copied().collect();
            (record.since, record.released) = (before.since, before.released);
            record.dead.clone_from(&before.dead);
        });
        self.resumed = true;
    }

    /// A fence that the ledger holds: it goes on from there, and is proved again.
    pub fn resume(record: FenceRecord, policy: &Policy) -> Option<Self> {
        let fence = record.id.read().ok()?;
        let entries: BTreeSet<Entry> = record.entries.keys().copied().collect();
        let hosts = entries.iter().filter(|entry| entry.is_host()).map(|entry| entry.ip()).collect();
        let plan = Plan {
            fence,
            member: record.member.clone(),
            known_clients: entries.iter().filter(|entry| !entry.is_host()).count(),
            entries,
            fail_over: Vec::new(),
            active_before: BTreeMap::new(),
            coverable: hosts,
            coverage: record.coverage,
            overrides: record.overrides,
            notes: Vec::new(),
            guarded: policy.guarded.clone(),
            // By the monitors' clock, with the first map that it sees.
            required_until: Timestamp::MIN,
        };
        let mut fence = Self::of(record.id.clone(), record, plan, true);
        if fence.record.state == FenceState::Releasing {
            fence.release = Some(Releasing { by: fence.record.by.clone(), why: "begun before".to_owned() });
        }
        Some(fence)
    }

    fn of(id: FenceId, record: FenceRecord, plan: Plan, resumed: bool) -> Self {
        Self {
            id,
            requests: BTreeSet::new(),
            sealed_at: None,
            clear: false,
            unclear: Vec::new(),
            unfound: Vec::new(),
            outside: BTreeSet::new(),
            release: None,
            to_chase: BTreeSet::new(),
            crowd: ClientFlood::default(),
            trouble: None,
            sent: BTreeSet::new(),
            unread: Vec::new(),
            began_before: None,
            decided_at: None,
            is_recorded: false,
            confirmation: Confirmation::default(),
            resumed,
            began: resumed && record.state != FenceState::Intended,
            record: DueRecord::new(record),
            stage: FenceStage::Fencing(Box::new(Sealing::new(plan.clone()))),
            plan,
            held: None,
            in_flight: false,
        }
    }

    pub fn id(&self) -> &FenceId {
        &self.id
    }

    /// What the ledger should hold.
    pub fn record(&self) -> &FenceRecord {
        &self.record
    }

    /// When every PG was seen to refuse it last, without interruption since.
    pub fn sealed_at(&self) -> Option<Duration> {
        self.sealed_at
    }

    /// Does nobody outside of it use the member's images, by a sweep since it was sealed?
    pub fn is_clear(&self) -> bool {
        self.clear
    }

    /// What stands against that, by the last sweep.
    pub fn unclear(&self) -> &[String] {
        &self.unclear
    }

    /// Images of the member that no look since the seal has found, in words.
    pub fn unfound(&self) -> &[String] {
        &self.unfound
    }

    /// Users of the member's images that it does not cover.
    pub fn outside(&self) -> &BTreeSet<ClientAddr> {
        &self.outside
    }

    /// Why and by whom the fence is to be released; `None` while it is held.
    pub fn release(&self) -> Option<&Releasing> {
        self.release.as_ref()
    }

    /// The last failure, in words.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_ref().map(|(why, _)| why.as_str())
    }

    pub fn decided_at(&self) -> Option<Duration> {
        self.decided_at
    }

    /// Since when live members are asked whether one of its addresses is theirs by now, which no entry may be sent before
    /// (INV-6); `None` where there is nothing to ask, or it was asked.
    pub fn confirms_since(&self) -> Option<Duration> {
        let asks = self.is_unsent() && self.confirmation.holds().is_none() && !self.plan.hosts().is_empty();
        self.confirmation.looks_since().or(self.decided_at).filter(|_| asks)
    }

    /// Since when a new look at the storage is needed as well, for the same reason.
    pub fn looks_since(&self) -> Option<Duration> {
        self.confirms_since().and(self.confirmation.looks_since())
    }

    /// A judgement that is too old for a first entry counts no longer.
    pub fn expire(&mut self, now: Duration) {
        if self.is_unsent() {
            self.confirmation.expire(now);
        }
    }

    fn is_unsent(&self) -> bool {
        self.record.state == FenceState::Intended && !self.began
    }

    /// Would it be planned so again, by what live members told? What is on its way already is not asked for.
    pub fn is_confirmed(&self) -> Option<bool> {
        if self.confirms_since().is_some() { None } else { Some(self.confirmation.holds() != Some(false)) }
    }

    pub fn confirm(&mut self, holds: bool, now: Duration) {
        self.confirmation.judge(holds, now);
    }

    /// Does it begin with moving active daemons of all these kinds elsewhere?
    pub fn moves(&self, mut kinds: impl Iterator<Item = DaemonKind>) -> bool {
        kinds.all(|kind| self.plan.fail_over.iter().any(|daemon| daemon.kind == kind))
    }

    /// Clients that appeared since, as the last look showed them.
    pub fn crowd(&self) -> ClientFlood {
        self.crowd
    }

    /// These requests are to be answered when it is sealed or released.
    pub fn await_answer(&mut self, requests: impl IntoIterator<Item = u64>) {
        self.requests.extend(requests);
    }

    /// The requests that wait: they are answered now.
    pub fn take_requests(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.requests)
    }

    /// This guardian wrote its record to the ledger. Was that the first time?
    pub fn note_recorded(&mut self, now: Duration) -> bool {
        self.decided_at.get_or_insert(now);
        !std::mem::replace(&mut self.is_recorded, true)
    }

    /// It was sealed by a guardian before this one. Time since the seal is counted by this host from now on, where it was
    /// not before; `open`: the gate names the member.
    pub fn take_over_seal(&mut self, boot_id: &str, now: Duration, open: bool) {
        self.clear = open;
        self.record.change(|record| {
            record.marks.entry(boot_id.to_owned()).or_insert(whole_millis(now));
        });
    }

    /// It is to be released.
    pub fn let_go(&mut self, by: String, why: String) {
        self.release = Some(Releasing { by, why });
    }

    /// An operator goes on with what it covers.
    pub fn accept(&mut self, overrides: Overrides) {
        if overrides.accept_incomplete {
            self.record.change(|record| record.overrides.accept_incomplete = true);
        }
    }

    /// It is an operator's now: no evidence withdraws it. Who went over a rule for it stays on record.
    pub fn take_on(&mut self, by: String, reason: Option<String>) {
        if !self.record.overrides.any_rule() {
            self.record.change(|record| {
                record.by = by;
                record.reason = reason.or_else(|| record.reason.take());
            });
        }
    }

    /// Somebody removed entries of it. The last `kept` are kept.
    pub fn note_removals(&mut self, removals: &[Removal], kept: usize) {
        self.record.change(|record| {
            record.removals.extend_from_slice(removals);
            record.removals.drain(..record.removals.len().saturating_sub(kept));
        });
    }

    /// A sweep since the seal was judged: what speaks against that nobody outside of it uses the member's images. Once
    /// nothing does the gate opens, and then the new owners are there.
    pub fn note_sweep(
        &mut self,
        unclear: Vec<String>,
        outside: BTreeSet<ClientAddr>,
        unfound: Option<Vec<String>>,
    ) {
        (self.unclear, self.outside) = (unclear, outside);
        if let Some(unfound) = unfound {
            self.unfound = unfound;
        }
        self.clear |= self.unclear.is_empty() && self.unfound.is_empty();
    }

    pub fn member(&self) -> Option<&str> {
        self.record.member.as_deref()
    }

    /// Dates its breaches by maps that were read for it, oldest first.
    pub fn date_breaches(&mut self, maps: &[Arc<OsdMap>]) {
        match &self.stage {
            FenceStage::Fencing(fence) => self.record.change(|record| breaches::date(record, fence, maps)),
            FenceStage::Releasing(_) => {}
        }
    }

    /// Its whole-host IPs.
    pub fn hosts(&self) -> BTreeSet<IpAddr> {
        self.plan.hosts()
    }

    /// Begins with what is to be chased. Not while something is on its way: an answer of before would count for what is
    /// asked then. Nor while an entry is missing or being replaced: the new machine would know nothing of that.
    fn begin_chase(&mut self) {
        if self.to_chase.is_empty() || self.in_flight {
            return;
        }
        let FenceStage::Fencing(fence) = &self.stage else { return };
        let whole = fence.entries().all(|(_, until)| until.is_some()) && fence.standing_covers().is_empty();
        if !whole {
            return;
        }
        let entries = std::mem::take(&mut self.to_chase);
        self.record.change(|record| {
            record.entries.extend(entries.iter().map(|entry| (*entry, None)));
            if matches!(record.state, FenceState::Sealed | FenceState::Pending) {
                record.state = FenceState::Committed;
            }
        });
        self.plan.entries.extend(&entries);
        self.plan.known_clients += entries.len();
        (self.held, self.trouble, self.sealed_at, self.clear) = (None, None, None, false);
        self.stage = FenceStage::Fencing(Box::new(Sealing::new(self.plan.clone())));
    }

    /// Is it an entry of this fence, also for a moment?
    pub fn accounts_for(&self, entry: Entry) -> bool {
        let cover = match &self.stage {
            FenceStage::Fencing(fence) => fence.is_cover(entry),
            // Its covers are of its hosts.
            FenceStage::Releasing(_) => false,
        };
        cover
            || self.record.entries.contains_key(&entry)
            || (entry.is_host() && self.hosts().contains(&entry.ip()))
    }

    /// These pools are guarded from now on.
    pub fn guard(&mut self, guarded: &Guarded) {
        self.plan.guarded.clone_from(guarded);
        match &mut self.stage {
            FenceStage::Fencing(fence) => fence.guard(guarded.clone()),
            FenceStage::Releasing(_) => {}
        }
    }

    /// It is no longer wanted, or not in this form, and nothing was sent.
    pub fn is_withdrawn(&self, still_wanted: Option<bool>) -> bool {
        let sent = match &self.stage {
            // Begun by a guardian that died: what stands may be its doing, unless it stood before.
            FenceStage::Fencing(fence) if self.resumed => {
                let stood = |entry, until| self.record.entries.get(&entry) == Some(&until);
                !fence.has_looked()
                    || fence.entries().any(|(entry, until)| until.is_some() && !stood(entry, until))
            }
            FenceStage::Fencing(_) => false,
            FenceStage::Releasing(_) => true,
        };
        !self.began && !sent && still_wanted == Some(false)
    }

    /// Nothing is left to do, and the ledger says so.
    pub fn is_over(&self, recorded: Option<&FenceRecord>) -> bool {
        // The same member fenced again has the same ID as the fence that was released.
        let released = |record: &FenceRecord| record.state == FenceState::Released;
        released(&self.record) && recorded.is_some_and(released)
    }

    /// PGs that have not answered, as they are printed.
    pub fn pending(&self) -> Vec<String> {
        match &self.stage {
            FenceStage::Fencing(fence) => fence.proofs().flat_map(PoolProof::pending_names).collect(),
            FenceStage::Releasing(_) => Vec::new(),
        }
    }

    /// Every PG of every guarded pool has answered in this run, and the map was read again.
    pub fn is_proved(&self) -> bool {
        match &self.stage {
            FenceStage::Fencing(fence) => fence.state() == SealingState::Sealed,
            FenceStage::Releasing(_) => false,
        }
    }

    /// The proofs of this run.
    pub fn proofs(&self) -> Vec<PoolProof> {
        match &self.stage {
            FenceStage::Fencing(fence) => fence.proofs().cloned().collect(),
            FenceStage::Releasing(_) => Vec::new(),
        }
    }

    /// Where it keeps maps.
    pub fn maps(&mut self) -> impl Iterator<Item = &mut Option<Arc<OsdMap>>> {
        let fence = match &mut self.stage {
            FenceStage::Fencing(fence) => Some(fence),
            FenceStage::Releasing(_) => None,
        };
        fence.into_iter().flat_map(|fence| fence.maps())
    }

    /// The next step, once the ledger backs it and it may begin.
    pub fn next_step(
        &mut self,
        ground: &Preconditions<'_>,
        policy: &Policy,
        may_begin: impl FnOnce(&Step) -> bool,
    ) -> Option<Step> {
        if self.in_flight || self.is_over(ground.recorded) {
            return None;
        }
        self.change_stage(ground, policy);
        if self.held.is_none() {
            self.held = self.stage.machine().next_step();
        }
        let removed = self.held.as_ref()?.removals().to_vec();
        for entry in removed {
            if mutants::is(Mutant::RemovalNotRecorded) {
                continue;
            }
            let new = !self.record.in_doubt.contains(&entry);
            if new {
                self.sent.insert(entry);
            }
            if new || !self.record.sent.contains_key(&entry) {
                self.record.change(|record| {
                    record.in_doubt.insert(entry);
                    record.note_sent(entry, ground.storage);
                });
            }
        }
        let held = self.held.as_ref()?;
        if !self.is_permitted(held, ground) || !may_begin(held) {
            return None;
        }
        self.in_flight = true;
        self.began |= self.held.as_ref()?.changes_entries();
        self.held.take()
    }

    /// From holding to releasing when the gate is closed and nothing is on its way; a failed machine begins anew.
    fn change_stage(&mut self, ground: &Preconditions<'_>, policy: &Policy) {
        let retry = self.trouble.as_ref().is_some_and(|(_, at)| ground.now.boot >= *at);
        match &self.stage {
            FenceStage::Fencing(fence) => {
                let recorded = ground.recorded.is_some_and(|record| record.state == FenceState::Releasing);
                let closed =
                    ground.gate_closed == GateClosed::Yes || mutants::is(Mutant::ReleaseWithGateOpen);
                if closed && recorded && self.began_before.is_none() {
                    self.began_before = ground.starting.cloned();
                }
                let over =
                    |before: &BTreeSet<String>| ground.starting.is_some_and(|now| before.is_disjoint(now));
                let drained =
                    self.began_before.as_ref().is_some_and(over) || mutants::is(Mutant::HealNotDrained);
                if self.release.is_some() && recorded && closed && drained {
                    (self.held, self.trouble) = (None, None);
                    let release = self.begin_release(policy.required_until(ground.storage));
                    self.stage = FenceStage::Releasing(Box::new(release));
                } else if retry && fence.failure().is_some() {
                    self.stage = FenceStage::Fencing(Box::new(Sealing::new(self.plan.clone())));
                    // What stands as the ledger knows it was held meanwhile.
                    self.resumed = true;
                    if let Some((_, again)) = &mut self.trouble {
                        *again = ground.now.boot + RETRY;
                    }
                }
            }
            FenceStage::Releasing(release) => {
                if retry && release.failure().is_some() {
                    let release = self.begin_release(policy.required_until(ground.storage));
                    self.stage = FenceStage::Releasing(Box::new(release));
                    self.trouble = None;
                }
            }
        }
    }

    fn begin_release(&self, until: Timestamp) -> Release {
        Release::new(self.hosts(), until).remember(self.record.seen.iter().copied())
    }

    fn is_permitted(&self, step: &Step, ground: &Preconditions<'_>) -> bool {
        if !step.changes_storage() {
            return true;
        }
        let Some(recorded) = ground.recorded else { return mutants::is(Mutant::ActBeforeRecord) };
        let is_sealing = matches!(self.stage, FenceStage::Fencing(_));
        let added =
            if let (Step::Add(entries), true) = (step, is_sealing) { entries.as_slice() } else { &[] };
        // A cover is none of the plan's.
        let unrecorded =
            |entry: &Entry| self.plan.entries.contains(entry) && !recorded.entries.contains_key(entry);
        // Nor is an entry put back that the release of a guardian that died may have removed: the member's new clients
        // would be refused for good.
        let released = |entry: &Entry| {
            recorded.state == FenceState::Releasing && recorded.in_doubt.contains(entry) && entry.is_host()
        };
        if added.iter().any(|entry| unrecorded(entry) || released(entry)) {
            return false;
        }
        let waits = self.record.state == FenceState::Breached && ground.gate_closed != GateClosed::Yes;
        if mutants::is(Mutant::EntryWaitsForGate) && waits {
            return false;
        }
        let doubted = step.removals().iter().all(|entry| recorded.in_doubt.contains(entry))
            || mutants::is(Mutant::RemovalNotRecorded);
        let expected = match &self.stage {
            FenceStage::Releasing(_) => recorded.state == FenceState::Releasing,
            FenceStage::Fencing(_) => recorded.state != FenceState::Released,
        };
        // Entries of a fence that was begun before a restart are completed, whatever became of the member since.
        let begun = self.began
            || (self.resumed && !self.is_withdrawn(ground.still_wanted) && ground.still_wanted.is_some());
        let wanted = ground.still_wanted == Some(true) || mutants::is(Mutant::MemberNotAsked);
        doubted && expected && (begun || wanted)
    }

    /// A map that was read, for whatever reason; entries are to stand until `required_until` by its clock.
    pub fn observe(&mut self, map: &Arc<OsdMap>, required_until: Timestamp) {
        let FenceStage::Fencing(fence) = &mut self.stage else { return };
        if self.resumed && !fence.has_looked() {
            self.plan.required_until = required_until;
            fence.require_until(required_until);
        }
        fence.observe(map);
    }

    /// Takes in what became of a step.
    pub fn handle(&mut self, outcome: StepOutcome) {
        self.in_flight = false;
        match &outcome {
            StepOutcome::Removed(sent) => self.note_removal_sent(sent),
            StepOutcome::Clients(_) => self.unread.clear(),
            StepOutcome::Unread(unread) => self.unread.clone_from(unread),
            StepOutcome::FailedOver(..)
            | StepOutcome::Map(_)
            | StepOutcome::Daemons(_)
            | StepOutcome::Added(_)
            | StepOutcome::Proved(_) => {}
        }
        self.stage.machine().handle(outcome);
    }

    /// A removal that was answered cannot arrive any more; the others stay in doubt (INV-7).
    fn note_removal_sent(&mut self, sent: &[(Entry, Sent)]) {
        for (entry, sent) in sent {
            match sent {
                // One that was in doubt before may still arrive from whoever sent it.
                Sent::Acknowledged | Sent::Refused(_) if self.sent.remove(entry) => {
                    self.record.change(|record| record.in_doubt.remove(entry));
                }
                Sent::Acknowledged | Sent::Refused(_) => {}
                Sent::Unknown if mutants::is(Mutant::NoAnswerIsNo) => {
                    self.record.change(|record| record.in_doubt.remove(entry));
                }
                Sent::Unknown => drop(self.sent.remove(entry)),
            }
        }
    }
}

impl FenceStage {
    fn machine(&mut self) -> &mut dyn StepMachine {
        match self {
            Self::Fencing(fence) => fence.as_mut(),
            Self::Releasing(release) => release.as_mut(),
        }
    }
}
