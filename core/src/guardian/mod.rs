//! The guardian: what it knows, and what it decides.
//!
//! Inputs come in ([`Guardian::handle`]), effects go out ([`Guardian::next_effect`]), and reports are drained with
//! [`Guardian::next_report`]. There is no list of things to do: each effect is derived from what the ledger holds and what
//! was last read. So a guardian can start anywhere, including where another one crashed. At most one effect of a kind is in
//! flight.
//!
//! Each part owns its fields. It reads the rest through a `Ctx`, and returns what another part must know. `Guardian` hands
//! each input to the parts that it concerns, lets them draw conclusions in a fixed order, and asks them for effects in a
//! fixed order.

/// Borrows what a part may read. A macro, because a method would borrow the part itself as well.
macro_rules! context {
    ($guardian:ident) => {
        $crate::guardian::context::Ctx {
            now: $guardian.now,
            settings: &$guardian.settings,
            records: &$guardian.records,
            incus: &$guardian.incus,
            ceph: &$guardian.ceph,
            members: &$guardian.members,
            book: &$guardian.book,
            came_later: &$guardian.came_later,
            fences: &$guardian.fences,
            lanes: &$guardian.lanes,
        }
    };
}

pub mod address_book;
mod alarm_log;
mod awaited;
mod breach_audit;
mod ceph_readings;
mod context;
mod disarm;
mod fences;
mod foreign_entries;
mod found;
mod gate;
mod history;
mod incus_readings;
mod inputs;
mod interfaces;
pub mod io;
mod journal;
mod lanes;
mod members;
mod new_clients;
mod placements;
mod plan_facts;
mod questions;
pub mod report;
mod restarts;
mod retirement;
mod returned;
mod schedule;
pub mod settings;
mod shared;
pub mod status;
pub mod sums;
mod sweep;
mod sweep_turns;
mod trail;
mod trigger;
mod waits;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fence::preconditions::GateClosed;
use crate::fence::{Fence, GUARDIAN};
use crate::guardian::address_book::{AddressBook, CameLater};
use crate::guardian::alarm_log::AlarmLog;
use crate::guardian::awaited::AwaitedSeals;
use crate::guardian::breach_audit::BreachAudit;
use crate::guardian::ceph_readings::{CephReadings, Sweep};
use crate::guardian::fences::{Fences, Grounds, StepContext};
use crate::guardian::foreign_entries::ForeignEntries;
use crate::guardian::found::FoundImages;
use crate::guardian::gate::Gate;
use crate::guardian::incus_readings::IncusReadings;
use crate::guardian::interfaces::Interfaces;
use crate::guardian::io::{Effect, Input, Now};
use crate::guardian::journal::Journal;
use crate::guardian::lanes::{Lane, Lanes};
use crate::guardian::members::MemberEvidence;
use crate::guardian::new_clients::NewClients;
use crate::guardian::placements::RefusedPlacements;
use crate::guardian::report::{Alarm, Level, Outcome, Report, Reports};
use crate::guardian::restarts::Restarts;
use crate::guardian::retirement::Retirement;
use crate::guardian::schedule::Schedule;
use crate::guardian::settings::Settings;
use crate::guardian::status::{Status, StatusContext};
use crate::guardian::sums::Sums;
use crate::guardian::sweep::SweepJudgement;
use crate::guardian::sweep_turns::SweepTurns;
use crate::guardian::trail::DueChange;
use crate::guardian::trigger::FenceTrigger;
use crate::guardian::waits::{Parts, Waits};
use crate::model::fence_id::FenceId;
use crate::model::incus_snapshot::IncusSnapshot;
use crate::model::member::Members;
use crate::model::osdmap::{Guarded, OsdMap};
use crate::model::overrides::Overrides;
use crate::model::record::{FenceState, Records};
use crate::model::sweep_part::{SweepPart, SweepSelection};
use crate::model::target::Target;
use crate::model::volume::{Expected, ImageName};
use crate::mutants::{self, Mutant};
use crate::rules::plan::Plan;
use crate::rules::refusal::Refusal;

/// One guardian that leads. A checkpoint has the fields of all parts at one level, as before there were parts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Guardian {
    settings: Settings,
    pub(crate) now: Now,
    /// What the ledger holds.
    records: Records,
    #[serde(flatten)]
    incus: IncusReadings,
    #[serde(flatten)]
    ceph: CephReadings,
    #[serde(flatten)]
    members: MemberEvidence,
    book: AddressBook,
    #[serde(default)]
    came_later: CameLater,
    #[serde(flatten)]
    interfaces: Interfaces,
    #[serde(flatten)]
    fences: Fences,
    #[serde(flatten)]
    lanes: Lanes,
    schedule: Schedule,
    #[serde(flatten)]
    journal: Journal,
    #[serde(flatten)]
    trigger: FenceTrigger,
    #[serde(rename = "desk")]
    gate: Gate,
    #[serde(default)]
    awaited: AwaitedSeals,
    #[serde(flatten)]
    sweep: SweepJudgement,
    #[serde(default)]
    sweep_turns: SweepTurns,
    #[serde(default)]
    found: FoundImages,
    #[serde(flatten)]
    new_clients: NewClients,
    #[serde(flatten)]
    breach_audit: BreachAudit,
    #[serde(flatten)]
    retirement: Retirement,
    #[serde(flatten)]
    restarts: Restarts,
    #[serde(rename = "not_placed")]
    placements: RefusedPlacements,
    others: ForeignEntries,
    #[serde(flatten)]
    waits: Waits,
    #[serde(flatten)]
    alarm_log: AlarmLog,
    /// Why this guardian no longer leads.
    deposed: Option<String>,
    /// Not in a checkpoint: they were reported before it was made.
    #[serde(skip)]
    reports: Reports,
}

impl Guardian {
    /// Starts from what the ledger holds.
    pub fn new(settings: Settings, records: Records, now: Now) -> Self {
        let before = records.gate.as_ref().map(|gate| gate.epoch).unwrap_or_default();
        let mut guardian = Self {
            settings,
            now,
            records: Records::default(),
            incus: IncusReadings::default(),
            ceph: CephReadings::default(),
            members: MemberEvidence::default(),
            book: AddressBook::of_records(records.members.clone()),
            came_later: CameLater::new(),
            interfaces: Interfaces::default(),
            fences: Fences::default(),
            lanes: Lanes::default(),
            schedule: Schedule::default(),
            journal: Journal::default(),
            trigger: FenceTrigger::default(),
            gate: Gate::new(before),
            awaited: AwaitedSeals::default(),
            sweep: SweepJudgement::default(),
            sweep_turns: SweepTurns::default(),
            found: FoundImages::default(),
            new_clients: NewClients::default(),
            breach_audit: BreachAudit::default(),
            retirement: Retirement::default(),
            restarts: Restarts::default(),
            placements: RefusedPlacements::default(),
            others: ForeignEntries::default(),
            waits: Waits::default(),
            alarm_log: AlarmLog::default(),
            deposed: None,
            reports: Reports::default(),
        };
        guardian.guard_what_was_proved(&records);
        guardian.hold(records);
        guardian
    }

    /// Takes over what the ledger holds.
    fn hold(&mut self, records: Records) {
        self.trigger.resume(self.now, &records, |id| self.fences.has(id));
        self.fences.resume(self.now, &self.settings, &records, &mut self.reports);
        self.records = records;
    }

    /// Takes other settings. The pools that readings have named stay guarded.
    pub fn reconfigure(&mut self, mut settings: Settings) {
        settings.policy.guarded.named.clone_from(&self.settings.policy.guarded.named);
        settings.policy.guarded.data.clone_from(&self.settings.policy.guarded.data);
        self.fences.guard(&settings.policy.guarded);
        self.settings = settings;
    }

    pub fn handle(&mut self, now: Now, input: Input) {
        self.now = now;
        let asked = self.lanes.end(now, &input);
        let reports = &mut self.reports;
        match input {
            Input::Tick => {}
            Input::Notice(notice) => self.handle_notice(notice),
            Input::View { began, view } => self.handle_view(began, view),
            Input::MemberState(name, state) => self.handle_state(&name, state, asked),
            Input::Answered(name) => self.members.handle_answer(asked, &name),
            Input::Networks(name, networks) => self.handle_networks(&name, networks),
            Input::Pinged(name, answered) => self.members.handle_ping(asked, name, answered),
            Input::Looked(world) => self.handle_look(world, asked),
            Input::Maps(maps) => self.handle_maps(maps),
            Input::Audit(id, removals) => self.handle_audit(&id, removals),
            Input::Swept { began, uses, unread, data_pools } => {
                let (asked, all_data) = self.sweep_turns.end(&data_pools, unread.is_empty());
                self.guard_data(all_data.as_ref().unwrap_or(&data_pools), all_data.is_some());
                self.ceph.handle_sweep(Sweep { began, ended: now.boot, uses, unread, asked });
                self.judge_sweep();
            }
            Input::Found { began, missing, unread } => {
                self.found.handle_found(now, began, missing, unread);
                self.judge_found();
                self.judge_sweep();
            }
            Input::Recorded(recorded) => self.handle_recorded(recorded),
            Input::Step(id, outcome) => self.handle_outcome(id, outcome),
            Input::Retired(id, sent) => self.retirement.handle_sent(now, &id, &sent, reports),
            Input::GatePut(failed) => {
                self.gate.handle_put(now, failed, reports);
                self.schedule.view = now.boot;
            }
            Input::GatePushed(pushed) => {
                if let Err(why) = pushed {
                    reports.log(Level::Warn, "gate-push-failed", None, why);
                }
                self.schedule.view = now.boot;
            }
            Input::LockBroken(lock, broken) => self.sweep.handle_lock_broken(&lock, broken, reports),
            Input::Started(id, started) => {
                self.restarts.handle_started(&id, started, reports);
                self.schedule.whole = now.boot + Duration::from_secs(2);
            }
            Input::Request(number, request) => self.handle_request(number, request),
            Input::Deposed(why) => {
                let text = format!("this guardian does not lead any more: {why}");
                reports.log(Level::Warn, "deposed", None, text);
                self.deposed = Some(why);
            }
        }
        self.settle();
    }

    /// Draws every conclusion that needs no effect. The order counts: a part uses what the parts before it concluded.
    fn settle(&mut self) {
        self.update_fences();
        self.others.update(context!(self));
        self.trigger.update(context!(self), &mut self.reports);
        self.plan_what_is_wanted();
        self.confirm_intents();
        self.awaited.update(context!(self), &self.trigger, &self.journal);
        self.placements.update(self.now);
        self.finish();
        self.waits.update(self.now.boot, self.parts().waits());
        let alarms = self.alarms();
        self.alarm_log.update(self.now, alarms, &mut self.reports);
    }

    fn update_fences(&mut self) {
        let ctx = context!(self);
        let state = ctx.gate_state();
        // Only a fence whose entries were lifted waits for its gate to be closed.
        let lifted = self.fences.all().filter(|fence| fence.is_lifted());
        let gates: BTreeMap<FenceId, GateClosed> =
            lifted.map(|fence| (fence.id().clone(), self.gate.closed(ctx, &state, fence))).collect();
        let boot_id = &self.settings.boot_id;
        for fence in self.fences.update(self.now, boot_id, &gates, &mut self.reports) {
            let (id, state) = (fence.id(), fence.record().state);
            let by_somebody = fence.record().breaches.last().and_then(|breach| breach.ended).is_none();
            if state == FenceState::Breached && by_somebody {
                self.breach_audit.begin(id.clone(), self.now.boot);
            }
            if matches!(state, FenceState::Breached | FenceState::Sealed)
                && self.breach_audit.begin_dating(fence)
            {
                self.schedule.read_maps();
            }
        }
    }

    fn plan_what_is_wanted(&mut self) {
        for (target, want) in
            self.trigger.ready(context!(self), &self.interfaces, &mut self.found, &mut self.reports)
        {
            let ctx = context!(self);
            let Some(plan) = trigger::plan_fence(ctx, &self.found, target.clone(), want.overrides) else {
                continue;
            };
            match plan {
                Ok(plan) => {
                    self.trigger.accept(&target);
                    let (records, ceph) = (&self.records, &self.ceph);
                    let begun = self.trigger.begin(self.now, records, ceph, &mut self.fences, plan, want);
                    let Some(fence) = begun else { continue };
                    let text = format!("{} intended: {}", fence.id(), fence.record().evidence.join("; "));
                    self.reports.log(Level::Info, "intended", fence.member(), text);
                }
                Err(reasons) => self.trigger.refuse(ctx, target, &want, reasons, &mut self.reports),
            }
        }
    }

    /// Judges each intent by what live members told since it was planned (INV-6).
    fn confirm_intents(&mut self) {
        let ctx = context!(self);
        let told = |fence: &&Fence| {
            let looked = |since| ctx.ceph.has_looked_since(since);
            let since = fence.confirms_since();
            since.is_some_and(|since| self.interfaces.not_told_since(ctx, since).is_empty())
                && fence.looks_since().is_none_or(looked)
        };
        let judge = |fence: &Fence| (fence.id().clone(), trigger::confirms(ctx, &self.found, fence));
        let judged: Vec<_> = ctx.fences.all().filter(told).map(judge).collect();
        for (id, holds) in judged {
            if let Some(fence) = self.fences.get_mut(&id) {
                fence.confirm(holds || mutants::is(Mutant::InterfacesNotAsked), self.now.boot);
            }
        }
    }

    /// Removes fences that are over, and answers the requests that waited for a seal or a release.
    fn finish(&mut self) {
        let (fences, incus) = (&self.fences, &self.incus);
        let is_member = |name: &str| incus.view().is_none_or(|view| view.members.contains_key(name));
        self.lanes.forget_failures(|id| fences.has(id), is_member);
        for fence in self.fences.finish(&self.records, &mut self.reports) {
            for entry in &fence.record().refused_by {
                let (id, whose) = (fence.id(), self.fences.whose(*entry));
                let text = format!("{id} released, and {entry} refuses its host still: {whose}");
                self.reports.log(Level::Warn, "still-refused", fence.member(), text);
            }
            if let Some(member) = fence.member() {
                self.members.end(member);
                self.restarts.handle_release(context!(self), member, &mut self.schedule);
            }
        }
    }

    /// The next thing to do; `None`: nothing now. The caller asks after each input until it gets `None`.
    pub fn next_effect(&mut self, now: Now) -> Option<Effect> {
        self.now = now;
        if self.deposed.is_some() && !mutants::is(Mutant::DeposedGoesOn) {
            return None;
        }
        let effect = self
            .next_record()
            .or_else(|| self.next_step())
            .or_else(|| self.next_gate_write())
            .or_else(|| self.breach_audit.next_effect(context!(self)))
            .or_else(|| self.retirement.next_effect(context!(self)))
            .or_else(|| self.sweep.next_effect(context!(self)))
            .or_else(|| self.next_reading())
            .or_else(|| self.gate.next_push(context!(self)))
            .or_else(|| self.next_question())
            .or_else(|| self.restarts.next_effect(context!(self), &mut self.schedule))?;
        self.lanes.begin(now, &effect);
        Some(effect)
    }

    /// The next write to the ledger.
    fn next_record(&mut self) -> Option<Effect> {
        let ctx = context!(self);
        if !ctx.may_begin(&Lane::Record) {
            return None;
        }
        let due = self.withdrawn();
        let ctx = context!(self);
        let due = due
            .or_else(|| self.trigger.due_change(ctx))
            .or_else(|| journal::due_fence(ctx))
            .or_else(|| self.gate.due_change(ctx, &self.found, &self.awaited))
            .or_else(|| journal::due_members(ctx))
            .or_else(|| self.journal.due_note(ctx))
            .or_else(|| disarm::due_end(ctx, &mut self.reports))
            .or_else(|| history::doubts_ended(ctx))
            .or_else(|| self.retirement.due_change(ctx))
            .or_else(|| history::forgotten(ctx))?;
        Some(self.journal.begin(due))
    }

    /// Withdraws a fence of which nothing was sent to Ceph, if its member came back or a live member has an address of it.
    fn withdrawn(&mut self) -> Option<DueChange> {
        let ctx = context!(self);
        let gone = |fence: &&Fence| fence.is_withdrawn(ctx.is_still_wanted(fence));
        let id = self.fences.all().find(gone).map(|fence| fence.id().clone())?;
        let mut fence = self.fences.remove(&id)?;
        self.trigger.handle_withdrawal(self.now, &self.records, &id);
        let is_lost = fence.member().is_none_or(|name| self.members.is_lost(name));
        if fence.is_confirmed() == Some(false) && (is_lost || fence.record().by != GUARDIAN) {
            let text =
                "by what members told since, it would be planned otherwise: it is planned again".to_owned();
            self.reports.log(Level::Info, "withdrawn", fence.member(), text.clone());
            self.trigger.plan_again(self.now, &mut fence);
            let changes = vec![history::undone(context!(self), fence.record().clone())];
            return Some(DueChange { changes, what: format!("{id} withdrawn"), why: text });
        }
        let text = "it is back: nothing was fenced".to_owned();
        self.reports.log(Level::Info, "withdrawn", fence.member(), text);
        for number in fence.take_requests() {
            let text = "the member came back before anything was sent: nothing was fenced".to_owned();
            self.reports.answer(number, Outcome::Failed(text));
        }
        let changes = vec![history::undone(context!(self), fence.record().clone())];
        Some(DueChange { changes, what: format!("{id} withdrawn"), why: "its member is back".to_owned() })
    }

    fn next_gate_write(&mut self) -> Option<Effect> {
        if self.journal.is_recording_gate() {
            return None;
        }
        self.gate.next_effect(context!(self), &self.found, &self.awaited, &mut self.reports)
    }

    /// The next step of a fence or release.
    fn next_step(&mut self) -> Option<Effect> {
        let ctx = context!(self);
        let state = ctx.gate_state();
        let grounds: Vec<Grounds> =
            self.fences.all().map(|fence| self.gate.grounds(ctx, &state, fence)).collect();
        let ctx = StepContext {
            now: self.now,
            clock: self.ceph.clock(self.now),
            policy: &self.settings.policy,
            records: &self.records,
            starting: &self.incus.starting,
            lanes: &self.lanes,
        };
        self.fences.next_effect(ctx, &grounds)
    }

    fn next_reading(&mut self) -> Option<Effect> {
        let ctx = context!(self);
        let look = self.trigger.needs_look(ctx)
            || self.awaited.is_look_due(ctx)
            || new_clients::look_is_due(ctx)
            || self.interfaces.wait_for_look(ctx);
        if look && ctx.may_begin(&Lane::Look) {
            return Some(Effect::Look);
        }
        if let Some((effect, whole)) = self.schedule.next_view(ctx) {
            self.incus.ask(whole);
            return Some(effect);
        }
        if self.schedule.begin_maps(ctx) {
            return Some(Effect::ReadMaps { after: self.breach_audit.begin_maps(ctx) });
        }
        self.schedule.next_sweep(ctx, &mut self.sweep_turns).or_else(|| self.found.next_effect(ctx))
    }

    fn next_question(&mut self) -> Option<Effect> {
        let ctx = context!(self);
        let effect = questions::next(ctx, &self.trigger, &self.interfaces)?;
        if let Effect::ReadNetworks(name) = &effect {
            self.interfaces.begin(ctx, name);
        }
        Some(effect)
    }

    /// When to send the next [`Input::Tick`], by the boot clock.
    pub fn wake_at(&self) -> Option<Duration> {
        let busy = self.members.is_any_lost()
            || !self.fences.is_empty()
            || !self.trigger.wants().is_empty()
            || self.incus.view().is_none();
        let pace = if busy { Duration::from_millis(100) } else { Duration::from_millis(500) };
        self.deposed.is_none().then(|| self.now.boot + pace)
    }

    /// The oldest report that was not drained yet.
    pub fn next_report(&mut self) -> Option<Report> {
        self.reports.next()
    }

    /// Everything that is wrong now, each with what an operator can do.
    pub fn alarms(&self) -> Vec<Alarm> {
        let ctx = context!(self);
        let mut alarms = self.members.alarms();
        alarms.extend(self.fences.alarms(&self.members));
        alarms.extend(restarts::alarms(ctx));
        alarms.extend(self.trigger.alarms(ctx));
        alarms.extend(self.ceph.alarms());
        alarms.extend(self.others.alarms(ctx, &self.trigger));
        alarms.extend(self.sweep.alarms());
        alarms.extend(self.book.alarms());
        alarms.extend(new_clients::alarms(ctx));
        alarms.extend(self.found.alarms(ctx));
        alarms.extend(self.waits.alarms(ctx, &self.trigger));
        alarms.extend(disarm::alarm(ctx));
        alarms.extend(gate::alarms(ctx));
        alarms.extend(self.placements.alarms());
        alarms.extend(self.journal.alarms());
        if self.settings.platform {
            alarms.extend(self.incus.alarms(self.now));
        }
        alarms.sort();
        alarms.dedup();
        alarms
    }

    fn parts(&self) -> Parts<'_> {
        let (gate, journal, trigger) = (&self.gate, &self.journal, &self.trigger);
        let (found, interfaces) = (&self.found, &self.interfaces);
        Parts { ctx: context!(self), gate, journal, trigger, found, interfaces }
    }

    pub fn status(&self, now: Now) -> Status {
        let context = StatusContext { parts: self.parts(), waits: &self.waits, others: &self.others };
        context.status(now, self.deposed.clone(), self.alarms())
    }

    /// Numbers for metrics.
    pub fn sums(&self) -> Sums {
        Sums::of(context!(self), self.sweep.conflicts(), self.new_clients.ghosts())
    }

    /// The state of each fence in force.
    pub fn fence_states(&self) -> impl Iterator<Item = (&FenceId, FenceState)> {
        self.fences.all().map(|fence| (fence.id(), fence.record().state))
    }

    /// Plans a fence by all that is known now, and changes nothing. `None` before the first look at Ceph.
    pub fn plan(&self, target: Target, overrides: Overrides) -> Option<Result<Plan, Vec<Refusal>>> {
        trigger::plan_fence(context!(self), &self.found, target, overrides)
    }

    /// What the guardian would do with this member without an operator now, and why, in sentences.
    pub fn why(&self, name: &str) -> Vec<String> {
        self.trigger.why(context!(self), &self.found, name)
    }

    /// Does the member answer the questions that were sent at or after `since`? `None` while that is unknown: no question was
    /// sent, or its time to answer is not over. A member that may be fenced is asked every second.
    pub fn answers_since(&self, member: &str, since: Duration) -> Option<bool> {
        context!(self).answers_since(member, since)
    }

    pub fn members(&self) -> Members {
        context!(self).addresses()
    }

    /// The fences that stand by the ledger: members by name, other fences by ID.
    pub fn held_fences(&self) -> Vec<String> {
        let held = self.records.fences.values().filter(|fence| fence.state.stands());
        held.map(|fence| fence.name().to_owned()).collect()
    }

    /// The last reading of Incus; where it leaves something out, an earlier reading counts.
    pub fn view(&self) -> Option<&Arc<IncusSnapshot>> {
        self.incus.view()
    }

    /// The pools that a seal covers and that sweeps read.
    pub fn guarded(&self) -> &Guarded {
        &self.settings.policy.guarded
    }

    /// The images that a sweep of this part reads.
    pub fn sweep_selection(&self, part: SweepPart) -> SweepSelection {
        sweep_turns::selection(context!(self), part)
    }

    /// Does the ledger say that there is a gate?
    pub fn knows_of_a_gate(&self) -> bool {
        self.records.gate.is_some()
    }

    /// How Incus names the Ceph cluster of this guardian.
    pub fn storage(&self) -> &str {
        &self.settings.storage
    }

    /// Images in this Ceph cluster that belong to instances, by the last listing of Incus.
    pub fn exclusive_images(&self) -> Vec<ImageName> {
        let exclusive = |expected: &Expected| matches!(expected, Expected::Exclusive { .. });
        let images = self.incus.images.iter().filter(|(_, expected)| exclusive(expected));
        images.map(|(image, _)| image.clone()).collect()
    }

    /// Every place that keeps an osdmap, always in the same order: checkpoints keep the maps apart.
    pub(crate) fn maps(&mut self) -> impl Iterator<Item = &mut Option<Arc<OsdMap>>> {
        std::iter::once(&mut self.ceph.map).chain(self.fences.maps())
    }
}
