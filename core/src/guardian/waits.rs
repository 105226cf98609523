//! What each fence waits for. One function answers it, for `status` and for the alarms: who waits in vain must not do so
//! unseen.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fence::Fence;
use crate::fence::preconditions::GateClosed;
use crate::fence::waiting::some;
use crate::guardian::context::Ctx;
use crate::guardian::found::FoundImages;
use crate::guardian::gate::Gate;
use crate::guardian::interfaces::Interfaces;
use crate::guardian::journal::Journal;
use crate::guardian::report::Alarm;
use crate::guardian::trigger::{FenceCandidate, FenceTrigger};
use crate::model::gate_keys::{self, GateContents, GateState};
use crate::model::record::FenceState;
use crate::model::target::{Coverage, Target};

/// What a fence, or a member that is to be fenced, waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wait {
    /// The alarm that it comes to when it lasts.
    code: &'static str,
    pub(super) what: String,
    /// The same without what changes from one answer to the next; `None` where nothing does.
    about: Option<String>,
    advice: Vec<String>,
}

/// The gate of a sealed member is not open.
const GATE: &str = "gate-waits";
/// A fence is not sealed yet, or not again.
const PENDING: &str = "pending";
/// A release does not end.
const RELEASE: &str = "release-waits";

/// In short, why a fence waits for the gate.
const CLOSING: &str = "the gate to be closed";

/// How long each may last before somebody is told.
fn patience(code: &str) -> Duration {
    Duration::from_secs(if code == GATE { 10 } else { 30 })
}

impl Wait {
    /// Its words name what comes and goes, items of a list for example; this is what stays.
    fn about(self, about: impl Into<String>) -> Self {
        Self { about: Some(about.into()), ..self }
    }
}

/// What is waited for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Waits {
    /// What each fence waits for, by the code of its alarm, and since when.
    #[serde(default)]
    waiting: BTreeMap<String, (String, Duration)>,
    /// The same in words, derived once after each input.
    #[serde(skip)]
    waits: BTreeMap<String, Wait>,
}

impl Waits {
    /// What this fence waits for, in words.
    pub(super) fn of(&self, fence: &Fence) -> Option<&str> {
        self.waits.get(fence.id().as_str()).map(|wait| wait.what.as_str())
    }

    /// What each fence waits for, as [`Parts::waits`] says: since when is remembered.
    pub(super) fn update(&mut self, now: Duration, waits: BTreeMap<String, Wait>) {
        let before = std::mem::take(&mut self.waiting);
        let since = |(key, wait): (&String, &Wait)| {
            let same = before.get(key).filter(|(waited, _)| waited == wait.code);
            let since = same.map_or(now, |(_, since)| *since);
            (key.clone(), (wait.code.to_owned(), since))
        };
        self.waiting = waits.iter().map(since).collect();
        self.waits = waits;
    }

    /// Who has waited for too long.
    pub(super) fn alarms(&self, ctx: Ctx<'_>, trigger: &FenceTrigger) -> Vec<Alarm> {
        let since = |key: &str, code: &'static str| {
            let (_, since) = self.waiting.get(key).filter(|(waited, _)| waited == code)?;
            let age = ctx.now.boot.saturating_sub(*since);
            let at = ctx.now.wall.checked_sub(jiff::SignedDuration::try_from(age).ok()?).ok()?;
            // Whole seconds: the same moment each time it is told.
            let at = jiff::Timestamp::from_second(at.as_second()).ok()?;
            (age >= patience(code)).then_some(at)
        };
        let alarm = |key: &str, member: Option<&str>, what: &dyn Fn(&Wait) -> String| {
            let wait = self.waits.get(key)?;
            let at = since(key, wait.code)?;
            let what = what(wait);
            let about = wait.about.as_ref().map(|about| format!("{what}: {about}"));
            let text = format!("{what}: it waits since {at} for {}", wait.what);
            let (member, advice) = (member.map(str::to_owned), wait.advice.clone());
            Some(Alarm { code: wait.code, member, text, about, advice })
        };
        let of_fence = |fence: &Fence| {
            let whose = fence.record().name();
            alarm(fence.id().as_str(), fence.member(), &|wait| match wait.code {
                GATE => format!("{whose} is sealed, and its instances may not be placed elsewhere yet"),
                RELEASE => format!("{whose} is not released yet"),
                _ => format!("{whose} is {}, not sealed", fence.record().state),
            })
        };
        let of_want = |target: &Target| {
            let member = if let Target::Member(name) = target { Some(name.as_str()) } else { None };
            alarm(&format!("{target:?}"), member, &|_| "a fence is not begun".to_owned())
        };
        ctx.fences.all().filter_map(of_fence).chain(trigger.wants().keys().filter_map(of_want)).collect()
    }
}

/// The parts that know how far fences are and what they wait for.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    pub(super) ctx: Ctx<'a>,
    pub(super) gate: &'a Gate,
    pub(super) journal: &'a Journal,
    pub(super) trigger: &'a FenceTrigger,
    pub(super) found: &'a FoundImages,
    pub(super) interfaces: &'a Interfaces,
}

impl Parts<'_> {
    /// What each fence waits for, by its ID or its target. A fence that is wanted waits for a look at the storage.
    pub(super) fn waits(&self) -> BTreeMap<String, Wait> {
        let fences =
            self.ctx.fences.all().filter_map(|fence| Some((fence.id().to_string(), self.wait_of(fence)?)));
        let wants = self.trigger.wants().iter();
        let wants = wants.map(|(target, want)| (format!("{target:?}"), self.wait_of_want(target, want)));
        fences.chain(wants).collect()
    }

    /// What a fence waits for now; `None` where it waits for nothing, or for an operator's word alone.
    fn wait_of(&self, fence: &Fence) -> Option<Wait> {
        if fence.release().is_some() {
            return self.release_waits(fence);
        }
        match fence.record().state {
            FenceState::Intended | FenceState::Committed | FenceState::Pending | FenceState::Breached => {
                self.seal_waits(fence)
            }
            FenceState::Sealed => self.gate_waits(fence),
            FenceState::Releasing | FenceState::Released => None,
        }
    }

    fn ledger(&self) -> String {
        let why = self.journal.failure().unwrap_or("a write is on its way");
        format!("the ledger: {why}")
    }

    fn seal_waits(&self, fence: &Fence) -> Option<Wait> {
        let wait = |what: String, advice: &[&str]| {
            let advice = advice.iter().map(|text| (*text).to_owned()).collect();
            Some(Wait { code: PENDING, what, about: None, advice })
        };
        let ground = self.gate.preconditions(self.ctx, fence);
        if ground.recorded.is_none() {
            return wait(self.ledger(), &["ceph -s", "rbd-guardian doctor"]);
        }
        if let Some(since) = fence.confirms_since() {
            let names = self.interfaces.not_told_since(self.ctx, since).join(", ");
            if names.is_empty() {
                let why = self.ctx.ceph.look_failed.as_deref().unwrap_or("it has not ended yet");
                let what = format!("a new look at the storage, as it was planned some time ago: {why}");
                return wait(what, &["ceph -s", "rbd-guardian doctor"]);
            }
            let what = format!("the interfaces of {names}, where one of its addresses may be by now");
            return wait(what, &["incus cluster list"]);
        }
        if fence.record().state == FenceState::Intended && ground.still_wanted.is_none() {
            let what = format!("a reading by which its member is lost still; {}", self.ctx.incus.trouble());
            return wait(what, &["incus cluster list", "at once: rbd-guardian fence MEMBER"]);
        }
        if let Some(why) = fence.trouble() {
            return wait(why.to_owned(), &["ceph -s", "rbd-guardian doctor"]);
        }
        if let Some((what, about)) = fence.waits_for_storage() {
            let advice = ["ceph health detail", "ceph osd tree", "a PG that is asked for: ceph pg PG query"];
            return wait(what, &advice).map(|wait| wait.about(about));
        }
        if fence.is_lifted()
            && self.gate.closed(self.ctx, &self.ctx.gate_state(), fence) == GateClosed::NotYet
        {
            return wait(self.closing(fence), &["incus cluster list"]).map(|wait| wait.about(CLOSING));
        }
        wait("the osdmap, read once more".to_owned(), &["ceph -s"])
    }

    /// Why the gate is not seen closed.
    fn closing(&self, fence: &Fence) -> String {
        let member = fence.member().unwrap_or_default();
        let gate = self.ctx.incus.gate();
        let named = gate.into_iter().flat_map(|gate| &gate.members);
        let named =
            named.filter(|(_, keys)| gate_keys::seals(keys).contains(member)).map(|(name, _)| name.clone());
        let named: Vec<String> = named.collect();
        let failed = self.gate.failure().map_or_else(String::new, |why| format!(": {why}"));
        if named.is_empty() {
            format!(
                "the gate to be closed, as read back from every member{failed}; {}",
                self.ctx.incus.trouble()
            )
        } else {
            format!("the gate, which names {member} at {} still{failed}", some(&named))
        }
    }

    fn release_waits(&self, fence: &Fence) -> Option<Wait> {
        let wait = |what: String, advice: &[&str]| {
            let advice = advice.iter().map(|text| (*text).to_owned()).collect();
            Some(Wait { code: RELEASE, what, about: None, advice })
        };
        let ground = self.gate.preconditions(self.ctx, fence);
        if ground.recorded.is_none_or(|record| record.state < FenceState::Releasing) {
            return wait(self.ledger(), &["ceph -s", "rbd-guardian doctor"]);
        }
        if !fence.is_releasing() && ground.gate_closed != GateClosed::Yes {
            return wait(
                self.closing(fence),
                &["incus cluster list", "a member that is gone for good: incus cluster remove --force"],
            )
            .map(|wait| wait.about(CLOSING));
        }
        if let Some(why) = fence.trouble() {
            return wait(why.to_owned(), &["rbd-guardian doctor"]);
        }
        let (what, about) = fence.release_waits_for(ground.starting)?;
        wait(what, &["incus operation list --all-projects", "ceph -s", "ceph health detail"])
            .map(|wait| wait.about(about))
    }

    fn gate_waits(&self, fence: &Fence) -> Option<Wait> {
        let member = fence.member()?;
        let wait = |what: String, advice: Vec<String>| Some(Wait { code: GATE, what, about: None, advice });
        match self.ctx.gate_state() {
            // Without a gate nothing waits for it; one that is switched off has an alarm of its own.
            GateState::Absent | GateState::Off => return None,
            GateState::Unknown if self.ctx.settings.platform => {
                return wait(
                    format!("the gate cannot be read; {}", self.ctx.incus.trouble()),
                    vec!["incus cluster list".to_owned()],
                );
            }
            GateState::Unknown => return None,
            GateState::Partial { .. } | GateState::Installed => {}
        }
        if self.ctx.opens_gate(fence) {
            let gate = self.ctx.incus.gate()?;
            let open = |keys| GateContents::of(keys).open.contains(member);
            let lacks = gate.members.iter().filter(|(name, keys)| *name != member && !open(keys));
            let lacks: Vec<String> =
                lacks.map(|(name, _)| name.clone()).filter(|name| self.ctx.is_online(name)).collect();
            if lacks.is_empty() && self.ctx.is_fresh() {
                return None;
            }
            let why = match self.gate.failure() {
                Some(why) => why.to_owned(),
                None if self.ctx.is_fresh() => "they are being written".to_owned(),
                None => self.ctx.incus.trouble(),
            };
            let at = if lacks.is_empty() { "some members".to_owned() } else { some(&lacks) };
            return wait(format!("its seal key at {at}: {why}"), vec!["incus cluster list".to_owned()])
                .map(|wait| wait.about("its seal key"));
        }
        let recorded = self.ctx.records.fences.get(fence.id());
        if recorded.is_none_or(|record| record.state != FenceState::Sealed) {
            return wait(self.ledger(), vec!["ceph -s".to_owned(), "rbd-guardian doctor".to_owned()]);
        }
        if let Some(why) = fence.trouble() {
            return wait(why.to_owned(), vec!["rbd-guardian doctor".to_owned()]);
        }
        let Some(map) = self.ctx.map() else {
            return wait("an osdmap".to_owned(), vec!["ceph -s".to_owned()]);
        };
        let uncovered = fence.uncovered(recorded, map);
        if !uncovered.is_empty() {
            let silent = fence.waits_for_storage().map_or_else(String::new, |(what, _)| format!(" ({what})"));
            let about = format!("the PGs of {}, guarded since it was sealed", uncovered.join(", "));
            return wait(format!("{about}{silent}"), vec!["ceph health detail".to_owned()])
                .map(|wait| wait.about(about));
        }
        let chased = fence.chases();
        if !chased.is_empty() {
            let about = "clients that are to be fenced as well";
            return wait(format!("{about}: {}", some(&chased)), Vec::new()).map(|wait| wait.about(about));
        }
        if !fence.is_clear() {
            let (what, advice) = self.unclear(fence, member);
            let about = format!("a sweep that shows no user of {member}'s images outside of the fence");
            return wait(what, advice).map(|wait| wait.about(about));
        }
        let accepted =
            fence.record().overrides.accept_incomplete || fence.record().coverage == Coverage::WholeHost;
        (!accepted).then(|| Wait {
            code: GATE,
            about: None,
            what: "an operator: only known clients are fenced".to_owned(),
            advice: vec![format!("rbd-guardian fence {member} --accept-incomplete")],
        })
    }

    /// Why no sweep has shown yet that nobody outside of the fence uses the member's images.
    fn unclear(&self, fence: &Fence, member: &str) -> (String, Vec<String>) {
        if self.ctx.incus.whole_began.is_none() {
            let why = self.ctx.incus.listing_failure().unwrap_or("it has no answer yet");
            let what =
                format!("the first listing of instances and volumes, which says whose each image is: {why}");
            return (what, vec!["incus list --all-projects".to_owned()]);
        }
        if !fence.unfound().is_empty() {
            let what = format!("every image of {member} to be found in its pool: {}", some(fence.unfound()));
            let advice = vec![
                "rbd-guardian doctor".to_owned(),
                "if Incus uses another Ceph cluster of the same name: configure that one here".to_owned(),
                format!(
                    "an image that is gone for good: delete its instance or volume in Incus, or go on without it: rbd-guardian \
                     fence {member} --accept-incomplete"
                ),
            ];
            return (what, advice);
        }
        if fence.unclear().is_empty() {
            let what = format!("a sweep that began after the seal and shows who uses {member}'s images");
            return (what, vec!["rbd-guardian watchers".to_owned(), "ceph health detail".to_owned()]);
        }
        let mut advice = vec!["rbd-guardian watchers".to_owned(), "ceph health detail".to_owned()];
        advice.extend(fence.outside().iter().take(4).map(|client| {
            format!(
                "find out what {client} is: name its IP in user.rbd-guardian.ceph-addresses if it is {member}'s own, in guard.admin_hosts if it is an administrator's; or go on without it: rbd-guardian fence {member} --accept-incomplete"
            )
        }));
        (
            format!(
                "a sweep that shows no user of {member}'s images outside of the fence: {}",
                some(fence.unclear())
            ),
            advice,
        )
    }

    fn wait_of_want(&self, target: &Target, want: &FenceCandidate) -> Wait {
        let automatic = want.is_automatic();
        if let (Target::Member(name), true, true) = (target, automatic, want.is_looked_for())
            && let Some(what) = self.found.waits_for_judgement(self.ctx, name)
        {
            return Wait { code: PENDING, what, about: None, advice: vec!["ceph -s".to_owned()] };
        }
        let why = self.ctx.ceph.look_failed.as_deref().unwrap_or("it has not answered yet");
        let by = if automatic { "the guardian" } else { "an operator" };
        let what = format!("a look at the storage, for a fence that {by} wants: {why}");
        Wait { code: PENDING, what, about: None, advice: vec!["ceph -s".to_owned()] }
    }
}
