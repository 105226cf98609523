//! What each fence waits for. One function answers it, for `status` and for the alarms: who waits in vain must not do so
//! unseen.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::fence::preconditions::GateClosed;
use crate::fence::waiting::some;
use crate::fence::{Fence, GUARDIAN};
use crate::guardian::Guardian;
use crate::guardian::gate::{self, GateState};
use crate::guardian::report::{Alarm, Level};
use crate::guardian::wants::FenceCandidate;
use crate::model::addr::ClientAddr;
use crate::model::blocklist::Blocklist;
use crate::model::ceph_snapshot::{CephSnapshot, DaemonKind, Role, SeenAt};
use crate::model::image_users::ImageUse;
use crate::model::incus_snapshot::IncusSnapshot;
use crate::model::member::Members;
use crate::model::record::FenceState;
use crate::model::target::{Coverage, Target};
use crate::model::volume::Expected;

/// What a fence, or a member that is to be fenced, waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wait {
    /// The alarm that it comes to when it lasts.
    code: &'static str,
    /// What for.
    pub(super) what: String,
    /// The same without what changes from one answer to the next; `None` where nothing does.
    about: Option<String>,
    /// What to do.
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

/// A client that no monitor knows of for so long is no client any more: one that changes its monitor has a session again
/// within seconds.
const GHOST: Duration = Duration::from_secs(60);

/// Who uses an image of a fenced member and is not refused.
pub(super) fn used_outside(one: &ImageUse, blocklist: &Blocklist, members: &Members) -> String {
    let free = one.clients().into_iter().filter(|client| !blocklist.refuses(*client));
    let named = free.map(|client| {
        members.owner(client.ip).map_or_else(
            || format!("{client} of no known member"),
            |member| format!("{client} of member {}", member.name),
        )
    });
    let users: Vec<String> = named.chain(one.unknown.iter().cloned()).collect();
    format!("image {} is used by {}", one.image, some(&users))
}

impl Wait {
    /// Its words name what comes and goes, items of a list for example; this is what stays.
    fn about(self, about: impl Into<String>) -> Self {
        Self { about: Some(about.into()), ..self }
    }
}

impl Guardian {
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
        let why = self.cannot_record.as_deref().unwrap_or("a write is on its way");
        format!("the ledger: {why}")
    }

    fn platform(&self) -> String {
        let why = self.view_failed.as_deref().unwrap_or("the last question has no answer yet");
        format!("Incus: {why}")
    }

    fn seal_waits(&self, fence: &Fence) -> Option<Wait> {
        let wait = |what: String, advice: &[&str]| {
            let advice = advice.iter().map(|text| (*text).to_owned()).collect();
            Some(Wait { code: PENDING, what, about: None, advice })
        };
        let ground = self.preconditions(fence);
        if ground.recorded.is_none() {
            return wait(self.ledger(), &["ceph -s", "rbd-guardian doctor"]);
        }
        if fence.record().state == FenceState::Intended && ground.still_wanted.is_none() {
            let what = format!("a reading by which its member is lost still; {}", self.platform());
            return wait(what, &["incus cluster list", "at once: rbd-guardian fence MEMBER"]);
        }
        if let Some(why) = fence.trouble() {
            return wait(why.to_owned(), &["ceph -s", "rbd-guardian doctor"]);
        }
        if let Some((what, about)) = fence.waits_for_storage() {
            let advice = ["ceph health detail", "ceph osd tree", "a PG that is asked for: ceph pg PG query"];
            return wait(what, &advice).map(|wait| wait.about(about));
        }
        if fence.is_lifted() && self.gate_closed(fence) == GateClosed::NotYet {
            return wait(self.closing(fence), &["incus cluster list"]).map(|wait| wait.about(CLOSING));
        }
        wait("the osdmap, read once more".to_owned(), &["ceph -s"])
    }

    /// Why the gate is not seen closed.
    fn closing(&self, fence: &Fence) -> String {
        let member = fence.member().unwrap_or_default();
        let gate = self.view.as_ref().and_then(|view| view.gate.as_ref());
        let named = gate.into_iter().flat_map(|gate| &gate.members);
        let named =
            named.filter(|(_, keys)| gate::seals(keys).contains(member)).map(|(name, _)| name.clone());
        let named: Vec<String> = named.collect();
        let failed = self.desk.failed.as_ref().map_or_else(String::new, |(_, why)| format!(": {why}"));
        if named.is_empty() {
            format!("the gate to be closed, as read back from every member{failed}; {}", self.platform())
        } else {
            format!("the gate, which names {member} at {} still{failed}", some(&named))
        }
    }

    fn release_waits(&self, fence: &Fence) -> Option<Wait> {
        let wait = |what: String, advice: &[&str]| {
            let advice = advice.iter().map(|text| (*text).to_owned()).collect();
            Some(Wait { code: RELEASE, what, about: None, advice })
        };
        let ground = self.preconditions(fence);
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
        match self.gate_state() {
            // Without a gate nothing waits for it; one that is switched off has an alarm of its own.
            GateState::Absent | GateState::Off => return None,
            GateState::Unknown if self.settings.platform => {
                return wait(
                    format!("the gate cannot be read; {}", self.platform()),
                    vec!["incus cluster list".to_owned()],
                );
            }
            GateState::Unknown => return None,
            GateState::Partial { .. } | GateState::Installed => {}
        }
        if self.opens_gate(fence) {
            let gate = self.view.as_ref()?.gate.as_ref()?;
            let open = |keys| gate::GateContents::of(keys).open.contains(member);
            let lacks = gate.members.iter().filter(|(name, keys)| *name != member && !open(keys));
            let lacks: Vec<String> =
                lacks.map(|(name, _)| name.clone()).filter(|name| self.is_online(name)).collect();
            if lacks.is_empty() && self.view_is_fresh() {
                return None;
            }
            let why = match &self.desk.failed {
                Some((_, why)) => why.clone(),
                None if self.view_is_fresh() => "they are being written".to_owned(),
                None => self.platform(),
            };
            let at = if lacks.is_empty() { "some members".to_owned() } else { some(&lacks) };
            return wait(format!("its seal key at {at}: {why}"), vec!["incus cluster list".to_owned()])
                .map(|wait| wait.about("its seal key"));
        }
        let recorded = self.records.fences.get(fence.id());
        if recorded.is_none_or(|record| record.state != FenceState::Sealed) {
            return wait(self.ledger(), vec!["ceph -s".to_owned(), "rbd-guardian doctor".to_owned()]);
        }
        if let Some(why) = fence.trouble() {
            return wait(why.to_owned(), vec!["rbd-guardian doctor".to_owned()]);
        }
        let Some(map) = self.map.as_deref() else {
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
        if self.whole_began.is_none() {
            let why = self.unlisted.as_ref().map_or("it has no answer yet", |(_, why)| why);
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

    /// What each fence waits for, and since when. A fence that is wanted waits for a look at the storage.
    pub(super) fn note_waits(&mut self) {
        let of_cases =
            self.fences.values().filter_map(|fence| Some((fence.id().to_string(), self.wait_of(fence)?)));
        let of_wants =
            self.wants.iter().map(|(target, want)| (format!("{target:?}"), self.wait_of_want(target, want)));
        let waits: BTreeMap<String, Wait> = of_cases.chain(of_wants).collect();
        let before = std::mem::take(&mut self.waiting);
        let since = |(key, wait): (&String, &Wait)| {
            let same = before.get(key).filter(|(waited, _)| waited == wait.code);
            let since = same.map_or(self.now.boot, |(_, since)| *since);
            (key.clone(), (wait.code.to_owned(), since))
        };
        self.waiting = waits.iter().map(since).collect();
        self.waits = waits;
    }

    fn wait_of_want(&self, target: &Target, want: &FenceCandidate) -> Wait {
        let automatic = want.by() == GUARDIAN;
        if let (Target::Member(name), true, true) = (target, automatic, want.is_looked_for())
            && let Some(what) = self.waits_for_judgement(name)
        {
            return Wait { code: PENDING, what, about: None, advice: vec!["ceph -s".to_owned()] };
        }
        if let Some(since) = want.planned() {
            let names = self.not_told_since(since).join(", ");
            let what = format!("the interfaces of {names}, where one of its addresses may be by now");
            return Wait { code: PENDING, what, about: None, advice: vec!["incus cluster list".to_owned()] };
        }
        let why = self.look_failed.as_deref().unwrap_or("it has not answered yet");
        let by = if automatic { "the guardian" } else { "an operator" };
        let what = format!("a look at the storage, for a fence that {by} wants: {why}");
        Wait { code: PENDING, what, about: None, advice: vec!["ceph -s".to_owned()] }
    }

    /// Who has waited for too long.
    pub(super) fn waiting_alarms(&self) -> Vec<Alarm> {
        let since = |key: &str, code: &'static str| {
            let (_, since) = self.waiting.get(key).filter(|(waited, _)| waited == code)?;
            let age = self.now.boot.saturating_sub(*since);
            let at = self.now.wall.checked_sub(jiff::SignedDuration::try_from(age).ok()?).ok()?;
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
        let mut alarms: Vec<Alarm> = self.fences.values().filter_map(of_fence).collect();
        alarms.extend(self.wants.keys().filter_map(of_want));
        if let Some((began, why)) = &self.unlisted
            && self.now.boot.saturating_sub(*began) >= patience(GATE)
        {
            let text = format!(
                "the last listings of the cluster failed, so what is known of its instances is old: {why}"
            );
            let advice = vec!["incus list --all-projects".to_owned(), "incus storage list".to_owned()];
            alarms.push(Alarm { code: "listing-lost", member: None, text, about: None, advice });
        }
        alarms
    }

    /// A reading of everything ended: what of it is missing?
    pub(super) fn note_listing(&mut self, view: &IncusSnapshot) {
        let parts = [
            (view.instances.is_none(), "instances"),
            (view.volumes.is_none(), "storage volumes"),
            (view.pools.is_none(), "storage pools"),
        ];
        let missing: Vec<&str> =
            parts.into_iter().filter(|(missing, _)| *missing).map(|(_, what)| what).collect();
        self.unlisted = (!missing.is_empty()).then(|| {
            let since = self.unlisted.as_ref().map_or(self.now.boot, |(since, _)| *since);
            (since, format!("{} asked for its {} and did not give them", view.from, missing.join(", ")))
        });
    }

    /// Is a look at clients due for the sake of a gate that waits for one that may be none?
    pub(super) fn hunts_ghosts(&self) -> bool {
        self.fences
            .values()
            .any(|fence| !fence.is_clear() && !fence.outside().is_empty() && fence.release().is_none())
    }

    /// A watch of a client that ended may stay for ever (Ceph up to 17.2.7 and 18.2.4). What no monitor has a session of,
    /// in looks a minute apart at which every monitor answered, and what uses no image but those of a sealed member, is
    /// refused with that member: should it be alive after all it may not write there.
    pub(super) fn lift_ghosts(&mut self) {
        let Some(world) = &self.world else { return };
        if !knows_all_sessions(world) {
            self.ghosts.clear();
            return;
        }
        let waiting = self.fences.values().filter(|fence| !fence.is_clear() && fence.release().is_none());
        let outside: BTreeSet<ClientAddr> =
            waiting.flat_map(|fence| fence.outside().iter().copied()).collect();
        let gone = |client: &ClientAddr| {
            let seen = world.clients.get(client);
            let session = |at: &SeenAt| matches!(at, SeenAt::Session(_));
            let own = world.own.iter().any(|own| own.client() == Some(*client));
            let daemons = world.daemons.iter().any(|daemon| daemon.clients.contains(client));
            !own && !daemons && seen.is_some_and(|seen| !seen.iter().any(session))
        };
        let now = self.now.boot;
        let before = std::mem::take(&mut self.ghosts);
        for client in outside.into_iter().filter(gone) {
            self.ghosts.insert(client, before.get(&client).copied().unwrap_or(now));
        }
        let ghosts: BTreeSet<ClientAddr> = self
            .ghosts
            .iter()
            .filter(|(_, since)| now.saturating_sub(**since) >= GHOST)
            .map(|(client, _)| *client)
            .collect();
        let mut lifted = Vec::new();
        for fence in self
            .fences
            .values_mut()
            .filter(|fence| fence.record().state == FenceState::Sealed && !fence.is_clear())
        {
            let Some(member) = fence.member().map(str::to_owned) else { continue };
            let uses = self.sweep.as_ref().map(|sweep| sweep.uses.as_slice()).unwrap_or_default();
            let elsewhere = |client: &ClientAddr| {
                uses.iter().filter(|one| one.clients().contains(client)).any(|one| {
                    !matches!(self.images.get(&one.image), Some(Expected::Exclusive { locations, .. })
                        if locations.contains(&member))
                })
            };
            let its: Vec<ClientAddr> =
                fence.outside().intersection(&ghosts).filter(|client| !elsewhere(client)).copied().collect();
            let new = fence.chase(its.into_iter());
            lifted.extend(new.into_iter().map(|client| (member.clone(), client)));
        }
        for (member, client) in lifted {
            let text = format!(
                "{client} uses an image of {member}, and no monitor has known it for {} s: it is refused with {member}",
                GHOST.as_secs()
            );
            self.log(Level::Warn, "ghost-watch", Some(member), text);
        }
    }
}

/// Did every monitor there is tell its sessions, and was nothing of them unclear?
fn knows_all_sessions(world: &CephSnapshot) -> bool {
    let mut mons = world.daemons.iter().filter(|daemon| daemon.kind == DaemonKind::Mon).peekable();
    mons.peek().is_some()
        && mons.all(|mon| mon.role == Role::Plain)
        && !world.unread.iter().any(|what| !what.starts_with("image ") && !what.starts_with("pool "))
}
