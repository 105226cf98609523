//! From reasons to fence, over a look at the storage, to a case or to every reason why not.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::case::{Case, GUARDIAN, Releasing};
use super::evidence::Evidence;
use super::gate::GateState;
use super::io::Request;
use super::report::{Level, Outcome, Report};
use super::settings::{OnConflict, Trigger};
use super::{Guardian, Lane};
use crate::domain::addr::{ClientAddr, Entry};
use crate::domain::plan::{self, Target, plan};
use crate::domain::policy::minority;
use crate::domain::record::FenceRecord;
use crate::domain::refusal::Refusal;
use crate::domain::request::is_named;
use crate::domain::world::{SeenAt, World};

/// A fence that is to be planned at the next look.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Want {
    why: String,
    by: String,
    reason: Option<String>,
    permits: Permits,
    requests: BTreeSet<u64>,
    since: Duration,
}

/// What an operator permits for one fence.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Permits {
    accept_incomplete: bool,
    over_brake: bool,
    over_doubt: bool,
}

impl Permits {
    /// Is it more than what needs no reason?
    fn is_over(self) -> bool {
        self.over_brake || self.over_doubt
    }

    fn and(self, other: Self) -> Self {
        Self {
            accept_incomplete: self.accept_incomplete || other.accept_incomplete,
            over_brake: self.over_brake || other.over_brake,
            over_doubt: self.over_doubt || other.over_doubt,
        }
    }
}

/// A fence that was refused, and when it is to be planned again if it is still wanted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Refused {
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
        let lost = |name: &String| self.evidence.get(name).is_some_and(Evidence::is_lost);
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
    /// heartbeats of all are old until the next ones are written (facts/incus.md §1).
    pub(super) fn doubtful(&self) -> Vec<&str> {
        let Some(view) = &self.view else { return Vec::new() };
        let lost = |name: &&String| {
            self.evidence.get(*name).is_some_and(Evidence::is_lost) && self.case_of(name).is_none()
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
            Target::Member(name) => self.case_of(name).is_some(),
            Target::Addresses(entries) => self
                .cases
                .values()
                .any(|case| entries.iter().all(|entry| case.record.entries.contains_key(entry))),
        };
        let waits = self.refused.get(&target).is_some_and(|refused| now < refused.again);
        let cooling = !self.cools_down().is_zero() || self.wants.values().any(|want| want.by == GUARDIAN);
        if held || waits || cooling || self.wants.contains_key(&target) {
            return;
        }
        let name = match &target {
            Target::Member(name) => Some(name.clone()),
            Target::Addresses(_) => None,
        };
        self.log(Level::Info, "suspect", name, format!("to be fenced: {why}"));
        let (by, permits, requests) = (GUARDIAN.to_owned(), Permits::default(), BTreeSet::new());
        self.want(target, Want { why, by, reason: None, permits, requests, since: now });
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
        let permits = Permits {
            accept_incomplete: record.accepted,
            over_brake: record.over_brake,
            over_doubt: record.over_doubt,
        };
        self.want(target, Want { why, by, reason, permits, requests, since });
    }

    /// What waits already goes on as well, and what it permits: in the words of who went over the brake or a doubt.
    fn want(&mut self, target: Target, mut want: Want) {
        if let Some(before) = self.wants.remove(&target) {
            if (before.permits.is_over() && !want.permits.is_over()) || want.by == GUARDIAN {
                (want.why, want.by, want.reason) = (before.why, before.by, before.reason);
            }
            want.permits = want.permits.and(before.permits);
            want.requests.extend(before.requests);
        }
        self.wants.insert(target, want);
    }

    pub(super) fn request(&mut self, number: u64, request: Request) {
        match request {
            Request::Fence { over_brake, over_doubt, reason: None, .. } if over_brake || over_doubt => {
                let text = "going over the storm brake, or over a removal in doubt, needs a reason, which is \
                            recorded: --reason TEXT";
                let text = text.to_owned();
                self.reports.push_back(Report::Answer(number, Outcome::Failed(text)));
            }
            Request::Fence { target, accept_incomplete, over_brake, over_doubt, reason, by } => {
                let permits = Permits { accept_incomplete, over_brake, over_doubt };
                self.want_by_request(number, target, permits, reason, by);
            }
            Request::Release { fence, assert_powered_off, reason, by } => {
                let named = self.cases.values_mut().find(|case| is_named(&case.record, &fence));
                let Some(case) = named else {
                    let text = format!("no fence {fence} is held: `status` lists those that are");
                    self.reports.push_back(Report::Answer(number, Outcome::Failed(text)));
                    return;
                };
                if assert_powered_off {
                    let why = reason.unwrap_or_default();
                    case.requests.insert(number);
                    case.release = Some(Releasing { by, why: format!("asserted powered off: {why}") });
                } else if case.release.is_some() {
                    case.requests.insert(number);
                } else {
                    let text = "a release needs proof that the member rebooted after the seal; the guardian releases \
                                it by itself when it has that. If you know that it was powered off, say so with \
                                --assert-powered-off --reason TEXT";
                    self.reports.push_back(Report::Answer(number, Outcome::Failed(text.to_owned())));
                }
            }
        }
    }

    /// An operator wants it.
    pub(super) fn want_by_request(
        &mut self,
        number: u64,
        target: Target,
        permits: Permits,
        reason: Option<String>,
        by: String,
    ) {
        if let Target::Member(name) = &target
            && let Some(id) = self.case_of(name).map(|case| case.id.clone())
            && let Some(case) = self.cases.get_mut(&id)
        {
            if case.release.is_some() {
                let text = format!("{name} is being released: wait until it is");
                self.reports.push_back(Report::Answer(number, Outcome::Failed(text)));
                return;
            }
            case.requests.insert(number);
            case.record.accepted |= permits.accept_incomplete;
            // It is the operator's now: no evidence withdraws it. Who went over the brake or a doubt for it stays on record.
            if !case.record.over_brake && !case.record.over_doubt {
                (case.record.by, case.record.reason) = (by, reason.or_else(|| case.record.reason.take()));
            }
            return;
        }
        let why = reason.clone().unwrap_or_else(|| "an operator asked for it".to_owned());
        let (requests, since) = (BTreeSet::from([number]), self.now.boot);
        self.want(target, Want { why, by, reason, permits, requests, since });
    }

    /// Is a look needed, because something wanted is newer than the last one?
    pub(super) fn needs_look(&self) -> bool {
        !self.wants.is_empty() || self.world.is_none()
    }

    /// The storage was looked at.
    pub(super) fn looked(&mut self, world: Result<World, String>) {
        let began = self.free(&Lane::Look);
        match world {
            Ok(world) => {
                self.note_map(Arc::new(world.map.clone()));
                for (name, evidence) in &mut self.evidence {
                    let record = self.book.members.get(name);
                    let seen = |ip| record.is_some_and(|record| record.addresses.contains_key(ip));
                    if world.clients.keys().any(|client| seen(&client.ip)) {
                        evidence.clients_seen = evidence.clients_seen.max(Some(began));
                    }
                }
                let before = self.world.replace(world).map(|before| before.clients).unwrap_or_default();
                self.looked_at = Some(began);
                self.chase(&before);
                for want in self.wants.values_mut() {
                    // A want that came while the storage was looked at is served by the next look.
                    want.since = if want.since <= began { Duration::ZERO } else { want.since };
                }
            }
            Err(why) => {
                self.map_failed = Some(why);
                self.schedule.look = self.now.boot + Duration::from_secs(1);
            }
        }
    }

    pub(super) fn plan_what_is_wanted(&mut self) {
        let ready: Vec<Target> = self
            .wants
            .iter()
            .filter(|(_, want)| want.since.is_zero())
            .map(|(target, _)| target.clone())
            .collect();
        for target in ready {
            let Some(want) = self.wants.remove(&target) else { continue };
            self.plan_one(target, want);
        }
    }

    fn plan_one(&mut self, target: Target, want: Want) {
        let Some(world) = self.world.clone().map(|world| self.with_memory(world)) else { return };
        let in_doubt = self.records.fences.values().flat_map(|fence| fence.in_doubt.clone()).collect();
        let Permits { accept_incomplete, over_brake, over_doubt } = want.permits;
        let held = self.cases.values().filter_map(Case::member).map(str::to_owned).collect();
        let request = plan::Request {
            target: target.clone(),
            accept_incomplete,
            over_brake,
            over_doubt,
            in_doubt,
            held,
        };
        match plan(&request, &self.members(), &world, &self.settings.policy) {
            Ok(mut plan) => {
                self.refused.remove(&target);
                // Clients that an earlier fence of it left refused stay known.
                let before = self.records.fences.get(&plan.fence.to_string());
                let kept = before.into_iter().flat_map(|before| before.entries.keys());
                plan.entries.extend(kept.filter(|entry| !entry.is_host()));
                if let Some(case) = self.cases.get_mut(&plan.fence.to_string()) {
                    case.requests.extend(want.requests);
                    case.record.accepted |= accept_incomplete;
                    return;
                }
                self.last_fence = Some(self.now.boot);
                let over = [(plan.over_brake, "the storm brake"), (plan.over_doubt, "a removal in doubt")];
                let over: Vec<&str> =
                    over.into_iter().filter(|(over, _)| *over).map(|(_, what)| what).collect();
                let why = if over.is_empty() {
                    want.why
                } else {
                    format!("{} goes over {}: {}", want.by, over.join(" and "), want.why)
                };
                let mut case = Case::new(plan, why, want.by, want.reason, accept_incomplete, self.now);
                case.requests = want.requests;
                case.note_standing(&world.map.blocklist);
                if let Some(before) = self.records.fences.get(&case.id) {
                    case.take_over(before);
                }
                let text = format!("{} intended: {}", case.id, case.record.evidence.join("; "));
                self.log(Level::Info, "intended", case.member().map(str::to_owned), text);
                self.cases.insert(case.id.clone(), case);
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
                self.refused.insert(target, Refused { reasons, again: self.now.boot + AGAIN });
            }
        }
    }

    /// What was seen of members while they were healthy: a lost one may be seen by nobody.
    fn with_memory(&self, mut world: World) -> World {
        for client in self.book.members.values().flat_map(|member| &member.clients) {
            world.clients.entry(*client).or_default().insert(SeenAt::Remembered);
        }
        world
    }
}
