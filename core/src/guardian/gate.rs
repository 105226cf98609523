//! The gate: which keys it should have, which are written next, who else wrote keys, and whether it is closed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fence::Fence;
use crate::fence::preconditions::{GateClosed, Preconditions};
use crate::guardian::awaited::AwaitedSeals;
use crate::guardian::context::Ctx;
use crate::guardian::fences::Grounds;
use crate::guardian::found::FoundImages;
use crate::guardian::io::Effect;
use crate::guardian::lanes::Lane;
use crate::guardian::report::{Alarm, Level, Reports};
use crate::guardian::trail::DueChange;
use crate::model::epoch::GateEpoch;
use crate::model::gate_keys::{self, GateContents, GateState, REMOVE, SEAL};
use crate::model::incus_snapshot::GateView;
use crate::model::now::Now;
use crate::model::record::{Change, GateRecord, Record};
use crate::mutants::{self, Mutant};

/// How often the scriptlet is sent again to members that lack it.
const PUSH_EVERY: Duration = Duration::from_secs(15);
/// `gate remove` takes no longer than this. Afterwards missing keys are written again.
const REMOVAL: Duration = Duration::from_secs(60);

/// What was written to the gate.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Gate {
    /// The keys that were last written at each member, unless a reading or a failure contradicts that. A member that is not
    /// listed is written again.
    told: BTreeMap<String, BTreeMap<String, String>>,
    /// The keys of the last write, and the members where it failed and was not retried.
    #[serde(default)]
    sent: BTreeMap<String, String>,
    #[serde(default)]
    missed: BTreeSet<String>,
    /// Keys that another writer left at a member, as they were logged.
    foreign: BTreeMap<String, BTreeMap<String, String>>,
    /// The epoch of the last write.
    epoch: GateEpoch,
    /// The last epoch recorded before this guardian led: writes with that epoch may still arrive.
    #[serde(default)]
    before: GateEpoch,
    /// When the last write ended: readings that began earlier do not show it.
    ended: Duration,
    /// When and why the last write failed; `None` once one succeeded.
    failed: Option<(Duration, String)>,
    /// When the scriptlet was sent last.
    pushed: Option<Duration>,
    /// When an operator announced the removal of the gate; `None` once a reading shows no gate.
    #[serde(default)]
    removing: Option<Duration>,
}

impl Gate {
    /// `before`: the last epoch that an earlier guardian recorded.
    pub(super) fn new(before: GateEpoch) -> Self {
        Self { before, ..Self::default() }
    }

    pub(super) fn epoch(&self) -> GateEpoch {
        self.epoch
    }

    pub(super) fn failure(&self) -> Option<&str> {
        self.failed.as_ref().map(|(_, why)| why.as_str())
    }

    /// An operator announces a change outside the guardian.
    pub(super) fn handle_note(&mut self, now: Now, what: &str) {
        self.removing = (what == REMOVE).then_some(now.boot);
    }

    /// A write ended; where it failed, and why.
    pub(super) fn handle_put(&mut self, now: Now, failed: BTreeMap<String, String>, reports: &mut Reports) {
        self.ended = now.boot;
        self.told.retain(|name, _| !failed.contains_key(name));
        self.missed.extend(failed.keys().cloned());
        let why: Vec<String> = failed.into_iter().map(|(name, why)| format!("{name}: {why}")).collect();
        if why.is_empty() {
            self.failed = None;
        } else {
            let why = why.join("; ");
            if self.failed.is_none() {
                reports.log(Level::Warn, "gate-not-written", None, why.clone());
            }
            self.failed = Some((now.boot, why));
        }
    }

    /// INV-7: keys that a deposed guardian wrote, or a tool that restored an old copy of a member's configuration, are not
    /// backed by the ledger. They are written again.
    pub(super) fn handle_view(&mut self, ctx: Ctx<'_>, reports: &mut Reports) {
        let Some(gate) = ctx.incus.gate() else { return };
        if ctx.incus.view_began <= self.ended || is_writing(ctx) {
            return;
        }
        if ctx.gate_state() == GateState::Absent {
            if gate.members.values().all(|keys| !keys.keys().any(|key| gate_keys::is_own(key))) {
                self.removing = None;
            }
            // The operator took it out, and its keys; or is about to put it there.
            self.told.clear();
            self.missed.clear();
            return;
        }
        // A write whose end nobody knew, and that is there: it was done (INV-9).
        let (done, missed) = std::mem::take(&mut self.missed)
            .into_iter()
            .partition::<BTreeSet<_>, _>(|name| gate.members.get(name) == Some(&self.sent));
        self.told.extend(done.into_iter().map(|name| (name, self.sent.clone())));
        self.missed = missed;
        let foreign: Vec<(String, String)> = gate
            .members
            .iter()
            .filter_map(|(name, found)| Some((name.clone(), self.foreign(ctx, name, found)?)))
            .collect();
        self.told.retain(|name, _| gate.members.contains_key(name));
        for (name, text) in foreign {
            self.told.remove(&name);
            reports.log(Level::Error, "gate-foreign-write", Some(&name), text);
            let keys = gate.members.get(&name).cloned().unwrap_or_default();
            self.foreign.insert(name, keys);
        }
    }

    /// What somebody else wrote at a member and was not logged yet, in words.
    fn foreign(&self, ctx: Ctx<'_>, name: &str, found: &BTreeMap<String, String>) -> Option<String> {
        let told = self.told.get(name);
        // What a guardian before this one wrote is known by what it recorded; what became of a write that
        // failed, by nothing.
        let logged = self.foreign.get(name) == Some(found);
        if logged || told == Some(found) || (told.is_none() && self.epoch > GateEpoch::default()) {
            return None;
        }
        // The operator's command takes them away, member by member.
        if self.is_being_removed(ctx.now) && !found.keys().any(|key| gate_keys::is_own(key)) {
            return None;
        }
        let recorded = ctx.recorded_gate_epoch().max(self.epoch);
        let backed = || ctx.records.gate.as_ref().map(|gate| gate.open.clone()).unwrap_or_default();
        let expected = told.map_or_else(backed, gate_keys::seals);
        let seals: Vec<String> = gate_keys::seals(found).difference(&expected).cloned().collect();
        let epoch = gate_keys::epoch(found);
        if !seals.is_empty() {
            let seals = seals.join(", ");
            Some(format!("{name} has a seal key for {seals} that the ledger does not back: it is removed"))
        } else if !gate_keys::is_plausible(epoch, recorded) {
            Some(format!("{name} has epoch {epoch}, the ledger {recorded}: it is written again"))
        } else {
            told.map(|_| format!("somebody else changed the gate's keys at {name}: they are written again"))
        }
    }

    /// What the gate should say; `None` when nothing may be written.
    fn contents(ctx: Ctx<'_>, found: &FoundImages, awaited: &AwaitedSeals) -> Option<GateContents> {
        let view = ctx.incus.view()?;
        match ctx.gate_state() {
            GateState::Unknown => None,
            // Left by a gate that was removed by hand: a seal key would open the next one.
            GateState::Absent => Some(GateContents::default()),
            GateState::Partial { .. } | GateState::Installed | GateState::Off => {
                let (policy, storage) = (&ctx.settings.policy, &ctx.settings.storage);
                let pools = gate_keys::covered(view, ctx.map()?, policy, storage, &found.uncovered(ctx));
                Some(GateContents {
                    open: ctx.open(),
                    members: view.members.keys().cloned().collect(),
                    pools,
                    awaited: awaited.at_gate(ctx),
                })
            }
        }
    }

    /// The members that lack the keys they should have, as far as is known.
    fn untold(&self, ctx: Ctx<'_>, gate: &GateView, contents: &GateContents) -> BTreeSet<String> {
        let absent = ctx.gate_state() == GateState::Absent;
        // Of many members, most with one epoch: each text names all members.
        let mut expected = BTreeMap::new();
        let mut lacks = |name: &String, found: &BTreeMap<String, String>| {
            if absent {
                return !gate_keys::seals(found).is_empty();
            }
            // A guardian that takes over writes once whatever it finds: what another one read before is out of date
            // then.
            let epoch = gate_keys::epoch(found);
            self.told.get(name) != Some(found)
                || found != expected.entry(epoch).or_insert_with(|| contents.keys(epoch))
        };
        let untold = gate.members.iter().filter(|(name, found)| lacks(name, found));
        untold.map(|(name, _)| name.clone()).collect()
    }

    /// The next write; `None` if the gate is right, as far as is known.
    fn next_write(
        &self,
        ctx: Ctx<'_>,
        found: &FoundImages,
        awaited: &AwaitedSeals,
    ) -> Option<(GateEpoch, GateContents)> {
        if !ctx.settings.platform || is_writing(ctx) || ctx.incus.view_began <= self.ended || !ctx.is_fresh()
        {
            return None;
        }
        let gate = ctx.incus.gate()?;
        let contents = Self::contents(ctx, found, awaited)?;
        let untold = self.untold(ctx, gate, &contents);
        if untold.is_empty() || (self.is_being_removed(ctx.now) && !must_close(ctx, gate, &contents)) {
            return None;
        }
        // Retrying the same write has a pause; any other write, closing the gate among them, is sent at once.
        if ctx.lanes.rests(ctx.now, &Lane::Gate) && self.sent == contents.keys(self.epoch) {
            return None;
        }
        // An epoch that this guardian recorded and has not written yet is used; one that was written never again, nor
        // one of another guardian, whose write may arrive yet.
        let recorded = ctx.recorded_gate_epoch();
        let last = gate_keys::last_epoch(gate, recorded.max(self.epoch)).max(self.epoch).max(self.before);
        // Where a write failed the same is tried again.
        let missed =
            |name: &String| self.missed.contains(name) && gate_keys::epoch(&gate.members[name]) != last;
        let again = last == self.epoch && self.sent == contents.keys(last) && untold.iter().all(missed);
        let is_kept = mutants::is(Mutant::GateWithoutEpoch) && recorded == last;
        Some((if recorded > last || again || is_kept { recorded } else { last.next() }, contents))
    }

    /// While an operator's command removes the gate, its keys are not written again.
    fn is_being_removed(&self, now: Now) -> bool {
        self.removing.is_some_and(|at| now.boot < at + REMOVAL)
    }

    /// The record that must be in the ledger before the next write.
    pub(super) fn due_change(
        &self,
        ctx: Ctx<'_>,
        found: &FoundImages,
        awaited: &AwaitedSeals,
    ) -> Option<DueChange> {
        let (epoch, contents) = self.next_write(ctx, found, awaited)?;
        let open = ctx.open();
        if is_recorded(ctx, epoch, &open) {
            return None;
        }
        let mut why = if open.is_empty() {
            "no member is open".to_owned()
        } else {
            format!("open: {}", open.iter().cloned().collect::<Vec<_>>().join(", "))
        };
        if !contents.awaited.is_empty() {
            let names = contents.awaited.keys().cloned().collect::<Vec<_>>().join(", ");
            why += &format!("; a healing waits for the seal of {names}");
        }
        let closes = |fence: &&Fence| fence.member().is_some_and(|member| !open.contains(member));
        let named = ctx.fences.all().filter(|fence| ctx.may_be_named(fence));
        let closing = named.filter(closes).map(|fence| fence.id().clone()).collect();
        let change = Change::Put(Record::Gate(GateRecord { epoch, open, closing }));
        Some(DueChange { changes: vec![change], what: format!("gate epoch {epoch}"), why })
    }

    pub(super) fn next_effect(
        &mut self,
        ctx: Ctx<'_>,
        found: &FoundImages,
        awaited: &AwaitedSeals,
        reports: &mut Reports,
    ) -> Option<Effect> {
        let (epoch, contents) = self.next_write(ctx, found, awaited)?;
        if !is_recorded(ctx, epoch, &ctx.open()) && !mutants::is(Mutant::GateBeforeRecord) {
            return None;
        }
        let gate = ctx.incus.gate()?;
        let is_absent = ctx.gate_state() == GateState::Absent;
        // All with one epoch: beside a newer one nothing opens.
        let some = epoch == self.epoch || is_absent;
        let all = || gate.members.keys().cloned().collect();
        let at = if some { self.untold(ctx, gate, &contents) } else { all() };
        let before = gate_keys::sealed_anywhere(gate);
        for member in contents.open.difference(&before) {
            let text = "its instances may be placed elsewhere".to_owned();
            reports.log(Level::Info, "gate-open", Some(member), text);
        }
        let text = if is_absent {
            "no gate is installed: its seal key is removed, and nothing holds up a healing"
        } else {
            "its instances stay where they are"
        };
        for member in before.difference(&contents.open) {
            reports.log(Level::Info, "gate-closed", Some(member), text.to_owned());
        }
        let keys = contents.keys(epoch);
        self.told.extend(at.iter().map(|name| (name.clone(), keys.clone())));
        self.missed.retain(|name| !at.contains(name));
        (self.sent, self.epoch) = (keys, epoch);
        Some(Effect::PutGate { at, contents, epoch })
    }

    /// Sends the scriptlet to the members that lack it.
    pub(super) fn next_push(&mut self, ctx: Ctx<'_>) -> Option<Effect> {
        let GateState::Partial { .. } = ctx.gate_state() else { return None };
        if !ctx.is_fresh()
            || self.pushed.is_some_and(|pushed| ctx.now.boot < pushed + PUSH_EVERY)
            || !ctx.may_begin(&Lane::Push)
            || self.is_being_removed(ctx.now)
        {
            return None;
        }
        self.pushed = Some(ctx.now.boot);
        Some(Effect::PushGate)
    }

    /// Is the gate closed for the member of this fence, by a reading that began after the last write?
    pub(super) fn closed(&self, ctx: Ctx<'_>, state: &GateState, fence: &Fence) -> GateClosed {
        let member = fence.member().unwrap_or_default();
        let read = ctx.incus.view_began > self.ended;
        // Only a write that closes it says that it cannot be closed, once it has ended.
        let closes = !self.sent.contains_key(&format!("{SEAL}{member}"));
        let refused = self.failed.is_some() && closes && !is_writing(ctx);
        let unseen = ctx.incus.view_failed.as_deref().is_some() && !ctx.is_fresh();
        let unwritten = || ctx.map().is_none() || *state == GateState::Unknown;
        // A late write of an earlier guardian can still open what this one has not overwritten (INV-7).
        let wrote = |gate| match state {
            // It writes nothing there.
            GateState::Unknown | GateState::Absent => true,
            GateState::Partial { .. } | GateState::Installed | GateState::Off => self.wrote_all(gate),
        };
        let closed = |gate| !gate_keys::sealed_anywhere(gate).contains(member) && wrote(gate);
        match ctx.incus.gate() {
            _ if fence.member().is_none() => GateClosed::Yes,
            // It reads no gate: the ledger's word is all there is.
            _ if !ctx.settings.platform && ctx.may_be_named(fence) && !mutants::is(Mutant::NoIncusNoGate) => {
                GateClosed::CannotTell
            }
            _ if !ctx.settings.platform => GateClosed::Yes,
            Some(gate) if read && closed(gate) => GateClosed::Yes,
            Some(_) | None if refused || unseen => GateClosed::CannotTell,
            Some(_) if unwritten() => GateClosed::CannotTell,
            None if ctx.incus.view().is_some() => GateClosed::CannotTell,
            Some(_) | None => GateClosed::NotYet,
        }
    }

    /// The preconditions of the next step of this fence that the fence itself does not know.
    pub(super) fn grounds(&self, ctx: Ctx<'_>, state: &GateState, fence: &Fence) -> Grounds {
        let still_wanted = ctx.is_still_wanted(fence);
        let gate_closed = self.closed(ctx, state, fence);
        let starting_known = ctx.incus.starting_known || fence.member().is_none() || !ctx.settings.platform;
        Grounds { still_wanted, gate_closed, starting_known }
    }

    /// Everything that the next step of this fence may rely on.
    pub(super) fn preconditions<'a>(&self, ctx: Ctx<'a>, fence: &Fence) -> Preconditions<'a> {
        ctx.steps().preconditions(fence, self.grounds(ctx, &ctx.gate_state(), fence))
    }

    /// Does each member have, by the last reading, either the keys that this guardian wrote, or an epoch older than the one
    /// it wrote elsewhere? Older keys open nothing, whatever write of earlier still arrives.
    fn wrote_all(&self, gate: &GateView) -> bool {
        let own = |name, found: &BTreeMap<_, _>| self.told.get(name) == Some(found);
        let newest = gate
            .members
            .iter()
            .any(|(name, found)| own(name, found) && gate_keys::epoch(found) == self.epoch);
        let older = |found| newest && gate_keys::epoch(found) < self.epoch;
        gate.members.iter().all(|(name, found)| own(name, found) || older(found))
    }
}

pub(super) fn alarms(ctx: Ctx<'_>) -> Vec<Alarm> {
    let mut alarms = excepted_alarms(ctx);
    alarms.extend(state_alarm(ctx));
    if !ctx.settings.platform {
        let named = ctx.fences.all().filter(|fence| ctx.may_be_named(fence));
        for name in named.filter_map(Fence::member) {
            let text = "by the ledger the gate may let its instances go, and this guardian has no [incus] to close \
                        it: its release waits for a guardian that has";
            let advice = "configure [incus] here, or start a guardian that has it";
            alarms.push(Alarm::new("gate-unseen", Some(name), text.to_owned(), vec![advice.to_owned()]));
        }
    }
    let Some(gate) = ctx.incus.gate() else { return alarms };
    if !gate.other_version.is_empty() {
        let names = gate.other_version.iter().cloned().collect::<Vec<_>>().join(", ");
        let text = format!("the gate at {names} is not that of this guardian's version, {}", crate::VERSION);
        let advice = "once every guardian is of one version, with that: rbd-guardian gate install";
        alarms.push(Alarm::new("gate-other-version", None, text, vec![advice.to_owned()]));
    }
    if gate_keys::stray(gate).next().is_some() {
        let text = format!(
            "project default has {}: keys of the gate are without effect there",
            gate_keys::stray(gate).collect::<Vec<_>>().join(", ")
        );
        let unset = |key| format!("incus project unset default {key}");
        let advice = gate_keys::stray(gate).map(unset).collect();
        alarms.push(Alarm::new("gate-stray-keys", None, text, advice));
    }
    alarms
}

fn state_alarm(ctx: Ctx<'_>) -> Option<Alarm> {
    let alarm = |code, text: String, advice: String| Some(Alarm::new(code, None, text, vec![advice]));
    let install = || "rbd-guardian gate install".to_owned();
    match ctx.gate_state() {
        GateState::Off => {
            let key = gate_keys::OVERRIDE;
            let text = format!("the gate is switched off ({key}=off): nothing holds up a healing");
            alarm("gate-off", text, format!("incus project unset default {key}"))
        }
        GateState::Partial { missing } => {
            let names = missing.into_iter().collect::<Vec<_>>().join(", ");
            let text = format!(
                "{names} would heal without asking the gate: lost members are fenced before healing meanwhile"
            );
            alarm("gate-partial", text, install())
        }
        GateState::Absent if ctx.incus.view().is_some_and(|view| view.thresholds.healing.is_some()) => {
            let text = "healing is on and no gate is installed: lost members are fenced before healing";
            alarm("gate-absent", text.to_owned(), install())
        }
        GateState::Absent | GateState::Unknown | GateState::Installed => None,
    }
}

fn is_writing(ctx: Ctx<'_>) -> bool {
    ctx.lanes.began(&Lane::Gate).is_some()
}

fn is_recorded(ctx: Ctx<'_>, epoch: GateEpoch, open: &BTreeSet<String>) -> bool {
    ctx.records.gate.as_ref().is_some_and(|gate| gate.epoch >= epoch && gate.open == *open)
}

/// Does a key of any member open the gate for a member that must stay closed? While there is a gate, closing it comes before
/// its removal (INV-3).
fn must_close(ctx: Ctx<'_>, gate: &GateView, contents: &GateContents) -> bool {
    ctx.gate_state() != GateState::Absent && !gate_keys::sealed_anywhere(gate).is_subset(&contents.open)
}

/// Storage pools of this Ceph cluster with a part that the configuration excepts.
fn excepted(ctx: Ctx<'_>) -> BTreeSet<(&str, &str)> {
    let (guarded, storage) = (&ctx.settings.policy.guarded, &ctx.settings.storage);
    let pools = ctx.incus.view().and_then(|view| view.pools.as_ref()).into_iter().flatten();
    let here = pools.filter(|(_, pool)| pool.is_in(storage));
    let parts = here.clone().flat_map(|(name, pool)| {
        pool.osd_pool.iter().chain(&pool.data_pool).map(move |part| (name.as_str(), part.as_str()))
    });
    let parts = parts.filter(|(_, part)| guarded.except.iter().any(|excepted| excepted == part));
    let of_headers = ctx.map().into_iter().flat_map(|map| {
        let headers =
            here.clone().filter_map(|(name, pool)| Some((name.as_str(), pool.osd_pool.as_deref()?)));
        headers.flat_map(move |(name, osd_pool)| {
            guarded.excepted_data(osd_pool, map).map(move |part| (name, part))
        })
    });
    parts.chain(of_headers).collect()
}

fn excepted_alarms(ctx: Ctx<'_>) -> Vec<Alarm> {
    let alarm = |(storage, part): (&str, &str)| {
        let text = format!(
            "storage pool {storage} keeps images in the pool '{part}', which ceph.except_pools excepts: it is not covered, and no \
             instance on it is placed elsewhere"
        );
        let advice = vec![format!("take '{part}' out of ceph.except_pools, and reload")];
        Alarm::new("pool-excepted", None, text, advice)
    };
    excepted(ctx).into_iter().map(alarm).collect()
}
