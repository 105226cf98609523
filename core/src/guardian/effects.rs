//! Which effect is next: the ledger first, then fences, then the gate, then readings.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fence::Fence;
use crate::guardian::gate::{self, GateContents, GateState};
use crate::guardian::io::{Effect, Now};
use crate::guardian::pace::Lane;
use crate::guardian::report::{Level, Outcome, Report};
use crate::guardian::{Guardian, put, trail, wants};
use crate::model::addr::Entry;
use crate::model::epoch::GateEpoch;
use crate::model::fence_id::FenceId;
use crate::model::incus_snapshot::{GateView, InstanceId, MemberStatus};
use crate::model::record::{Change, FenceRecord, FenceState, GateRecord, Key, Record};

/// When each reading is due, by the boot clock.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Schedule {
    pub(super) view: Duration,
    pub(super) whole: Duration,
    /// When instances, pools and volumes were asked for last.
    #[serde(default)]
    pub(super) whole_asked: Option<Duration>,
    /// When the osdmap was read last.
    pub(super) maps: Option<Duration>,
    pub(super) sweep: Duration,
    /// When an instance was started last, or could be again: readings that began before say nothing of it.
    pub(super) started: Duration,
}

impl Schedule {
    /// Something was announced: what else comes with it is read together.
    pub(super) fn changed(&mut self, now: Duration) {
        self.view = self.view.min(now + Duration::from_millis(200));
        self.whole = self.whole.min(now + Duration::from_millis(500));
    }
}

/// Members, gate and operations are read so often; a reading is trusted for some of these.
const VIEW_EVERY: Duration = Duration::from_secs(2);
/// The same while something is lost or fenced.
const VIEW_OFTEN: Duration = Duration::from_millis(1000);
/// Instances and volumes are read so often when nothing is announced.
const WHOLE_EVERY: Duration = Duration::from_secs(60);
/// The osdmap at rest.
const MAPS_EVERY: Duration = Duration::from_secs(10);
/// The osdmap while a fence is held: a removed entry must not stay unnoticed.
const MAPS_OFTEN: Duration = Duration::from_secs(1);
/// Sweeps while a gate waits for one.
const SWEEP_OFTEN: Duration = Duration::from_secs(1);
/// What a healthy member says of itself.
const STATE_EVERY: Duration = Duration::from_secs(60);
/// What a sealed member says, once it is back.
const STATE_OFTEN: Duration = Duration::from_secs(2);
/// Addresses of interfaces.
const NETWORKS_EVERY: Duration = Duration::from_secs(600);
/// The same while a member is lost and not fenced: a floating address may have moved to another one.
pub(super) const NETWORKS_OFTEN: Duration = Duration::from_secs(20);
/// The scriptlet is sent again so often to members that lack it.
const PUSH_EVERY: Duration = Duration::from_secs(15);
/// `gate remove` takes no longer than this; after it what is missing is written again.
const REMOVAL: Duration = Duration::from_secs(60);
/// Starting an instance is tried so often.
const STARTS: u32 = 12;
/// Between two tries: a member that was fenced when it booted takes its storage for unavailable, and tries that again
/// once a minute (seen on Incus 6.0.4).
const START_AGAIN: Duration = Duration::from_secs(10);

impl Guardian {
    /// What to do next; `None` when nothing is to be done now. Asked until then after each input.
    pub fn next_effect(&mut self, now: Now) -> Option<Effect> {
        self.now = now;
        if self.deposed.is_some() {
            return None;
        }
        self.record()
            .or_else(|| self.step())
            .or_else(|| self.put_gate())
            .or_else(|| self.read_audit())
            .or_else(|| self.retire())
            .or_else(|| self.break_lock())
            .or_else(|| self.read())
            .or_else(|| self.ask_members())
            .or_else(|| self.start())
    }

    /// When time alone makes something due.
    pub fn wake_at(&self) -> Option<Duration> {
        let lost = self.evidence.values().any(crate::rules::loss_evidence::LossEvidence::is_lost);
        let busy = lost || !self.fences.is_empty() || !self.wants.is_empty() || self.view.is_none();
        let pace = if busy { Duration::from_millis(100) } else { Duration::from_millis(500) };
        self.deposed.is_none().then(|| self.now.boot + pace)
    }

    /// What the ledger does not say yet.
    fn record(&mut self) -> Option<Effect> {
        if !self.may_begin(&Lane::Record) {
            return None;
        }
        let (changes, what, why) = self
            .withdrawn()
            .or_else(|| self.left_over())
            .or_else(|| self.unrecorded())
            .or_else(|| self.note_to_record())
            .or_else(|| self.disarm_ended())
            .or_else(|| self.doubts_ended())
            .or_else(|| self.retirement())
            .or_else(|| self.forgotten())?;
        self.begin(Lane::Record);
        self.writing.clone_from(&changes);
        Some(Effect::Record { changes, what, why })
    }

    /// A fence whose member came back before anything was sent.
    fn withdrawn(&mut self) -> Option<(Vec<Change>, String, String)> {
        let gone = |fence: &&Fence| fence.is_withdrawn(&self.preconditions(fence));
        let id = self.fences.values().find(gone).map(|fence| fence.id().clone())?;
        let mut fence = self.fences.remove(&id)?;
        let member = fence.member().map(str::to_owned);
        self.log(Level::Info, "withdrawn", member, "it is back: nothing was fenced".to_owned());
        self.last_fence = self.last_recorded(Some(&id));
        for number in fence.take_requests() {
            let text = "the member came back before anything was sent: nothing was fenced".to_owned();
            self.reports.push_back(Report::Answer(number, Outcome::Failed(text)));
        }
        let (text, why) = (format!("{id} withdrawn"), "its member is back".to_owned());
        Some((vec![self.undone(fence.record().clone())], text, why))
    }

    /// An intent that nothing came of: what an earlier fence of the same ID left, as older guardians recorded it, is not
    /// forgotten, clients that stay refused, and removals in doubt (INV-7).
    fn undone(&self, mut record: FenceRecord) -> Change {
        let stands =
            |entry: &Entry| self.map.as_ref().is_none_or(|map| map.blocklist.until(*entry).is_some());
        let id = record.id.clone();
        let elsewhere = |entry: &Entry| {
            self.records.fences.values().any(|fence| fence.id != id && fence.entries.contains_key(entry))
        };
        record.entries.retain(|entry, _| !entry.is_host() && stands(entry) && !elsewhere(entry));
        record.state = FenceState::Released;
        if record.entries.is_empty() && record.in_doubt.is_empty() {
            Change::Remove(Key::Fence(record.id))
        } else {
            Change::Put(Record::Fence(record))
        }
    }

    /// An intent of a guardian that died, which nobody carries out: planned anew it was refused, or is another fence.
    /// It must not be found and carried out by whoever leads next. One that was begun stays.
    fn left_over(&self) -> Option<(Vec<Change>, String, String)> {
        let map = self.map.as_ref()?;
        let left = self.records.fences.values().find(|fence| {
            fence.state == FenceState::Intended
                && !self.fences.contains_key(&fence.id)
                && !self.wants.contains_key(&wants::target_of(fence))
                && !wants::begun(fence, map)
        })?;
        let text = format!("{} not carried out", left.id);
        let why = "planned anew it was refused, or is another fence".to_owned();
        Some((vec![self.undone(left.clone())], text, why))
    }

    fn unrecorded(&self) -> Option<(Vec<Change>, String, String)> {
        let differs = |fence: &&Fence| self.records.fences.get(fence.id()) != Some(fence.record());
        if let Some(fence) = self.fences.values().find(differs) {
            let (what, why) = trail::of(fence, self.records.fences.get(fence.id()));
            return Some((vec![put(fence)], what, why));
        }
        if let Some(epoch) = self.next_gate_epoch()
            && self.records.gate.as_ref().is_none_or(|gate| gate.epoch < epoch || gate.open != self.open())
        {
            let gate = GateRecord { epoch, open: self.open() };
            let what = format!("gate epoch {epoch}");
            return Some((vec![Change::Put(Record::Gate(gate))], what, self.gate_change()));
        }
        let members = self.book.members.values();
        let changed: Vec<Change> = members
            .filter(|member| self.records.members.get(&member.name) != Some(member))
            .map(|member| Change::Put(Record::Member(member.clone())))
            .collect();
        if !changed.is_empty() {
            return Some((changed, "address book".to_owned(), "learnt while healthy".to_owned()));
        }
        let ended = self.records.members.keys().filter(|name| {
            !self.book.members.contains_key(*name)
                && self.view.as_ref().is_some_and(|view| !view.members.contains_key(*name))
                && !self.stays_in_book(name)
        });
        let ended: Vec<Change> = ended.map(|name| Change::Remove(Key::Member(name.clone()))).collect();
        (!ended.is_empty()).then(|| (ended, "address book".to_owned(), "removed from the cluster".to_owned()))
    }

    /// The next step of a fence or release.
    fn step(&mut self) -> Option<Effect> {
        let ids: Vec<FenceId> = self.fences.keys().cloned().collect();
        for id in ids {
            // Taken out, so that the rest of the guardian can be looked at meanwhile.
            let Some(mut fence) = self.fences.remove(&id) else { continue };
            if fence.may_remove() {
                let kept = self.rested_on(&fence);
                fence.keep(&kept);
            }
            let step = {
                let ground = self.preconditions(&fence);
                fence.next_step(&ground, &self.settings.policy, |step| {
                    let lane = Lane::of_step(&id, step);
                    // Those that serve many fences rest together.
                    matches!(lane, Lane::Map | Lane::Barrier) || self.may_begin(&lane)
                })
            };
            let wrap = if fence.is_releasing() { Effect::Release } else { Effect::Fence };
            let effect = step.map(|step| wrap(id.clone(), step));
            self.fences.insert(id, fence);
            if let Some(effect) = effect.and_then(|effect| self.shared.join(effect)) {
                self.begin(Lane::of(&effect));
                return Some(effect);
            }
        }
        let effect = self.shared.next(!self.rests(&Lane::Map), !self.rests(&Lane::Barrier))?;
        self.begin(Lane::of(&effect));
        Some(effect)
    }

    /// The members whose instances may be placed elsewhere now.
    fn open(&self) -> BTreeSet<String> {
        let open = self.fences.values().filter(|fence| self.opens_gate(fence));
        open.filter_map(|fence| fence.member().map(str::to_owned)).collect()
    }

    /// What the gate should be told; `None` when nothing may be written.
    fn contents(&self) -> Option<GateContents> {
        let view = self.view.as_ref()?;
        match self.gate_state() {
            GateState::Unknown => None,
            // Left by a gate that was removed by hand: a seal key would open the next one.
            GateState::Absent => Some(GateContents::default()),
            GateState::Partial { .. } | GateState::Installed | GateState::Off => {
                let map = self.map.as_ref()?;
                let (policy, storage) = (&self.settings.policy, &self.settings.storage);
                let pools = gate::covered(view, map, policy, storage, &self.found.absent());
                Some(GateContents {
                    open: self.open(),
                    members: view.members.keys().cloned().collect(),
                    pools,
                })
            }
        }
    }

    /// The members that are not told what they should be, as far as is known.
    fn untold(&self, gate: &GateView, contents: &GateContents) -> BTreeSet<String> {
        let absent = self.gate_state() == GateState::Absent;
        let lacks = |name: &String, found: &BTreeMap<String, String>| {
            if absent {
                return !gate::seals(found).is_empty();
            }
            // A guardian that takes over writes once whatever it finds: what another one read before is out of date
            // then.
            self.desk.told.get(name) != Some(found) || *found != contents.keys(gate::epoch(found))
        };
        gate.members.iter().filter(|(name, found)| lacks(name, found)).map(|(name, _)| name.clone()).collect()
    }

    /// The epoch of the write that is due; `None` if the gate is as it should be, as far as is known.
    fn next_gate_epoch(&self) -> Option<GateEpoch> {
        let busy = self.busy.contains_key(&Lane::Gate);
        if !self.settings.platform || busy || self.view_began <= self.desk.ended || !self.view_is_fresh() {
            return None;
        }
        let gate = self.view.as_ref()?.gate.as_ref()?;
        let contents = self.contents()?;
        let untold = self.untold(gate, &contents);
        if untold.is_empty() || (self.gate_is_being_removed() && !self.must_close(gate, &contents)) {
            return None;
        }
        // The same is tried again after a while; something else, closing it among others, at once.
        let desk = &self.desk;
        if self.rests(&Lane::Gate) && desk.sent == contents.keys(desk.epoch) {
            return None;
        }
        // An epoch that this guardian recorded and has not written yet is used; one that was written never again, nor
        // one of another guardian, whose write may arrive yet.
        let recorded = self.recorded_gate_epoch();
        let last = gate::last_epoch(gate, recorded.max(desk.epoch)).max(desk.epoch).max(desk.before);
        // Where a write failed the same is tried again.
        let missed = |name: &String| desk.missed.contains(name) && gate::epoch(&gate.members[name]) != last;
        let again = last == desk.epoch && desk.sent == contents.keys(last) && untold.iter().all(missed);
        Some(if recorded > last || again { recorded } else { last.next() })
    }

    /// An operator's command takes the gate out: what it removes is written by nobody meanwhile.
    pub(super) fn gate_is_being_removed(&self) -> bool {
        self.desk.removing.is_some_and(|at| self.now.boot < at + REMOVAL)
    }

    /// Does a member's key let the instances of a member go that should stay? While there is a gate, that comes before
    /// its removal (INV-3).
    fn must_close(&self, gate: &GateView, contents: &GateContents) -> bool {
        self.gate_state() != GateState::Absent && !gate::sealed_anywhere(gate).is_subset(&contents.open)
    }

    pub(super) fn recorded_gate_epoch(&self) -> GateEpoch {
        self.records.gate.as_ref().map_or(GateEpoch::default(), |gate| gate.epoch)
    }

    /// Does the ledger say that the gate names this member?
    pub(super) fn is_named(&self, member: &str) -> bool {
        self.records.gate.as_ref().is_some_and(|gate| gate.open.contains(member))
    }

    /// Does the ledger say that there is a gate?
    pub fn knows_of_a_gate(&self) -> bool {
        self.records.gate.is_some()
    }

    fn gate_change(&self) -> String {
        let open = self.open();
        if open.is_empty() {
            "no member is open".to_owned()
        } else {
            format!("open: {}", open.into_iter().collect::<Vec<_>>().join(", "))
        }
    }

    fn put_gate(&mut self) -> Option<Effect> {
        let epoch = self.next_gate_epoch()?;
        if self.records.gate.as_ref().is_none_or(|gate| gate.epoch < epoch || gate.open != self.open()) {
            return None;
        }
        let contents = self.contents()?;
        let gate = self.view.as_ref()?.gate.as_ref()?;
        // All with one epoch: beside a newer one nothing opens.
        let some = epoch == self.desk.epoch || self.gate_state() == GateState::Absent;
        let all = || gate.members.keys().cloned().collect();
        let at = if some { self.untold(gate, &contents) } else { all() };
        let before = gate::sealed_anywhere(gate);
        self.begin(Lane::Gate);
        for member in contents.open.difference(&before) {
            self.log(
                Level::Info,
                "gate-open",
                Some(member.clone()),
                "its instances may be placed elsewhere".to_owned(),
            );
        }
        let text = if self.gate_state() == GateState::Absent {
            "no gate is installed: its seal key is removed, and nothing holds up a healing"
        } else {
            "its instances stay where they are"
        };
        for member in before.difference(&contents.open) {
            self.log(Level::Info, "gate-closed", Some(member.clone()), text.to_owned());
        }
        let keys = contents.keys(epoch);
        self.desk.told.extend(at.iter().map(|name| (name.clone(), keys.clone())));
        self.desk.missed.retain(|name| !at.contains(name));
        (self.desk.sent, self.desk.epoch) = (keys, epoch);
        Some(Effect::PutGate { at, contents, epoch })
    }

    fn read_audit(&mut self) -> Option<Effect> {
        let id = self.breach_audit.due(self.now.boot)?.clone();
        self.take(Lane::Audit).then_some(Effect::ReadAudit(id))
    }

    fn break_lock(&mut self) -> Option<Effect> {
        let lock = self.stale_locks.first().cloned()?;
        self.take(Lane::Lock).then_some(Effect::BreakLock(lock))
    }

    fn read(&mut self) -> Option<Effect> {
        let now = self.now.boot;
        let watching = !self.fences.is_empty();
        let lost = self.evidence.values().any(crate::rules::loss_evidence::LossEvidence::is_lost);
        if (self.needs_look() || self.chase_is_due() || self.interfaces_wait_for_look())
            && self.take(Lane::Look)
        {
            return Some(Effect::Look);
        }
        let whole = now >= self.schedule.whole;
        if self.settings.platform && (whole || now >= self.schedule.view) && self.take(Lane::View) {
            self.schedule.view = now + if watching || lost { VIEW_OFTEN } else { VIEW_EVERY };
            if whole {
                self.schedule.whole = now + WHOLE_EVERY;
                self.schedule.whole_asked = Some(now);
            }
            self.whole_asked = whole;
            return Some(Effect::ReadView { whole });
        }
        let every = if watching { MAPS_OFTEN } else { MAPS_EVERY };
        if self.schedule.maps.is_none_or(|last| now >= last + every) && self.take(Lane::Maps) {
            self.schedule.maps = Some(now);
            return Some(Effect::ReadMaps { after: self.read_maps_after() });
        }
        let sealed = |fence: &Fence| {
            fence.record().state == FenceState::Sealed && !fence.is_clear() && fence.member().is_some()
        };
        let waiting = self.fences.values().any(sealed);
        let due = now >= self.schedule.sweep || (waiting && self.sweep_is_old(now));
        if self.map.is_some() && due && self.take(Lane::Sweep) {
            self.schedule.sweep = now + self.settings.guard.every;
            return Some(Effect::Sweep);
        }
        self.find()
    }

    /// Does a gate wait for a sweep that began after its fence was sealed?
    fn sweep_is_old(&self, now: Duration) -> bool {
        let began = self.sweep.as_ref().map(|sweep| sweep.began);
        let sealed = self
            .fences
            .values()
            .filter(|fence| !fence.is_clear())
            .filter_map(|fence| fence.sealed_at())
            .max();
        match (began, sealed) {
            (Some(began), Some(sealed)) => began < sealed || now.saturating_sub(began) >= SWEEP_OFTEN,
            (None, Some(_)) => true,
            (_, None) => false,
        }
    }

    fn ask_members(&mut self) -> Option<Effect> {
        let view = self.view.as_ref().filter(|_| self.view_is_fresh())?;
        let now = self.now.boot;
        let guarded = self.gate_state() == GateState::Installed;
        if let GateState::Partial { .. } = self.gate_state()
            && self.desk.pushed.is_none_or(|pushed| now >= pushed + PUSH_EVERY)
            && self.may_begin(&Lane::Push)
            && !self.gate_is_being_removed()
        {
            self.desk.pushed = Some(now);
            self.begin(Lane::Push);
            return Some(Effect::PushGate);
        }
        let mut due = None;
        for (name, member) in &view.members {
            let evidence = self.evidence.get(name).cloned().unwrap_or_default();
            let held = self.fence_of(name).is_some();
            let every = if held { STATE_OFTEN } else { STATE_EVERY };
            let asked = evidence.state.as_ref().map(|(asked, _)| *asked).max(evidence.answered);
            let online = member.status == MemberStatus::Online;
            let states = (held || online) && asked.is_none_or(|asked| now >= asked + every);
            let state = (states || self.answer_is_due(name, asked))
                .then(|| (Lane::State(name.clone()), Effect::ReadMemberState(name.clone())));
            let networks = (online && self.has_looked_lately() && self.networks_are_due(name))
                .then(|| (Lane::Networks(name.clone()), Effect::ReadNetworks(name.clone())));
            let near = evidence.healing_is_near(member, &view.thresholds, self.settings.lead);
            let ping = (!guarded && near && evidence.ping_is_due(now))
                .then(|| (Lane::Ping(name.clone()), Effect::Ping(name.clone())));
            due = [state, networks, ping].into_iter().flatten().find(|(lane, _)| self.may_begin(lane));
            if due.is_some() {
                break;
            }
        }
        let (lane, effect) = due?;
        if let Lane::Networks(name) = &lane {
            self.networks_read.insert(name.clone(), self.now.boot);
            self.begin_networks(name);
        }
        self.begin(lane);
        Some(effect)
    }

    pub(super) fn networks_are_due(&self, name: &str) -> bool {
        let lost = |(name, evidence): (&String, &crate::rules::loss_evidence::LossEvidence)| {
            evidence.is_lost() && self.fence_of(name).is_none()
        };
        let every = if self.evidence.iter().any(lost) { NETWORKS_OFTEN } else { NETWORKS_EVERY };
        let awaited = self.interfaces_awaited();
        let old = |read: Duration| self.now.boot >= read + every || awaited.is_some_and(|since| read < since);
        self.networks_read.get(name).is_none_or(|read| old(*read))
    }

    /// Instances that could not be started while their member was sealed.
    fn start(&mut self) -> Option<Effect> {
        let view = self.view.as_ref().filter(|_| self.view_is_fresh())?;
        if self.whole_began.is_none_or(|whole| whole < self.schedule.started) {
            return None;
        }
        let instances = view.instances.as_ref()?;
        let stopped = |id: &InstanceId| {
            let details = instances.get(id).and_then(|instance| instance.details.as_ref());
            details.map(|details| details.ran && !details.running && details.autostart != Some(false))
        };
        self.to_start.retain(|id, tries| *tries < STARTS && stopped(id) != Some(false));
        let online =
            |id: &InstanceId| instances.get(id).is_some_and(|instance| self.is_online(&instance.location));
        let rested = self.now.boot >= self.schedule.started + START_AGAIN;
        let due = |(id, tries): &(&InstanceId, &u32)| {
            (**tries == 0 || rested) && stopped(id) == Some(true) && online(id)
        };
        let next =
            self.to_start.iter().filter(due).min_by_key(|(_, tries)| **tries).map(|(id, _)| id.clone())?;
        if !self.take(Lane::Start) {
            return None;
        }
        self.schedule.started = self.now.boot;
        *self.to_start.entry(next.clone()).or_default() += 1;
        Some(Effect::Start(next))
    }
}
