//! The guardian: what it knows, and what follows from it.
//!
//! Inputs come in ([`Guardian::handle`]), effects go out ([`Guardian::next_effect`]), and what is told is asked for
//! ([`Guardian::next_report`]). Nothing is remembered as "to be done": each effect is derived from what the ledger
//! holds and what was last read, so that a guardian that begins anywhere, also after another one died there, goes on
//! the same way. At most one effect of a kind is on its way.

mod answers;
mod beside;
pub mod book;
mod breach;
mod breach_audit;
mod chase;
mod disarm;
mod found;
pub mod gate;
mod history;
mod identity;
pub mod io;
mod known;
mod moved_addresses;
mod preconditions;
mod reach;
pub mod report;
mod retire;
pub mod settings;
pub mod sightings;
pub mod status;

mod effects;
mod pace;
mod readings;
mod shared;
pub mod sums;
mod telling;
mod trail;
mod waits;
mod wants;
mod why;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fence::Fence;
use crate::fence::preconditions::GateClosed;
use crate::fence::step::StepOutcome;
use crate::guardian::book::AddressBook;
use crate::guardian::breach_audit::{AuditContext, BreachAudit};
use crate::guardian::effects::Schedule;
use crate::guardian::gate::{GateState, GateWriter};
use crate::guardian::io::{Input, Now, Recorded, StaleLock};
use crate::guardian::pace::{FailedEffect, Lane};
use crate::guardian::readings::Sweep;
use crate::guardian::report::{Level, Outcome, Report};
use crate::guardian::settings::Settings;
use crate::guardian::shared::SharedSteps;
use crate::guardian::trail::TrailNote;
use crate::guardian::wants::{FenceCandidate, RefusedFence};
use crate::model::ceph_snapshot::CephSnapshot;
use crate::model::fence_id::FenceId;
use crate::model::incus_snapshot::{IncusSnapshot, InstanceId, MemberStatus};
use crate::model::member::Members;
use crate::model::osdmap::OsdMap;
use crate::model::pairs;
use crate::model::record::{Change, FenceState, Record, Records, Removal};
use crate::model::target::Target;
use crate::model::volume::Images;
use crate::rules::entry_origin::OtherEntry;
use crate::rules::loss_evidence::LossEvidence;
use crate::rules::reboot_proof::NotProved;
use crate::rules::single_writer::Conflict;

/// A reading of the platform is trusted for so long.
const FRESH: Duration = Duration::from_secs(5);

/// One guardian that leads.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Guardian {
    settings: Settings,
    pub(crate) now: Now,
    /// As the ledger holds them.
    records: Records,
    /// The write that is on its way.
    writing: Vec<Change>,
    /// Why nothing can be recorded.
    cannot_record: Option<String>,
    /// The last reading, with what an earlier whole one said where this one is silent.
    view: Option<Arc<IncusSnapshot>>,
    /// When the last good reading began, and the last whole one; and why the last one failed.
    view_began: Duration,
    whole_began: Option<Duration>,
    view_failed: Option<String>,
    #[serde(with = "pairs")]
    images: Images,
    /// Apart in a checkpoint, as those of the fences are (`recording::maps`).
    #[serde(skip)]
    map: Option<Arc<OsdMap>>,
    map_read: Duration,
    /// Entries of the last map that no fence accounts for; `None` until they were told apart.
    others: Option<Vec<OtherEntry>>,
    map_failed: Option<String>,
    /// Why the last look at the storage failed.
    #[serde(default)]
    look_failed: Option<String>,
    world: Option<CephSnapshot>,
    /// When the last look at the storage began that was answered.
    looked_at: Option<Duration>,
    /// When removals of client entries that have served were answered last.
    retired: Option<Duration>,
    /// Fences whose last breach is to be dated by the osdmaps around it, and whether those are being read.
    #[serde(default)]
    undated: BTreeMap<FenceId, bool>,
    /// What each fence waits for, by the code of its alarm, and since when.
    #[serde(default)]
    waiting: BTreeMap<String, (String, Duration)>,
    /// The same in words, derived once after each input.
    #[serde(skip)]
    waits: BTreeMap<String, waits::Wait>,
    /// Since when the listing of instances or volumes fails, and which.
    #[serde(default)]
    unlisted: Option<(Duration, String)>,
    /// The reading that is on its way, or was last, is of everything.
    #[serde(default)]
    whole_asked: bool,
    /// Users of images that no monitor knows of, and since when.
    #[serde(default, with = "pairs")]
    ghosts: BTreeMap<crate::model::addr::ClientAddr, Duration>,
    /// Breaches whose culprit is looked for.
    #[serde(rename = "searches")]
    breach_audit: BreachAudit,
    sweep: Option<Sweep>,
    /// Which images of Incus are in their pools.
    #[serde(default)]
    found: found::FoundImages,
    /// Sweep and reading that the conflicts were judged by, so that each pair is judged once.
    judged: Option<Duration>,
    /// The sweep that a whole reading was asked for, to judge it by.
    asked_for: Option<Duration>,
    conflicts: Vec<Conflict>,
    /// Those of the last sweep, told or not.
    seen_before: Vec<Conflict>,
    /// Clients that were stale in the sweep before.
    stale_before: BTreeSet<crate::model::addr::ClientAddr>,
    book: AddressBook,
    evidence: BTreeMap<String, LossEvidence>,
    /// What a member that is back says that proves no reboot.
    returned: BTreeMap<String, NotProved>,
    /// Members whose machine nothing tells from another.
    #[serde(default)]
    unidentified: BTreeSet<String>,
    /// Each fence in force.
    #[serde(rename = "cases")]
    fences: BTreeMap<FenceId, Fence>,
    #[serde(default)]
    shared: SharedSteps,
    #[serde(with = "pairs")]
    wants: BTreeMap<Target, FenceCandidate>,
    #[serde(with = "pairs")]
    refused: BTreeMap<Target, RefusedFence>,
    last_fence: Option<Duration>,
    /// What operators do beside the guardian, and is to be recorded.
    #[serde(default)]
    notes: VecDeque<TrailNote>,
    desk: GateWriter,
    /// Placements the gate refused for good, and when.
    not_placed: BTreeMap<String, Duration>,
    stale_locks: BTreeSet<StaleLock>,
    /// Instances to be started after a release, and how often that was tried.
    #[serde(with = "pairs")]
    to_start: BTreeMap<InstanceId, u32>,
    #[serde(with = "pairs")]
    busy: BTreeMap<Lane, Duration>,
    /// What failed last, and is to rest before it is tried again.
    #[serde(default, with = "pairs")]
    failed: BTreeMap<Lane, FailedEffect>,
    schedule: Schedule,
    /// Operations of the last reading that could start an instance, and whether they could be read.
    starting: BTreeSet<String>,
    starting_known: bool,
    /// When each member was asked for its interfaces.
    networks_read: BTreeMap<String, Duration>,
    /// What the readings of interfaces that are on their way will speak for.
    #[serde(default)]
    networks_ask: BTreeMap<String, beside::Beside>,
    /// By member, what came to addresses of its interfaces later than their last reading, as the last look showed it.
    #[serde(default)]
    came_later: BTreeMap<String, BTreeMap<IpAddr, String>>,
    deposed: Option<String>,
    /// Alarms that were told, and last: code, member and meaning, and the words they were told in.
    #[serde(default, with = "pairs")]
    told: BTreeMap<(String, Option<String>, String), String>,
    /// Since when each of them lasts.
    #[serde(default, with = "pairs")]
    told_since: BTreeMap<(String, Option<String>, String), Duration>,
    /// Told already in what a checkpoint begins with.
    #[serde(skip)]
    reports: VecDeque<Report>,
}

impl Guardian {
    /// Begins with what the ledger holds.
    pub fn new(settings: Settings, records: Records, now: Now) -> Self {
        let mut guardian = Self {
            now,
            records: Records::default(),
            writing: Vec::new(),
            cannot_record: None,
            view: None,
            view_began: Duration::ZERO,
            whole_began: None,
            view_failed: None,
            images: Images::new(),
            map: None,
            map_read: Duration::ZERO,
            others: None,
            map_failed: None,
            look_failed: None,
            world: None,
            looked_at: None,
            retired: None,
            undated: BTreeMap::new(),
            waiting: BTreeMap::new(),
            waits: BTreeMap::new(),
            unlisted: None,
            whole_asked: false,
            ghosts: BTreeMap::new(),
            breach_audit: BreachAudit::default(),
            sweep: None,
            found: found::FoundImages::default(),
            judged: None,
            asked_for: None,
            conflicts: Vec::new(),
            seen_before: Vec::new(),
            stale_before: BTreeSet::new(),
            book: AddressBook::of_records(records.members.clone()),
            evidence: BTreeMap::new(),
            returned: BTreeMap::new(),
            unidentified: BTreeSet::new(),
            fences: BTreeMap::new(),
            shared: SharedSteps::default(),
            wants: BTreeMap::new(),
            refused: BTreeMap::new(),
            last_fence: None,
            notes: VecDeque::new(),
            desk: GateWriter::default(),
            not_placed: BTreeMap::new(),
            stale_locks: BTreeSet::new(),
            to_start: BTreeMap::new(),
            busy: BTreeMap::new(),
            failed: BTreeMap::new(),
            schedule: Schedule::default(),
            starting: BTreeSet::new(),
            starting_known: false,
            networks_read: BTreeMap::new(),
            networks_ask: BTreeMap::new(),
            came_later: BTreeMap::new(),
            deposed: None,
            told: BTreeMap::new(),
            told_since: BTreeMap::new(),
            reports: VecDeque::new(),
            settings,
        };
        guardian.guard_what_was_proved(&records);
        guardian.hold(records);
        guardian.desk.before = guardian.recorded_gate_epoch();
        guardian
    }

    /// Takes over what the ledger holds: each fence in force.
    fn hold(&mut self, records: Records) {
        for record in records.fences.values() {
            let in_force = record.state.is_in_force();
            if record.state == FenceState::Intended && !self.fences.contains_key(&record.id) {
                // Nothing is known to stand: planned anew, by the rules and daemons of now.
                self.want_as_intended(record);
            } else if in_force && !self.fences.contains_key(&record.id) {
                let resumed = Fence::resume(record.clone(), &self.settings.policy);
                if let Some(mut fence) = resumed {
                    if record.state == FenceState::Sealed {
                        let named = records.gate.iter().flat_map(|gate| &gate.open);
                        let open = named.into_iter().any(|named| Some(named) == record.member.as_ref());
                        fence.take_over_seal(&self.settings.boot_id, self.now.boot, open);
                    }
                    self.fences.insert(record.id.clone(), fence);
                } else {
                    self.log(Level::Error, "unreadable-fence", None, format!("{} is no fence ID", record.id));
                }
            }
        }
        self.records = records;
        self.last_fence = self.last_fence.max(self.last_recorded(None));
    }

    /// When the newest fence but this one was recorded: another guardian's cools down as well. Wall clocks differ, by no
    /// more than a cool-down.
    fn last_recorded(&self, but: Option<&FenceId>) -> Option<Duration> {
        let others = self.records.fences.values().filter(|fence| Some(&fence.id) != but);
        let since = others.map(|fence| fence.since).max()?;
        let age = Duration::try_from(self.now.wall.duration_since(since)).unwrap_or_default();
        self.now.boot.checked_sub(age)
    }

    /// Members, or bare fences by their IDs, whose fences stand by the ledger.
    pub fn held_fences(&self) -> Vec<String> {
        let held = self.records.fences.values().filter(|fence| fence.state.stands());
        held.map(|fence| fence.name().to_owned()).collect()
    }

    /// The last reading of the platform, with what an earlier one said where it is silent.
    pub fn view(&self) -> Option<&Arc<IncusSnapshot>> {
        self.view.as_ref()
    }

    /// Other settings, from now on.
    pub fn reconfigure(&mut self, mut settings: Settings) {
        settings.policy.guarded.named.clone_from(&self.settings.policy.guarded.named);
        settings.policy.guarded.data.clone_from(&self.settings.policy.guarded.data);
        for fence in self.fences.values_mut() {
            fence.guard(&settings.policy.guarded);
        }
        self.settings = settings;
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Now, input: Input) {
        self.now = now;
        let asked = self.end(&input);
        match input {
            Input::Tick => {}
            Input::Notice(notice) => self.note(&notice),
            Input::View { began, view } => self.read_view(began, view),
            Input::MemberState(name, state) => self.read_member_state(&name, state, asked),
            Input::Answered(name) => self.answered(&name, asked),
            Input::Networks(name, networks) => match networks {
                Ok(networks) => self.read_networks(&name, &networks),
                Err(_) => {
                    self.networks_ask.remove(&name);
                    self.networks_read.remove(&name);
                }
            },
            Input::Pinged(name, answered) => {
                self.evidence.entry(name).or_default().ping = Some((asked, answered));
            }
            Input::Looked(world) => self.looked(world, asked),
            Input::Maps(maps) => self.read_maps(maps),
            Input::Audit(id, removals) => self.audited(&id, removals),
            Input::Swept { began, uses, unread, data_pools } => {
                self.guard_data(&data_pools, unread.is_empty());
                self.sweep = Some(Sweep { began, ended: now.boot, uses, unread });
                self.swept();
            }
            Input::Found { began, missing, unread } => self.note_found(began, missing, unread),
            Input::Recorded(recorded) => self.recorded(recorded),
            Input::Step(id, outcome) => self.note_outcome(id, outcome),
            Input::Retired(id, sent) => self.sent_to_retire(&id, &sent),
            Input::GatePut(failed) => self.gate_put(failed),
            Input::GatePushed(pushed) => {
                if let Err(why) = pushed {
                    self.log(Level::Warn, "gate-push-failed", None, why);
                }
                self.schedule.view = self.now.boot;
            }
            Input::LockBroken(lock, broken) => {
                let name = lock.image.to_string();
                match broken {
                    Ok(()) => {
                        self.log(
                            Level::Info,
                            "lock-broken",
                            None,
                            format!("{name}: lock of {} broken", lock.owner),
                        );
                    }
                    Err(why) => self.log(Level::Warn, "lock-not-broken", None, format!("{name}: {why}")),
                }
                self.stale_locks.remove(&lock);
            }
            Input::Started(instance, started) => self.started(&instance, started),
            Input::Request(number, request) => self.request(number, request),
            Input::Deposed(why) => {
                self.log(
                    Level::Warn,
                    "deposed",
                    None,
                    format!("this guardian does not lead any more: {why}"),
                );
                self.deposed = Some(why);
            }
        }
        self.settle();
    }

    /// A step of a fence ended, perhaps for others that wait for the same.
    fn note_outcome(&mut self, id: FenceId, outcome: StepOutcome) {
        let outcomes: Vec<(FenceId, StepOutcome)> = match outcome {
            StepOutcome::Map(map) => {
                if let Some(map) = &map {
                    self.note_map(Arc::clone(map));
                }
                self.shared.map_read().map(|id| (id, StepOutcome::Map(map.clone()))).collect()
            }
            StepOutcome::Proved(proofs) => {
                let proved = self.shared.proved(&proofs).into_iter();
                proved.map(|(id, proofs)| (id, StepOutcome::Proved(proofs))).collect()
            }
            outcome @ (StepOutcome::FailedOver(..)
            | StepOutcome::Daemons(_)
            | StepOutcome::Added(_)
            | StepOutcome::Removed(_)
            | StepOutcome::Clients(_)
            | StepOutcome::Unread(_)) => vec![(id, outcome)],
        };
        for (id, outcome) in outcomes {
            if let Some(fence) = self.fences.get_mut(&id) {
                fence.handle(outcome);
            }
        }
    }

    /// Draws every conclusion that needs no effect.
    fn settle(&mut self) {
        let boot_id = self.settings.boot_id.clone();
        let before: Vec<(FenceId, FenceState)> = self.states();
        // Asked of those alone that wait for it.
        let lifted = self.fences.values().filter(|fence| fence.is_lifted());
        let gates: BTreeMap<FenceId, GateClosed> =
            lifted.map(|fence| (fence.id().clone(), self.gate_closed(fence))).collect();
        for fence in self.fences.values_mut() {
            let gate = gates.get(fence.id()).copied().unwrap_or(GateClosed::Yes);
            fence.update(self.now, &boot_id, gate);
        }
        self.tell_changes(&before);
        self.tell_entries_apart();
        self.want_what_is_lost();
        self.plan_what_is_wanted();
        self.forget_placements();
        self.finish();
        self.note_waits();
        self.tell_alarms();
    }

    fn recorded(&mut self, recorded: Recorded) {
        let changes = std::mem::take(&mut self.writing);
        self.note_recorded(recorded == Recorded::Written);
        match recorded {
            Recorded::Written => {
                if self.cannot_record.take().is_some() {
                    self.log(Level::Info, "recording", None, "the ledger can be written again".to_owned());
                }
                for change in changes {
                    if let Change::Put(Record::Fence(record)) = &change
                        && let Some(fence) = self.fences.get_mut(&record.id)
                        && fence.note_recorded(self.now.boot)
                    {
                        self.schedule.view = self.now.boot;
                    }
                    self.records.apply(change);
                }
            }
            Recorded::Deposed(by) => self.deposed = Some(format!("{by} leads")),
            Recorded::Not { why, holds } => {
                if self.cannot_record.is_none() {
                    self.log(
                        Level::Error,
                        "cannot-record",
                        None,
                        format!("{why}: nothing is fenced or released"),
                    );
                }
                self.cannot_record = Some(why);
                if let Some(holds) = holds {
                    self.hold(*holds);
                }
            }
        }
    }

    fn audited(&mut self, id: &FenceId, removals: Result<Vec<Removal>, String>) {
        let Self { breach_audit, records, fences, world, map, reports, now, .. } = self;
        let (world, map) = (world.as_ref(), map.as_deref());
        let ctx = AuditContext { now: *now, records, fences, world, map };
        reports.extend(breach_audit.handle_audit(ctx, id, removals));
    }

    fn gate_put(&mut self, failed: BTreeMap<String, String>) {
        self.desk.ended = self.now.boot;
        self.desk.told.retain(|name, _| !failed.contains_key(name));
        self.desk.missed.extend(failed.keys().cloned());
        let why: Vec<String> = failed.into_iter().map(|(name, why)| format!("{name}: {why}")).collect();
        if why.is_empty() {
            self.desk.failed = None;
        } else {
            let why = why.join("; ");
            if self.desk.failed.is_none() {
                self.log(Level::Warn, "gate-not-written", None, why.clone());
            }
            self.desk.failed = Some((self.now.boot, why));
        }
        self.schedule.view = self.now.boot;
    }

    fn started(&mut self, instance: &InstanceId, started: Result<(), String>) {
        match started {
            Ok(()) => {
                self.to_start.remove(instance);
                self.log(Level::Info, "started", None, format!("instance {instance} started"));
            }
            Err(why) => {
                self.log(
                    Level::Warn,
                    "not-started",
                    None,
                    format!("instance {instance} did not start: {why}"),
                );
            }
        }
        self.schedule.whole = self.now.boot + Duration::from_secs(2);
    }

    /// Cases that are over, and requests that have their answer.
    fn finish(&mut self) {
        let mut over = Vec::new();
        for (id, fence) in &mut self.fences {
            let recorded = self.records.fences.get(id);
            // INV-8: what is told is in the ledger.
            let proofs = &fence.record().proofs;
            let sealed = recorded
                .is_some_and(|record| record.state == FenceState::Sealed && record.proofs == *proofs)
                && fence.record().state == FenceState::Sealed;
            if fence.is_over(recorded) {
                over.push(id.clone());
                for number in fence.take_requests() {
                    self.reports.push_back(Report::Answer(
                        number,
                        Outcome::Released(Box::new(fence.record().clone())),
                    ));
                }
            } else if sealed && fence.is_proved() && fence.release().is_none() {
                for number in fence.take_requests() {
                    let outcome = Outcome::Sealed(Box::new(fence.record().clone()), fence.proofs());
                    self.reports.push_back(Report::Answer(number, outcome));
                }
            }
        }
        self.forget_failures();
        for id in over {
            let Some(fence) = self.fences.remove(&id) else { continue };
            let member = fence.member().map(str::to_owned);
            for entry in &fence.record().refused_by {
                let whose = self.whose(*entry);
                let text = format!("{id} released, and {entry} refuses its host still: {whose}");
                self.log(Level::Warn, "still-refused", member.clone(), text);
            }
            if let Some(member) = member {
                self.returned.remove(&member);
                // What spoke for the fence is spent; if it is still lost, the next reading says so.
                self.evidence.insert(member.clone(), LossEvidence::default());
                self.start_what_stopped(&member);
            }
        }
    }

    /// Instances that were running and could not be started while their member was sealed.
    fn start_what_stopped(&mut self, member: &str) {
        let instances = self.view.iter().filter_map(|view| view.instances.as_ref()).flatten();
        let here = instances.filter(|(_, instance)| instance.location == member);
        self.to_start.extend(here.map(|(id, _)| (id.clone(), 0)));
        (self.schedule.whole, self.schedule.started) = (self.now.boot, self.now.boot);
    }

    fn fence_of(&self, member: &str) -> Option<&Fence> {
        self.fences.values().find(|fence| fence.member() == Some(member))
    }

    fn is_open(&self, member: &str) -> bool {
        self.fences.values().any(|fence| fence.member() == Some(member) && self.opens_gate(fence))
    }

    /// Where maps are kept, always in the same order.
    pub(crate) fn maps(&mut self) -> impl Iterator<Item = &mut Option<Arc<OsdMap>>> {
        std::iter::once(&mut self.map).chain(self.fences.values_mut().flat_map(Fence::maps))
    }

    fn opens_gate(&self, fence: &Fence) -> bool {
        fence.opens_gate(self.records.fences.get(fence.id()), self.map.as_deref())
    }

    fn is_online(&self, member: &str) -> bool {
        let status =
            self.view.as_ref().and_then(|view| view.members.get(member)).map(|member| &member.status);
        self.view_is_fresh() && status == Some(&MemberStatus::Online)
    }

    /// Is there a reading by a member with quorum that can be trusted now?
    fn view_is_fresh(&self) -> bool {
        self.view.is_some() && self.now.boot.saturating_sub(self.view_began) < FRESH
    }

    /// The members and what is known of their addresses.
    pub fn members(&self) -> Members {
        self.book.members(&self.settings.members, self.view.as_deref())
    }

    fn gate_state(&self) -> GateState {
        // Maintenance states hide that a member is lost; a fence tells.
        let lost = |name: &str| {
            self.fence_of(name).is_some() || self.evidence.get(name).is_some_and(LossEvidence::is_lost)
        };
        gate::state(self.view.as_deref(), lost)
    }

    /// What is to be told next.
    pub fn next_report(&mut self) -> Option<Report> {
        self.reports.pop_front()
    }

    fn log(&mut self, level: Level, code: &'static str, member: Option<String>, text: String) {
        self.reports.push_back(Report::Log { level, code, member, text });
    }
}

/// The record of a fence, as a change of the ledger.
fn put(fence: &Fence) -> Change {
    Change::Put(Record::Fence(fence.record().clone()))
}
