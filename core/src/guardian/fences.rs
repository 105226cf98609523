//! The fences in force, and how they depend on each other: two may need the same entry, and some steps serve all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::fence::Fence;
use crate::fence::preconditions::{GateClosed, Preconditions};
use crate::fence::step::StepOutcome;
use crate::guardian::io::Effect;
use crate::guardian::lanes::{Lane, Lanes};
use crate::guardian::members::{MemberEvidence, ways_back};
use crate::guardian::report::{Alarm, Level, Outcome, Reports};
use crate::guardian::settings::Settings;
use crate::guardian::shared::SharedSteps;
use crate::model::addr::Entry;
use crate::model::fence_id::{FenceContent, FenceId};
use crate::model::listed::Listed;
use crate::model::now::Now;
use crate::model::osdmap::{Guarded, OsdMap};
use crate::model::overrides::Overrides;
use crate::model::policy::Policy;
use crate::model::record::{Breach, FenceRecord, FenceState, Records};
use crate::model::target::Target;
use crate::rules::operator_request::is_named;
use crate::rules::refusal::Refusal;

/// Each fence in force.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Fences {
    #[serde(rename = "cases")]
    fences: BTreeMap<FenceId, Fence>,
    #[serde(default)]
    shared: SharedSteps,
}

pub(super) struct FenceRequest {
    pub(super) number: u64,
    pub(super) target: Target,
    pub(super) overrides: Overrides,
    pub(super) reason: Option<String>,
    pub(super) by: String,
}

pub(super) struct ReleaseRequest {
    pub(super) number: u64,
    /// A member, or the ID of a fence.
    pub(super) fence: String,
    /// Which of several fences of the same ID.
    pub(super) since: Option<Timestamp>,
    pub(super) assert_powered_off: bool,
    pub(super) reason: Option<String>,
    pub(super) by: String,
}

/// The preconditions of a fence that the fence itself does not know.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grounds {
    pub(super) still_wanted: Option<bool>,
    pub(super) gate_closed: GateClosed,
    /// The operations that could start an instance are known, or do not count for this fence.
    pub(super) starting_known: bool,
}

/// What decides the next step, beside the fence itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepContext<'a> {
    pub(super) now: Now,
    /// The monitors' clock, by which entries end.
    pub(super) clock: Timestamp,
    pub(super) policy: &'a Policy,
    pub(super) records: &'a Records,
    pub(super) starting: &'a BTreeSet<String>,
    pub(super) lanes: &'a Lanes,
}

impl<'a> StepContext<'a> {
    pub(super) fn preconditions(&self, fence: &Fence, grounds: Grounds) -> Preconditions<'a> {
        Preconditions {
            now: self.now,
            storage: self.clock,
            recorded: self.records.fences.get(fence.id()),
            still_wanted: grounds.still_wanted,
            gate_closed: grounds.gate_closed,
            starting: grounds.starting_known.then_some(self.starting),
        }
    }
}

impl Fences {
    pub(super) fn all(&self) -> impl Iterator<Item = &Fence> + Clone {
        self.fences.values()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.fences.is_empty()
    }

    pub(super) fn has(&self, id: &FenceId) -> bool {
        self.fences.contains_key(id)
    }

    pub(super) fn get(&self, id: &FenceId) -> Option<&Fence> {
        self.fences.get(id)
    }

    pub(super) fn get_mut(&mut self, id: &FenceId) -> Option<&mut Fence> {
        self.fences.get_mut(id)
    }

    pub(super) fn insert(&mut self, fence: Fence) -> Option<&mut Fence> {
        let id = fence.id().clone();
        self.fences.insert(id.clone(), fence);
        self.fences.get_mut(&id)
    }

    pub(super) fn remove(&mut self, id: &FenceId) -> Option<Fence> {
        self.fences.remove(id)
    }

    pub(super) fn of(&self, member: &str) -> Option<&Fence> {
        self.fences.values().find(|fence| fence.member() == Some(member))
    }

    /// Where maps are kept, always in the same order.
    pub(super) fn maps(&mut self) -> impl Iterator<Item = &mut Option<Arc<OsdMap>>> {
        self.fences.values_mut().flat_map(Fence::maps)
    }

    /// Takes over each fence in force that the ledger holds. One that is only intended may have no entry yet: it is planned
    /// again, by today's rules and daemons.
    pub(super) fn resume(&mut self, now: Now, settings: &Settings, records: &Records, reports: &mut Reports) {
        for record in records.fences.values() {
            let begun = record.state.is_in_force() && record.state != FenceState::Intended;
            if !begun || self.fences.contains_key(&record.id) {
                continue;
            }
            let Some(mut fence) = Fence::resume(record.clone(), &settings.policy) else {
                reports.log(Level::Error, "unreadable-fence", None, format!("{} is no fence ID", record.id));
                continue;
            };
            if record.state == FenceState::Sealed {
                let named = records.gate.iter().flat_map(|gate| &gate.open);
                let open = named.into_iter().any(|named| Some(named) == record.member.as_ref());
                fence.take_over_seal(&settings.boot_id, now.boot, open);
            }
            self.insert(fence);
        }
    }

    pub(super) fn guard(&mut self, guarded: &Guarded) {
        self.fences.values_mut().for_each(|fence| fence.guard(guarded));
    }

    /// Shows a map to every fence: a fence may not rely on a map that it has not checked.
    pub(super) fn observe(&mut self, now: Now, policy: &Policy, map: &Arc<OsdMap>) {
        let required_until = policy.required_until(map.clock(now.wall));
        self.fences.values_mut().for_each(|fence| fence.observe(map, required_until));
    }

    /// Hands the answer of a step to its fence, or to all fences that waited for the same step.
    pub(super) fn handle_outcome(&mut self, id: FenceId, outcome: StepOutcome) {
        let outcomes: Vec<(FenceId, StepOutcome)> = match outcome {
            StepOutcome::Map(map) => {
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

    /// Lets each fence draw its conclusions, and returns the fences whose state changed. `gates`: whether the gate is closed,
    /// for the fences that wait for that.
    pub(super) fn update(
        &mut self,
        now: Now,
        boot_id: &str,
        gates: &BTreeMap<FenceId, GateClosed>,
        reports: &mut Reports,
    ) -> Vec<&Fence> {
        let mut changed = Vec::new();
        for fence in self.fences.values_mut() {
            let gate = gates.get(fence.id()).copied().unwrap_or(GateClosed::Yes);
            let before = fence.record().state;
            fence.expire(now.boot);
            fence.update(now, boot_id, gate);
            if fence.record().state != before {
                tell_change(now, fence, before, reports);
                changed.push(&*fence);
            }
        }
        changed
    }

    /// The next step of a fence or release; `grounds` of each fence, in their order.
    pub(super) fn next_effect(&mut self, ctx: StepContext<'_>, grounds: &[Grounds]) -> Option<Effect> {
        let ids: Vec<FenceId> = self.fences.keys().cloned().collect();
        for (id, grounds) in ids.iter().zip(grounds) {
            let kept = self.fences.get(id).filter(|fence| fence.may_remove());
            let kept = kept.map(|fence| self.rested_on(fence, ctx.records));
            let Some(fence) = self.fences.get_mut(id) else { continue };
            if let Some(kept) = kept {
                fence.keep(&kept);
            }
            let ground = ctx.preconditions(fence, *grounds);
            let step = fence.next_step(&ground, ctx.policy, |step| {
                let lane = Lane::of_step(id, step);
                // Those that serve many fences rest together.
                matches!(lane, Lane::Map | Lane::Barrier) || ctx.lanes.may_begin(ctx.now, &lane)
            });
            let wrap = if fence.is_releasing() { Effect::Release } else { Effect::Fence };
            let effect = step.map(|step| wrap(id.clone(), step));
            if let Some(effect) = effect.and_then(|effect| self.shared.join(effect)) {
                return Some(effect);
            }
        }
        let rests = |lane| ctx.lanes.rests(ctx.now, &lane);
        self.shared.next(!rests(Lane::Map), !rests(Lane::Barrier))
    }

    /// Entries that other fences need: the release of this fence leaves them (INV-3). Of two fences that are released at the
    /// same time, the one with the later ID removes the entries they share.
    fn rested_on(&self, fence: &Fence, records: &Records) -> BTreeSet<Entry> {
        let others = self.fences.values().filter(|other| other.id() != fence.id());
        let others = others
            .filter(|other| !(other.is_releasing() && fence.is_releasing() && fence.id() > other.id()))
            .flat_map(Fence::rests_on);
        let recorded = records.fences.values().filter(|record| {
            record.id != *fence.id() && record.state.is_in_force() && !self.fences.contains_key(&record.id)
        });
        others.chain(recorded.flat_map(|record| record.entries.keys().copied())).collect()
    }

    /// An intent that a crashed guardian recorded for the same member and entries keeps its ID; any other fence gets a new
    /// ID.
    pub(super) fn identify(
        &self,
        now: Now,
        records: &Records,
        planned: &FenceContent,
    ) -> (FenceContent, Option<FenceRecord>) {
        let read = |id: &FenceId| id.read().ok();
        let left = records.fences.values().find(|record| {
            record.state == FenceState::Intended
                && !self.fences.contains_key(&record.id)
                && read(&record.id).is_some_and(|id| id.is_same_target(planned))
        });
        if let Some(id) = left.and_then(|left| read(&left.id)) {
            return (id, left.cloned());
        }
        let now = u64::try_from(now.wall.as_millisecond()).unwrap_or_default();
        let known = records.fences.keys().chain(self.fences.keys());
        let last = known.filter_map(|id| read(id)?.made).max();
        let made = Some(last.map_or(now, |last| now.max(last.saturating_add(1))));
        (FenceContent { made, ..planned.clone() }, None)
    }

    /// A fence for the same member or the same entries that is not being released.
    pub(super) fn standing_for(&mut self, planned: &FenceContent) -> Option<&mut Fence> {
        self.fences.values_mut().find(|fence| is_standing_for(fence, planned))
    }

    /// An operator takes over the fence of this member; `None`: the member has no fence.
    pub(super) fn handle_fence_request(&mut self, request: &FenceRequest) -> Option<Result<(), Refusal>> {
        let Target::Member(name) = &request.target else { return None };
        let fence = self.fences.values_mut().find(|fence| fence.member() == Some(name))?;
        if fence.release().is_some() {
            return Some(Err(Refusal::Releasing { member: name.clone() }));
        }
        fence.await_answer([request.number]);
        fence.accept(request.overrides);
        fence.take_on(request.by.clone(), request.reason.clone());
        Some(Ok(()))
    }

    /// An operator asks for the release of a member or of addresses.
    pub(super) fn handle_release_request(
        &mut self,
        request: ReleaseRequest,
        members: &MemberEvidence,
    ) -> Result<(), Refusal> {
        let ReleaseRequest { number, fence, since, assert_powered_off, reason, by } = request;
        let meant = |held: &Fence| since.is_none_or(|since| since == held.record().since);
        let named = self.fences.values_mut().find(|held| is_named(held.record(), &fence) && meant(held));
        let Some(held) = named else {
            let held = self.fences.values().map(|held| held.record().name().to_owned()).collect();
            return Err(Refusal::NotHeld { fence, held });
        };
        if assert_powered_off {
            let why = reason.unwrap_or_default();
            held.await_answer([number]);
            held.let_go(by, format!("asserted powered off: {why}"));
        } else if held.release().is_some() {
            held.await_answer([number]);
        } else {
            let what = held.record().name().to_owned();
            let why = members.returned(&what).map(ToString::to_string);
            return Err(Refusal::NotProved { state: held.record().state.to_string(), what, why });
        }
        Ok(())
    }

    /// Removes and returns the fences that are over, and answers requests.
    pub(super) fn finish(&mut self, records: &Records, reports: &mut Reports) -> Vec<Fence> {
        let mut over = Vec::new();
        for (id, fence) in &mut self.fences {
            let recorded = records.fences.get(id);
            // INV-8: a seal is reported only once the ledger has it.
            let proofs = &fence.record().proofs;
            let sealed = recorded
                .is_some_and(|record| record.state == FenceState::Sealed && record.proofs == *proofs)
                && fence.record().state == FenceState::Sealed;
            if fence.is_over(recorded) {
                over.push(id.clone());
                for number in fence.take_requests() {
                    reports.answer(number, Outcome::Released(Box::new(fence.record().clone())));
                }
            } else if sealed && fence.is_proved() && fence.release().is_none() {
                for number in fence.take_requests() {
                    let outcome = Outcome::Sealed(Box::new(fence.record().clone()), fence.proofs());
                    reports.answer(number, outcome);
                }
            }
        }
        over.iter().filter_map(|id| self.fences.remove(id)).collect()
    }

    /// Troubles of the fences themselves, and of members that came back without a reboot.
    pub(super) fn alarms(&self, members: &MemberEvidence) -> Vec<Alarm> {
        let mut alarms = Vec::new();
        for fence in self.fences.values() {
            let Some(name) = fence.member() else { continue };
            let mut alarm = |code, text: String, advice| {
                alarms.push(Alarm::new(code, Some(name), text, advice));
            };
            if fence.record().state == FenceState::Breached {
                let ended = fence.record().breaches.last().and_then(|breach| breach.ended);
                let (text, advice) = match ended {
                    None => ("was removed".to_owned(), "who did it is told as soon as it is known"),
                    Some(end) => {
                        (format!("ended at {end} by the monitors' clock"), "is that clock right? ceph status")
                    }
                };
                let text = format!("an entry of its fence {text}; it is being re-asserted");
                alarm("breached", text, vec![advice.to_owned()]);
            }
            if let Some(last) = fence.record().removals.last() {
                let count = fence.record().removals.len();
                let text = format!("an entry of its fence was removed, {count} times; last, {last}");
                alarm("tampered", text, vec![last.advice()]);
            }
            if let Some(why) = fence.trouble() {
                alarm("fence-trouble", why.to_owned(), Vec::new());
            }
            if let Some(not) = members.returned(name) {
                alarm("returned-stale", not.to_string(), ways_back(name, not));
            }
        }
        alarms
    }

    /// Who needs an entry that still stands after a release, and how to remove it.
    pub(super) fn whose(&self, listed: Listed) -> String {
        let rests =
            |fence: &&Fence| listed.entry().is_some_and(|entry| fence.record().entries.contains_key(&entry));
        self.fences.values().find(rests).map_or_else(
            || format!("it is nobody's here; if nobody needs it: {}", listed.removal()),
            |fence| format!("fence {} rests on it: rbd-guardian release --fence {0}", fence.id()),
        )
    }
}

fn is_standing_for(fence: &Fence, planned: &FenceContent) -> bool {
    fence.release().is_none() && fence.target().is_same_target(planned)
}

/// When the newest fence except this one was recorded, also by another guardian: the cool-down counts from it. The wall
/// clocks of guardians differ by less than a cool-down.
pub(super) fn last_recorded(now: Now, records: &Records, but: Option<&FenceId>) -> Option<Duration> {
    let others = records.fences.values().filter(|fence| Some(&fence.id) != but);
    let since = others.map(|fence| fence.since).max()?;
    let age = Duration::try_from(now.wall.duration_since(since)).unwrap_or_default();
    now.boot.checked_sub(age)
}

/// Logs that the state of a fence changed.
fn tell_change(now: Now, fence: &Fence, before: FenceState, reports: &mut Reports) {
    let after = fence.record().state;
    let level = if after == FenceState::Breached { Level::Error } else { Level::Info };
    let pending = fence.pending();
    let breach = fence.record().breaches.last();
    let text = match after {
        FenceState::Breached => {
            let gone = breach.map_or_else(String::new, |breach| {
                let held = breach.held.map_or_else(String::new, |held| format!("held in {held}, "));
                format!(" (osdmap epochs: {held}not in {})", breach.gone)
            });
            let how = breach.and_then(|breach| breach.ended).map_or_else(
                || "somebody removed an entry of it".to_owned(),
                |end| format!("an entry of it ended at {end} by the monitors' clock"),
            );
            format!("{how}{gone}: writes may have been accepted; it is being re-asserted")
        }
        FenceState::Pending => format!("waiting for {} PGs: {}", pending.len(), pending.join(" ")),
        FenceState::Sealed => {
            let over = |breach: &&Breach| breach.sealed == Some(now.wall);
            let lifted = breach.filter(over).map_or_else(String::new, |breach| {
                let again = breach.committed.unwrap_or_default();
                format!("; it was lifted from osdmap epoch {} to {again}", breach.gone)
            });
            format!("every PG of every guarded pool refuses it{lifted}")
        }
        FenceState::Intended | FenceState::Committed | FenceState::Releasing | FenceState::Released => {
            format!("was {before}")
        }
    };
    reports.log(level, after.word(), fence.member(), format!("{} {after}: {text}", fence.id()));
}
