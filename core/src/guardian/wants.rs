//! From reasons to fence, over a look at the storage, to a fence or to every reason why not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fence::{Fence, GUARDIAN};
use crate::guardian::Guardian;
use crate::guardian::gate::GateState;
use crate::guardian::report::{Level, Outcome, Report};
use crate::guardian::settings::{OnConflict, Trigger};
use crate::model::addr::{ClientAddr, Entry};
use crate::model::ceph_snapshot::{CephSnapshot, SeenAt};
use crate::model::operator_request::Request;
use crate::model::osdmap::OsdMap;
use crate::model::overrides::{Overrides, reason};
use crate::model::policy::minority;
use crate::model::record::{FenceRecord, FenceState};
use crate::model::target::Target;
use crate::rules::loss_evidence::LossEvidence;
use crate::rules::operator_request::is_named;
use crate::rules::plan::{self, KnownClients, Plan, plan};
use crate::rules::refusal::Refusal;

/// A fence that is to be planned at the next look.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct FenceCandidate {
    why: String,
    by: String,
    reason: Option<String>,
    #[serde(rename = "permits")]
    overrides: Overrides,
    requests: BTreeSet<u64>,
    since: Duration,
    /// When it was wanted first.
    wanted: Duration,
    /// When it had a plan with a host entry first: live members are asked for their interfaces then.
    #[serde(default)]
    planned: Option<Duration>,
}

impl FenceCandidate {
    /// Who wants it.
    pub(super) fn by(&self) -> &str {
        &self.by
    }

    /// Since when it waits for the interfaces of live members.
    pub(super) fn planned(&self) -> Option<Duration> {
        self.planned
    }

    /// Was the storage looked at since it is wanted?
    pub(super) fn is_looked_for(&self) -> bool {
        self.since.is_zero()
    }
}

/// A fence that was refused, and when it is to be planned again if it is still wanted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct RefusedFence {
    pub(super) reasons: Vec<Refusal>,
    again: Duration,
}

/// What a recorded fence was asked for.
pub(super) fn target_of(record: &FenceRecord) -> Target {
    match &record.member {
        Some(name) => Target::Member(name.clone()),
        None => Target::Addresses(record.entries.keys().copied().collect()),
    }
}

/// Does an entry of an intended fence stand that did not stand so before?
pub(super) fn begun(fence: &FenceRecord, map: &OsdMap) -> bool {
    fence.entries.iter().any(|(entry, stood)| {
        let until = map.blocklist.until(*entry);
        until.is_some() && until != *stood
    })
}

/// Between two plans of a fence that is refused.
const AGAIN: Duration = Duration::from_secs(5);

impl Guardian {
    /// Members that are about to be healed, by the evidence, and why it says so.
    pub(super) fn about_to_be_healed(&self) -> Vec<(Target, String)> {
        let Some(view) = &self.view else { return Vec::new() };
        if self.settings.trigger == Trigger::Manual || !self.view_is_fresh() || !self.doubtful().is_empty() {
            return Vec::new();
        }
        let guarded = self.gate_state() == GateState::Installed;
        let mut wanted = Vec::new();
        for (name, evidence) in &self.evidence {
            let Some(member) = view.members.get(name) else { continue };
            // INV-6: one that answers is not lost, whatever its cluster says.
            if !self.is_silent(name) {
                continue;
            }
            let why = if guarded {
                evidence.with_gate(self.now.boot)
            } else {
                evidence.without_gate(member, &view.thresholds, self.settings.lead, self.now.boot)
            };
            wanted.extend(why.map(|why| (Target::Member(name.clone()), why)));
        }
        wanted
    }

    /// Members that are about to be healed are to be fenced.
    pub(super) fn want_what_is_lost(&mut self) {
        let wanted = self.about_to_be_healed();
        let lost = |name: &String| self.evidence.get(name).is_some_and(LossEvidence::is_lost);
        self.refused.retain(|target, _| match target {
            Target::Member(name) => lost(name),
            Target::Addresses(_) => false,
        });
        for (target, why) in wanted {
            self.want_by_itself(target, why);
        }
    }

    /// Members that look lost and are not fenced, if they are more than a minority: a cluster that lost so many has no
    /// quorum, so it is the view that is wrong. Incus shows this for seconds when it had no leader for a while: the
    /// heartbeats of all are old until the next ones are written (docs/facts/incus.md#healing).
    pub(super) fn doubtful(&self) -> Vec<&str> {
        let Some(view) = &self.view else { return Vec::new() };
        let lost = |name: &&String| {
            self.evidence.get(*name).is_some_and(LossEvidence::is_lost) && self.fence_of(name).is_none()
        };
        let lost: Vec<&str> = view.members.keys().filter(lost).map(String::as_str).collect();
        if lost.len() > minority(view.members.len()) { lost } else { Vec::new() }
    }

    /// Clients all of whose uses are stale, in this sweep and the one before.
    pub(super) fn want_stale(&mut self, stale: &BTreeSet<ClientAddr>) {
        let twice: BTreeSet<Entry> =
            stale.intersection(&self.stale_before).copied().map(Entry::Client).collect();
        self.stale_before.clone_from(stale);
        match self.settings.guard.on_conflict {
            OnConflict::FenceStale if !twice.is_empty() => {
                let why = "every image it uses belongs to instances that are placed elsewhere".to_owned();
                self.want_by_itself(Target::Addresses(twice), why);
            }
            OnConflict::FenceStale | OnConflict::Alarm => {}
        }
    }

    fn want_by_itself(&mut self, target: Target, why: String) {
        let now = self.now.boot;
        let held = match &target {
            Target::Member(name) => self.fence_of(name).is_some(),
            Target::Addresses(entries) => self
                .fences
                .values()
                .any(|fence| entries.iter().all(|entry| fence.record().entries.contains_key(entry))),
        };
        let waits = self.refused.get(&target).is_some_and(|refused| now < refused.again);
        let cooling = self.disarmed().is_some()
            || !self.cools_down().is_zero()
            || self.wants.values().any(|want| want.by == GUARDIAN);
        if held || waits || cooling || self.wants.contains_key(&target) {
            return;
        }
        let name = match &target {
            Target::Member(name) => Some(name.clone()),
            Target::Addresses(_) => None,
        };
        // What was refused is planned again and again; the alarm says so meanwhile.
        if !self.refused.contains_key(&target) {
            self.log(Level::Info, "suspect", name, format!("to be fenced: {why}"));
        }
        let (by, overrides, requests) = (GUARDIAN.to_owned(), Overrides::default(), BTreeSet::new());
        self.want(
            target,
            FenceCandidate {
                why,
                by,
                reason: None,
                overrides,
                requests,
                since: now,
                wanted: now,
                planned: None,
            },
        );
    }

    /// For how long nobody else is fenced without an operator: several members lost within moments look like a fault of
    /// the view rather than of the members.
    pub(super) fn cools_down(&self) -> Duration {
        let until = self.last_fence.map_or(Duration::ZERO, |last| last + self.settings.cool_down);
        until.saturating_sub(self.now.boot)
    }

    /// A guardian that died has recorded the intent.
    pub(super) fn want_as_intended(&mut self, record: &FenceRecord) {
        let target = target_of(record);
        let why = record.evidence.first().cloned().unwrap_or_default();
        let (by, requests, since) = (record.by.clone(), BTreeSet::new(), self.now.boot);
        let reason = record.reason.clone();
        let overrides = record.overrides;
        self.want(
            target,
            FenceCandidate { why, by, reason, overrides, requests, since, wanted: since, planned: None },
        );
    }

    /// What waits already goes on as well, and what it permits: in the words of who went over the brake or a doubt.
    fn want(&mut self, target: Target, mut want: FenceCandidate) {
        if let Some(before) = self.wants.remove(&target) {
            if (before.overrides.any_rule() && !want.overrides.any_rule()) || want.by == GUARDIAN {
                (want.why, want.by, want.reason) = (before.why, before.by, before.reason);
            }
            want.overrides = want.overrides.and(before.overrides);
            want.wanted = before.wanted;
            want.requests.extend(before.requests);
        }
        self.wants.insert(target, want);
    }

    pub(super) fn request(&mut self, number: u64, request: Request) {
        match request {
            Request::Fence { overrides, reason: why, .. }
                if overrides.any_rule() && reason(why.as_deref()).is_none() =>
            {
                self.refuse(number, Refusal::NoReason { flags: overrides.flags() });
            }
            Request::Fence { target, overrides, reason, by } => {
                self.want_by_request(number, target, overrides, reason, by);
            }
            Request::Note { what, reason, by } => self.note_what(number, &what, reason, &by),
            Request::Disarm { until, reason, by } => self.ask_to_disarm(number, until, reason, by),
            Request::Arm { reason, by } => self.ask_to_arm(number, reason, &by),
            Request::Release { assert_powered_off: true, reason: why, .. }
                if reason(why.as_deref()).is_none() =>
            {
                self.refuse(number, Refusal::NoReason { flags: vec!["--assert-powered-off".to_owned()] });
            }
            Request::Release { fence, since, assert_powered_off, reason, by } => {
                let meant = |fence: &Fence| since.is_none_or(|since| since == fence.record().since);
                let named =
                    self.fences.values_mut().find(|held| is_named(held.record(), &fence) && meant(held));
                let Some(fence) = named else {
                    let name = |fence: &Fence| fence.record().name().to_owned();
                    let held = self.fences.values().map(name).collect();
                    return self.refuse(number, Refusal::NotHeld { fence, held });
                };
                if assert_powered_off {
                    let why = reason.unwrap_or_default();
                    fence.await_answer([number]);
                    fence.let_go(by, format!("asserted powered off: {why}"));
                } else if fence.release().is_some() {
                    fence.await_answer([number]);
                } else {
                    let what = fence.record().name().to_owned();
                    let why = self.returned.get(&what).map(ToString::to_string);
                    let state = fence.record().state.to_string();
                    self.refuse(number, Refusal::NotProved { what, state, why });
                }
            }
        }
    }

    pub(super) fn refuse(&mut self, number: u64, refusal: Refusal) {
        self.reports.push_back(Report::Answer(number, Outcome::Refused(vec![refusal])));
    }

    /// An operator wants it.
    pub(super) fn want_by_request(
        &mut self,
        number: u64,
        target: Target,
        overrides: Overrides,
        reason: Option<String>,
        by: String,
    ) {
        if let Target::Member(name) = &target
            && let Some(id) = self.fence_of(name).map(|fence| fence.id().clone())
            && let Some(fence) = self.fences.get_mut(&id)
        {
            if fence.release().is_some() {
                return self.refuse(number, Refusal::Releasing { member: name.clone() });
            }
            fence.await_answer([number]);
            fence.accept(overrides);
            fence.take_on(by, reason);
            return;
        }
        let why = reason.clone().unwrap_or_else(|| "an operator asked for it".to_owned());
        let (requests, since) = (BTreeSet::from([number]), self.now.boot);
        self.want(
            target,
            FenceCandidate { why, by, reason, overrides, requests, since, wanted: since, planned: None },
        );
    }

    /// Is a look needed, because something wanted is newer than the last one? What waits for something else needs no
    /// second one.
    pub(super) fn needs_look(&self) -> bool {
        self.wants.values().any(|want| !want.since.is_zero()) || self.world.is_none()
    }

    /// The storage was looked at.
    pub(super) fn looked(&mut self, world: Result<CephSnapshot, String>, began: Duration) {
        match world {
            Ok(world) => {
                self.note_map(Arc::new(world.map.clone()));
                self.guard_data(&world.data_pools, false);
                for (name, evidence) in &mut self.evidence {
                    let record = self.book.members.get(name);
                    let seen = |ip| record.is_some_and(|record| record.addresses.contains_key(ip));
                    if world.clients.keys().any(|client| seen(&client.ip)) {
                        evidence.clients_seen = evidence.clients_seen.max(Some(began));
                    }
                }
                let before = self.world.replace(world).map(|before| before.clients).unwrap_or_default();
                (self.looked_at, self.look_failed) = (Some(began), None);
                self.judge_addresses();
                self.judge_beside();
                self.chase(&before);
                self.lift_ghosts();
                for want in self.wants.values_mut() {
                    // A want that came while the storage was looked at is served by the next look.
                    want.since = if want.since <= began { Duration::ZERO } else { want.since };
                }
            }
            Err(why) => {
                self.look_failed = Some(why);
            }
        }
    }

    pub(super) fn plan_what_is_wanted(&mut self) {
        self.forget_what_is_disarmed();
        let ready: Vec<Target> = self
            .wants
            .iter()
            .filter(|(_, want)| want.since.is_zero() && self.may_judge_reach(want.wanted))
            .filter(|(_, want)| want.planned.is_none_or(|since| self.not_told_since(since).is_empty()))
            .map(|(target, _)| target.clone())
            .collect();
        for target in ready {
            if !self.may_begin_by_itself(&target) {
                continue;
            }
            let Some(want) = self.wants.remove(&target) else { continue };
            self.plan_one(target, want);
        }
    }

    /// INV-6: a fence that no operator asked for and no guardian began waits until the place of the images is known.
    fn may_begin_by_itself(&mut self, target: &Target) -> bool {
        let Target::Member(name) = target else { return true };
        let automatic = self.wants.get(target).is_some_and(|want| want.by == GUARDIAN);
        !automatic || self.is_begun(target) || self.may_judge_place(name)
    }

    /// `world` as [`Guardian::with_memory`] makes it.
    fn plan_request(&self, target: Target, overrides: Overrides, world: &CephSnapshot) -> plan::PlanRequest {
        let known = match &target {
            Target::Member(name) => self.known_of(name, world),
            Target::Addresses(_) => KnownClients::default(),
        };
        let recorded = self.records.fences.values().flat_map(|fence| fence.in_doubt.clone());
        let deciding = self.fences.values().flat_map(|fence| fence.record().in_doubt.clone());
        let in_doubt = recorded.chain(deciding).collect();
        let held = self.fences.values().filter_map(Fence::member).map(str::to_owned).collect();
        let reachable = if self.is_begun(&target) { BTreeMap::new() } else { self.reachable() };
        plan::PlanRequest { target, overrides, in_doubt, held, reachable, known }
    }

    /// What a fence would be, by all that is known now. Changes nothing. `None` before the storage was looked at.
    pub fn plan(&self, target: Target, overrides: Overrides) -> Option<Result<Plan, Vec<Refusal>>> {
        let world = self.with_memory(self.world.clone()?);
        let request = self.plan_request(target, overrides, &world);
        Some(plan(&request, &self.members(), &world, &self.settings.policy))
    }

    fn plan_one(&mut self, target: Target, mut want: FenceCandidate) {
        let Some(world) = self.world.clone().map(|world| self.with_memory(world)) else { return };
        let request = self.plan_request(target.clone(), want.overrides, &world);
        match plan(&request, &self.members(), &world, &self.settings.policy) {
            Ok(mut plan) => {
                self.refused.remove(&target);
                if let Some(fence) = self.standing_for(&plan.fence) {
                    fence.await_answer(want.requests);
                    fence.accept(want.overrides);
                    return;
                }
                if want.planned.is_none() && plan.entries.iter().copied().any(Entry::is_host) {
                    want.planned = Some(self.now.boot);
                    if !self.not_told_since(self.now.boot).is_empty() {
                        self.wants.insert(target, want);
                        return;
                    }
                }
                self.last_fence = Some(self.now.boot);
                let (fence, before) = self.identify(&plan.fence);
                plan.fence = fence;
                // An older guardian recorded it in the place of an earlier fence, whose clients stay refused.
                let kept = before.iter().flat_map(|before| before.entries.keys());
                plan.entries.extend(kept.filter(|entry| !entry.is_host()));
                let why = if plan.overrides.any_rule() {
                    format!("{} goes over {}: {}", want.by, plan.overrides.words(), want.why)
                } else {
                    want.why
                };
                let mut fence = Fence::new(plan, why, want.by, want.reason, self.now);
                fence.await_answer(want.requests);
                fence.note_standing(&world.map.blocklist);
                if let Some(before) = &before {
                    fence.take_over(before);
                }
                let text = format!("{} intended: {}", fence.id(), fence.record().evidence.join("; "));
                self.log(Level::Info, "intended", fence.member().map(str::to_owned), text);
                self.fences.insert(fence.id().clone(), fence);
            }
            Err(reasons) => {
                let told = self.refused.get(&target).is_some_and(|refused| refused.reasons == reasons);
                let name = match &target {
                    Target::Member(name) => Some(name.clone()),
                    Target::Addresses(_) => None,
                };
                if !told {
                    let text = reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                    self.log(Level::Error, "refused", name, format!("not fenced: {text}"));
                }
                for number in &want.requests {
                    self.reports.push_back(Report::Answer(*number, Outcome::Refused(reasons.clone())));
                }
                // Of a member that is not lost only whoever asked wants to know.
                let lost = |name: &String| self.evidence.get(name).is_some_and(LossEvidence::is_lost);
                if !matches!(&target, Target::Member(name) if !lost(name)) {
                    self.refused.insert(target, RefusedFence { reasons, again: self.now.boot + AGAIN });
                }
            }
        }
    }

    /// What nobody asked for and nobody began is not begun while an operator has disarmed the guardians.
    fn forget_what_is_disarmed(&mut self) {
        if self.disarmed().is_none() {
            return;
        }
        let automatic = self.wants.iter().filter(|(_, want)| want.by == GUARDIAN);
        let waits = automatic.map(|(target, _)| target).filter(|target| !self.is_begun(target));
        for target in waits.cloned().collect::<Vec<_>>() {
            self.wants.remove(&target);
        }
    }

    /// Did a guardian that died send entries for it? Then there is no way back but a release.
    fn is_begun(&self, target: &Target) -> bool {
        let Some(map) = &self.map else { return false };
        let mut intended = self.records.fences.values().filter(|fence| fence.state == FenceState::Intended);
        intended.any(|fence| target_of(fence) == *target && begun(fence, map))
    }

    /// What was seen of members while they were healthy: a lost one may be seen by nobody.
    fn with_memory(&self, mut world: CephSnapshot) -> CephSnapshot {
        for client in self.book.members.values().flat_map(|member| &member.clients) {
            world.clients.entry(*client).or_default().insert(SeenAt::Remembered);
        }
        world
    }
}
