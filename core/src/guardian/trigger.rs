//! From the evidence that a member is lost, by way of a look at Ceph, to a fence or to every reason against it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fence::{Fence, GUARDIAN};
use crate::guardian::awaited::is_prepared;
use crate::guardian::ceph_readings::CephReadings;
use crate::guardian::context::Ctx;
use crate::guardian::disarm::disarmed;
use crate::guardian::fences::{FenceRequest, Fences, last_recorded};
use crate::guardian::found::FoundImages;
use crate::guardian::history::undone;
use crate::guardian::interfaces::Interfaces;
use crate::guardian::plan_facts::{known_of, may_judge_reach, reachable};
use crate::guardian::report::{Alarm, Level, Outcome, Reports};
use crate::guardian::settings::{OnConflict, Trigger};
use crate::guardian::trail::DueChange;
use crate::model::addr::Entry;
use crate::model::ceph_snapshot::{CephSnapshot, SeenAt};
use crate::model::fence_id::FenceId;
use crate::model::gate_keys::GateState;
use crate::model::incus_snapshot::MemberStatus;
use crate::model::now::Now;
use crate::model::osdmap::OsdMap;
use crate::model::overrides::Overrides;
use crate::model::pairs;
use crate::model::policy::minority;
use crate::model::record::{DisarmRecord, FenceRecord, FenceState, Records};
use crate::model::target::Target;
use crate::mutants::{self, Mutant};
use crate::rules::loss_evidence::LossEvidence;
use crate::rules::plan::{KnownClients, Plan, PlanRequest, plan};
use crate::rules::refusal::Refusal;

/// The fences that are to be planned, and those that were refused.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct FenceTrigger {
    #[serde(with = "pairs")]
    wants: BTreeMap<Target, FenceCandidate>,
    #[serde(with = "pairs")]
    refused: BTreeMap<Target, RefusedFence>,
    last_fence: Option<Duration>,
}

/// A fence that is planned once the next look at Ceph has ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct FenceCandidate {
    why: String,
    by: String,
    reason: Option<String>,
    #[serde(rename = "permits")]
    pub(super) overrides: Overrides,
    requests: BTreeSet<u64>,
    since: Duration,
    wanted: Duration,
    #[serde(default)]
    asking: AskInterfaces,
}

/// When live members are asked for their interfaces, where an address of the target may be by now (INV-6).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
enum AskInterfaces {
    /// Once the fence is planned: nothing is sent before they told.
    #[default]
    OncePlanned,
    /// Before it is planned: a guardian that died recorded its intent and may have sent some of it, and the same plan made
    /// again is carried out to its end.
    BeforePlan,
    /// No more: they told, which is why it is planned again.
    Done,
}

impl FenceCandidate {
    fn new(why: String, by: &str, now: Duration) -> Self {
        Self {
            why,
            by: by.to_owned(),
            reason: None,
            overrides: Overrides::default(),
            requests: BTreeSet::new(),
            since: now,
            wanted: now,
            asking: AskInterfaces::default(),
        }
    }

    /// As a fence was wanted that is recorded.
    fn of_record(record: &FenceRecord, now: Duration, asking: AskInterfaces) -> Self {
        let why = record.evidence.first().cloned().unwrap_or_default();
        let (reason, overrides) = (record.reason.clone(), record.overrides);
        Self { reason, overrides, asking, ..Self::new(why, &record.by, now) }
    }

    /// Did the guardian itself want it, and no operator?
    pub(super) fn is_automatic(&self) -> bool {
        self.by == GUARDIAN
    }

    /// Has a look at Ceph ended that began after it was wanted?
    pub(super) fn is_looked_for(&self) -> bool {
        self.since.is_zero()
    }
}

/// A fence that was refused, and when it may be planned again.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct RefusedFence {
    reasons: Vec<Refusal>,
    again: Duration,
}

/// The target of a recorded fence.
fn target_of(record: &FenceRecord) -> Target {
    match &record.member {
        Some(name) => Target::Member(name.clone()),
        None => Target::Addresses(record.entries.keys().copied().collect()),
    }
}

/// Does the blocklist have an entry of an intended fence that was not there before, or ends at another time?
fn begun(fence: &FenceRecord, map: &OsdMap) -> bool {
    fence.entries.iter().any(|(entry, stood)| {
        let until = map.blocklist.until(*entry);
        until.is_some() && until != *stood
    })
}

/// How often a member is asked while a fence of it may depend on its answer.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// The pause between two plans of a fence that is refused.
const AGAIN: Duration = Duration::from_secs(5);

impl FenceTrigger {
    pub(super) fn wants(&self) -> &BTreeMap<Target, FenceCandidate> {
        &self.wants
    }

    pub(super) fn wants_member(&self, name: &str) -> bool {
        self.wants.contains_key(&member(name))
    }

    pub(super) fn refused_member(&self, name: &str) -> bool {
        self.refused.contains_key(&member(name))
    }

    /// Takes over the intents of a guardian that crashed.
    pub(super) fn resume(&mut self, now: Now, records: &Records, is_held: impl Fn(&FenceId) -> bool) {
        let intended = records.fences.values().filter(|record| record.state == FenceState::Intended);
        for record in intended.filter(|record| !is_held(&record.id)) {
            let candidate = FenceCandidate::of_record(record, now.boot, AskInterfaces::BeforePlan);
            self.want(target_of(record), candidate);
        }
        self.last_fence = self.last_fence.max(last_recorded(now, records, None));
    }

    /// A withdrawn fence causes no cool-down.
    pub(super) fn handle_withdrawal(&mut self, now: Now, records: &Records, id: &FenceId) {
        self.last_fence = last_recorded(now, records, Some(id));
    }

    /// It was withdrawn because it would be planned otherwise by now: it is.
    pub(super) fn plan_again(&mut self, now: Now, fence: &mut Fence) {
        let (requests, record) = (fence.take_requests(), fence.record());
        let candidate = FenceCandidate::of_record(record, now.boot, AskInterfaces::Done);
        self.want(target_of(record), FenceCandidate { requests, since: Duration::ZERO, ..candidate });
    }

    pub(super) fn handle_request(&mut self, now: Now, request: FenceRequest) {
        let FenceRequest { number, target, overrides, reason, by } = request;
        let why = reason.clone().unwrap_or_else(|| "an operator asked for it".to_owned());
        let (requests, candidate) = ([number].into(), FenceCandidate::new(why, &by, now.boot));
        self.want(target, FenceCandidate { reason, overrides, requests, ..candidate });
    }

    /// `twice`: clients that use only images of instances placed elsewhere, in this sweep and the one before.
    pub(super) fn handle_stale(&mut self, ctx: Ctx<'_>, twice: BTreeSet<Entry>, reports: &mut Reports) {
        match ctx.settings.guard.on_conflict {
            OnConflict::FenceStale if !twice.is_empty() => {
                let why = "every image it uses belongs to instances that are placed elsewhere".to_owned();
                self.want_by_itself(ctx, Target::Addresses(twice), why, reports);
            }
            OnConflict::FenceStale | OnConflict::Alarm => {}
        }
    }

    /// A look at Ceph that began then has ended: fences wanted before it began may be planned. Later ones need the next
    /// look.
    pub(super) fn handle_look(&mut self, began: Duration) {
        for want in self.wants.values_mut() {
            want.since = if want.since <= began { Duration::ZERO } else { want.since };
        }
    }

    /// Is a look at Ceph needed because a fence was wanted after the last one? A fence that waits for something else needs no
    /// second look.
    pub(super) fn needs_look(&self, ctx: Ctx<'_>) -> bool {
        let unjudged =
            |fence: &Fence| fence.looks_since().is_some_and(|since| !ctx.ceph.has_looked_since(since));
        self.wants.values().any(|want| !want.since.is_zero())
            || ctx.ceph.world.as_ref().is_none()
            || ctx.fences.all().any(unjudged)
    }

    /// Must the member, last asked at `asked`, be asked again because a fence depends on its answer?
    pub(super) fn answer_is_due(&self, ctx: Ctx<'_>, member: &str, asked: Option<Duration>) -> bool {
        let unsent = |fence: &&Fence| {
            fence.record().state == FenceState::Intended
                && fence.record().by == GUARDIAN
                && fence.member() == Some(member)
        };
        let intended = ctx.fences.all().find(unsent).and_then(Fence::decided_at);
        let asks_on = ctx.members.get(member).is_some_and(LossEvidence::is_asked_on)
            || self.wants_member(member)
            || intended.is_some();
        let old = |asked: Duration| {
            ctx.now.boot >= asked + ASK_EVERY || intended.is_some_and(|decided| asked < decided)
        };
        asks_on && asked.is_none_or(old)
    }

    /// Wants a fence of each member that Incus is about to heal.
    pub(super) fn update(&mut self, ctx: Ctx<'_>, reports: &mut Reports) {
        self.refused.retain(|target, _| match target {
            Target::Member(name) => ctx.members.is_lost(name),
            Target::Addresses(_) => false,
        });
        for (target, why) in about_to_be_healed(ctx) {
            self.want_by_itself(ctx, target, why, reports);
        }
    }

    fn want_by_itself(&mut self, ctx: Ctx<'_>, target: Target, why: String, reports: &mut Reports) {
        let now = ctx.now.boot;
        let held = match &target {
            Target::Member(name) => ctx.fences.of(name).is_some(),
            Target::Addresses(entries) => {
                let has_all =
                    |fence: &Fence| entries.iter().all(|entry| fence.record().entries.contains_key(entry));
                ctx.fences.all().any(has_all)
            }
        };
        let waits = self.refused.get(&target).is_some_and(|refused| now < refused.again);
        let cooling = disarmed(ctx).is_some()
            || !self.cools_down(ctx).is_zero()
            || self.wants.values().any(FenceCandidate::is_automatic);
        if held || waits || cooling || self.wants.contains_key(&target) {
            return;
        }
        // What was refused is planned again and again; the alarm says so meanwhile.
        if !self.refused.contains_key(&target) {
            reports.log(Level::Info, "suspect", name_of(&target), format!("to be fenced: {why}"));
        }
        let since = if is_prepared(ctx, &target) { Duration::ZERO } else { now };
        self.want(target, FenceCandidate { since, ..FenceCandidate::new(why, GUARDIAN, now) });
    }

    /// How long no further member is fenced without an operator: several members lost within moments look like a fault of
    /// Incus's view rather than of the members.
    pub(super) fn cools_down(&self, ctx: Ctx<'_>) -> Duration {
        let until = self.last_fence.map_or(Duration::ZERO, |last| last + ctx.settings.cool_down);
        until.saturating_sub(ctx.now.boot)
    }

    /// Why a member that Incus is about to heal is not fenced yet, in words.
    pub(super) fn waits(&self, ctx: Ctx<'_>, name: &str) -> Option<String> {
        let (left, disarmed) = (self.cools_down(ctx), disarmed(ctx));
        let free = left.is_zero() && disarmed.is_none();
        let begun = ctx.fences.of(name).is_some() || self.wants_member(name);
        let target = member(name);
        if begun || free || !about_to_be_healed(ctx).iter().any(|(wanted, _)| *wanted == target) {
            return None;
        }
        if let Some(DisarmRecord { until, .. }) = disarmed {
            return Some(format!(
                "the end of an operator's disarm at {until}; at once: `rbd-guardian fence {name}`, or `rbd-guardian arm`"
            ));
        }
        Some(format!(
            "{} s more of the cool-down after the last fence (trigger.cool_down); at once: `rbd-guardian fence {name}`",
            left.as_secs() + 1
        ))
    }

    /// Merges with a fence of the same target that waits already. The reason of whoever overrides a rule is kept.
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

    /// Takes out the candidates that may be planned now, because a look at Ceph has ended since they were wanted. INV-6: a
    /// fence that no operator asked for and no guardian began also waits until it is known where the images are, and is
    /// dropped while an operator has disarmed the guardians.
    pub(super) fn ready(
        &mut self,
        ctx: Ctx<'_>,
        interfaces: &Interfaces,
        found: &mut FoundImages,
        reports: &mut Reports,
    ) -> Vec<(Target, FenceCandidate)> {
        let by_itself =
            |target: &Target, want: &FenceCandidate| want.is_automatic() && !is_begun(ctx, target);
        if disarmed(ctx).is_some() {
            self.wants.retain(|target, want| !by_itself(target, want));
        }
        let looked_for = |want: &FenceCandidate| want.is_looked_for() && may_judge_reach(ctx, want.wanted);
        let told = |want: &FenceCandidate| {
            want.asking != AskInterfaces::BeforePlan || interfaces.not_told_since(ctx, want.wanted).is_empty()
        };
        let mut may = |target: &Target, want: &FenceCandidate| match target {
            Target::Member(name) if by_itself(target, want) => found.may_judge_place(ctx, name, reports),
            Target::Member(_) | Target::Addresses(_) => true,
        };
        let ready: Vec<Target> = self
            .wants
            .iter()
            .filter(|(target, want)| looked_for(want) && told(want) && may(target, want))
            .map(|(target, _)| target.clone())
            .collect();
        ready.into_iter().filter_map(|target| self.wants.remove_entry(&target)).collect()
    }

    /// A plan of this target is no longer refused.
    pub(super) fn accept(&mut self, target: &Target) {
        self.refused.remove(target);
    }

    /// Makes a fence of a plan, unless one for the same target exists already.
    pub(super) fn begin<'f>(
        &mut self,
        now: Now,
        records: &Records,
        ceph: &CephReadings,
        fences: &'f mut Fences,
        mut plan: Plan,
        want: FenceCandidate,
    ) -> Option<&'f mut Fence> {
        if let Some(fence) = fences.standing_for(&plan.fence) {
            fence.await_answer(want.requests);
            fence.accept(want.overrides);
            return None;
        }
        self.last_fence = Some(now.boot);
        let (fence, before) = fences.identify(now, records, &plan.fence);
        plan.fence = fence;
        // Guardians of earlier versions recorded an intent over an earlier fence of that ID, whose clients stay refused.
        let kept = before.iter().flat_map(|before| before.entries.keys());
        plan.entries.extend(kept.filter(|entry| !entry.is_host()));
        let why = if plan.overrides.any_rule() {
            format!("{} goes over {}: {}", want.by, plan.overrides.words(), want.why)
        } else {
            want.why
        };
        let mut fence = Fence::new(plan, why, want.by, want.reason, now);
        fence.await_answer(want.requests);
        if want.asking == AskInterfaces::Done {
            fence.confirm(true, now.boot);
        }
        if let Some(world) = ceph.world.as_ref() {
            fence.note_standing(&world.map.blocklist);
        }
        if let Some(before) = &before {
            fence.take_over(before);
        }
        fences.insert(fence)
    }

    pub(super) fn refuse(
        &mut self,
        ctx: Ctx<'_>,
        target: Target,
        want: &FenceCandidate,
        reasons: Vec<Refusal>,
        reports: &mut Reports,
    ) {
        if self.refused.get(&target).is_none_or(|refused| refused.reasons != reasons) {
            let text = reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            reports.log(Level::Error, "refused", name_of(&target), format!("not fenced: {text}"));
        }
        for number in &want.requests {
            reports.answer(*number, Outcome::Refused(reasons.clone()));
        }
        // A refusal for a member that is not lost concerns only the operator who asked.
        if name_of(&target).is_none_or(|name| ctx.members.is_lost(name)) {
            self.refused.insert(target, RefusedFence { reasons, again: ctx.now.boot + AGAIN });
        }
    }

    /// Removes an intent of a crashed guardian that nobody carries out, because its new plan was refused or became another
    /// fence: the next leader must not carry it out. An intent of which entries were sent stays.
    pub(super) fn due_change(&self, ctx: Ctx<'_>) -> Option<DueChange> {
        let map = ctx.map()?;
        let left = ctx.records.fences.values().find(|fence| {
            fence.state == FenceState::Intended
                && !ctx.fences.has(&fence.id)
                && !self.wants.contains_key(&target_of(fence))
                && !begun(fence, map)
        })?;
        let what = format!("{} not carried out", left.id);
        let why = "planned anew it was refused, or is another fence".to_owned();
        Some(DueChange { changes: vec![undone(ctx, left.clone())], what, why })
    }

    pub(super) fn alarms(&self, ctx: Ctx<'_>) -> Vec<Alarm> {
        let mut alarms = Vec::new();
        for (target, refused) in &self.refused {
            let Some(name) = name_of(target) else { continue };
            let text = refused.reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            let text = format!("it is lost and not fenced: {text}");
            alarms.push(Alarm::new("refused", Some(name), text, ways_out(name, &refused.reasons)));
        }
        let doubtful = doubtful(ctx);
        if ctx.is_fresh() && !doubtful.is_empty() {
            let text = format!(
                "{} look lost at once, and a cluster that lost so many could not say so: nothing is fenced by itself",
                doubtful.join(", ")
            );
            let fence = |name: &&str| format!("if {name} is lost for certain: rbd-guardian fence {name}");
            alarms.push(Alarm::new("view-doubtful", None, text, doubtful.iter().map(fence).collect()));
        }
        alarms
    }

    /// What the guardian would do with this member without an operator now, and why, in sentences.
    pub(super) fn why(&self, ctx: Ctx<'_>, found: &FoundImages, name: &str) -> Vec<String> {
        if let Some(fence) = ctx.fences.of(name) {
            let (id, state, by) = (fence.id(), fence.record().state, &fence.record().by);
            let grounds = fence.record().evidence.first().map_or_else(String::new, |why| format!(": {why}"));
            return vec![format!("{name} is fenced already: {id} is {state}, asked for by {by}{grounds}")];
        }
        if !ctx.settings.platform {
            return vec![
                "no Incus is configured here: nothing is known of members, and only operators fence"
                    .to_owned(),
            ];
        }
        let Some(view) = ctx.incus.fresh(ctx.now) else {
            let why = ctx.incus.view_failed.as_deref().unwrap_or("it was not asked yet");
            return vec![format!(
                "Incus does not answer ({why}): whether {name} is lost is unknown, and nothing is fenced by itself"
            )];
        };
        let Some(known) = view.members.get(name) else {
            return vec![format!("Incus knows no member {name}: nothing fences it by itself")];
        };
        let evidence = ctx.members.get(name).cloned().unwrap_or_default();
        if !evidence.is_lost() {
            return vec![not_lost(name, &known.status)];
        }
        let mut said = vec![format!("Incus lost {name}")];
        said.extend(held_back(ctx));
        let target = member(name);
        let due = about_to_be_healed(ctx).into_iter().find(|(wanted, _)| *wanted == target);
        match (due, view.thresholds.healing) {
            (Some((_, why)), _) => {
                said.push(format!("it is to be fenced now: {why}"));
                let waits = self.wants.get(&target).and_then(|_| found.waits_for_judgement(ctx, name));
                said.extend(waits.map(|what| format!("it waits for {what}")));
                let left = self.cools_down(ctx);
                if !left.is_zero() {
                    said.push(format!("{} s more of the cool-down after the last fence", left.as_secs() + 1));
                }
            }
            (None, Some(healing)) => said.push(format!(
                "it is fenced when its healing begins, {} s after its last heartbeat{}",
                healing.as_secs(),
                known.heartbeat_age.map_or_else(String::new, |age| format!(" ({} s ago)", age.as_secs()))
            )),
            (None, None) => said.push(
                "Incus heals nothing (cluster.healing_threshold is 0), so nothing fences it by itself"
                    .to_owned(),
            ),
        }
        said
    }
}

fn member(name: &str) -> Target {
    Target::Member(name.to_owned())
}

fn name_of(target: &Target) -> Option<&str> {
    match target {
        Target::Member(name) => Some(name),
        Target::Addresses(_) => None,
    }
}

fn not_lost(name: &str, status: &MemberStatus) -> String {
    let hides = match status {
        MemberStatus::Evacuating | MemberStatus::Evacuated | MemberStatus::Restoring => {
            ", which hides whether it is reachable"
        }
        MemberStatus::Online | MemberStatus::Offline | MemberStatus::Blocked | MemberStatus::Other(_) => "",
    };
    format!("Incus says that {name} is {}{hides}: nothing fences it by itself", String::from(status.clone()))
}

/// What prevents every automatic fence, in sentences.
fn held_back(ctx: Ctx<'_>) -> Vec<String> {
    let mut said = Vec::new();
    if ctx.settings.trigger == Trigger::Manual {
        said.push("only operators fence (trigger.mode = \"manual\")".to_owned());
    }
    if let Some(DisarmRecord { until, by, .. }) = disarmed(ctx) {
        said.push(format!("{by} disarmed the guardians until {until}: nothing is fenced by itself"));
    }
    let doubtful = doubtful(ctx);
    if !doubtful.is_empty() {
        let names = doubtful.join(", ");
        said.push(format!("{names} look lost at once, more than a minority: nothing is fenced by itself"));
    }
    said
}

/// What an operator can do about a refusal.
fn ways_out(name: &str, reasons: &[Refusal]) -> Vec<String> {
    let mut ways = vec![format!("rbd-guardian plan {name}")];
    if let [Refusal::Brake { .. }] = reasons {
        let over = format!("if it is lost for certain: rbd-guardian fence {name} --over-brake --reason TEXT");
        ways.push(over);
    }
    ways
}

/// Members that Incus is about to heal, by the evidence, each with the reason.
fn about_to_be_healed(ctx: Ctx<'_>) -> Vec<(Target, String)> {
    let Some(view) = ctx.incus.fresh(ctx.now) else { return Vec::new() };
    if ctx.settings.trigger == Trigger::Manual || !doubtful(ctx).is_empty() {
        return Vec::new();
    }
    let guarded = ctx.gate_state() == GateState::Installed;
    let mut wanted = Vec::new();
    for (name, evidence) in &ctx.members.evidence {
        let Some(known) = view.members.get(name) else { continue };
        // INV-6: one that answers is not lost, whatever its cluster says.
        if !ctx.is_silent(name) && !mutants::is(Mutant::AnswerIgnored) {
            continue;
        }
        let why = if guarded {
            evidence.with_gate(ctx.now.boot)
        } else {
            evidence.without_gate(known, &view.thresholds, ctx.settings.lead, ctx.now.boot)
        };
        wanted.extend(why.map(|why| (member(name), why)));
    }
    wanted
}

/// Members that look lost and are not fenced, if they are more than a minority: a cluster that lost that many has no
/// quorum and could not say so, so its view is wrong. Incus shows this for seconds when it had no leader for a while: the
/// heartbeats of all are old until the next ones are written (docs/facts/incus.md#healing).
pub(super) fn doubtful(ctx: Ctx<'_>) -> Vec<&str> {
    let Some(view) = ctx.incus.view() else { return Vec::new() };
    let lost = |name: &&String| ctx.members.is_lost(name) && ctx.fences.of(name).is_none();
    let lost: Vec<&str> = view.members.keys().filter(lost).map(String::as_str).collect();
    let is_believed = mutants::is(Mutant::DoubtfulViewBelieved);
    if lost.len() > minority(view.members.len()) && !is_believed { lost } else { Vec::new() }
}

/// Did a guardian that crashed send entries for this target? Then only a release can undo it.
fn is_begun(ctx: Ctx<'_>, target: &Target) -> bool {
    let Some(map) = ctx.map() else { return false };
    let mut intended = ctx.records.fences.values().filter(|fence| fence.state == FenceState::Intended);
    intended.any(|fence| target_of(fence) == *target && begun(fence, map))
}

/// Plans a fence by all that is known now. `None` before the first look at Ceph.
pub(super) fn plan_fence(
    ctx: Ctx<'_>,
    found: &FoundImages,
    target: Target,
    overrides: Overrides,
) -> Option<Result<Plan, Vec<Refusal>>> {
    let world = with_memory(ctx, ctx.ceph.world.as_ref()?.clone());
    let known = match &target {
        Target::Member(name) => known_of(ctx, found, name, &world),
        Target::Addresses(_) => KnownClients::default(),
    };
    let recorded = ctx.records.fences.values().flat_map(|fence| fence.in_doubt.clone());
    let deciding = ctx.fences.all().flat_map(|fence| fence.record().in_doubt.clone());
    let in_doubt = recorded.chain(deciding).collect();
    let held = ctx.fences.all().filter_map(Fence::member).map(str::to_owned).collect();
    let unasked = is_begun(ctx, &target) || mutants::is(Mutant::AnswerIgnored);
    let reachable = if unasked { BTreeMap::new() } else { reachable(ctx) };
    let request = PlanRequest { target, overrides, in_doubt, held, reachable, known };
    Some(plan(&request, &ctx.addresses(), &world, &ctx.settings.policy))
}

/// Would this fence be planned with all of its host entries, by what live members told since it was? Rules that concern other
/// fences, or that it went over, were judged when it was planned; whether its member is back is asked beside this.
pub(super) fn confirms(ctx: Ctx<'_>, found: &FoundImages, fence: &Fence) -> bool {
    let reachable = fence.record().overrides.reachable || fence.record().by == GUARDIAN;
    let overrides = Overrides { accept_incomplete: true, brake: true, doubt: true, reachable, unknown: true };
    let plan = plan_fence(ctx, found, target_of(fence.record()), overrides);
    let is_same = |plan: Plan| {
        let kinds = plan.fail_over.iter().map(|daemon| daemon.kind);
        fence.hosts().is_subset(&plan.hosts()) && fence.moves(kinds)
    };
    plan.is_none_or(|plan| plan.is_ok_and(is_same))
}

/// Adds the clients that members had while they were healthy: Ceph may show none of a lost member.
fn with_memory(ctx: Ctx<'_>, mut world: CephSnapshot) -> CephSnapshot {
    for client in ctx.book.members.values().flat_map(|member| &member.clients) {
        world.clients.entry(*client).or_default().insert(SeenAt::Remembered);
    }
    world
}
