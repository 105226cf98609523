//! The evidence for and against each member being lost, whether the member itself answers (then the guardian does not fence
//! it, INV-6), and what a member that is back proves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::guardian::address_book::AddressBook;
use crate::guardian::report::Alarm;
use crate::model::ceph_snapshot::CephSnapshot;
use crate::model::image_users::ImageUse;
use crate::model::incus_snapshot::{IncusSnapshot, InstanceId, MemberState, OperationKind};
use crate::model::member::Members;
use crate::model::now::Now;
use crate::rules::loss_evidence::LossEvidence;
use crate::rules::reboot_proof::NotProved;

/// A question that is open for longer counts as unanswered. The daemon gives a member that was silent before less time.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// A question sent earlier that is still open after this long was lost. No new one can be sent before it ends.
const HANGS: Duration = Duration::from_secs(2);

/// What is known of each member, by its name.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct MemberEvidence {
    pub(super) evidence: BTreeMap<String, LossEvidence>,
    /// Members that are back, each with why its answer proves no reboot.
    returned: BTreeMap<String, NotProved>,
    /// Members whose machine cannot be told from another.
    #[serde(default)]
    unidentified: BTreeSet<String>,
}

impl MemberEvidence {
    pub(super) fn get(&self, member: &str) -> Option<&LossEvidence> {
        self.evidence.get(member)
    }

    /// Does Incus call the member lost, and has no answer of its own contradicted that?
    pub(super) fn is_lost(&self, member: &str) -> bool {
        self.get(member).is_some_and(LossEvidence::is_lost)
    }

    pub(super) fn is_any_lost(&self) -> bool {
        self.evidence.values().any(LossEvidence::is_lost)
    }

    /// Why a member that is back is not proved to have rebooted.
    pub(super) fn returned(&self, member: &str) -> Option<&NotProved> {
        self.returned.get(member)
    }

    /// Has Incus finished healing the member?
    pub(super) fn was_healed(&self, now: Now, member: &str) -> bool {
        self.get(member).is_some_and(|evidence| evidence.is_evacuated(now.boot))
    }

    /// Does the member answer, by the questions asked at or after `since`; `open`: when the one was asked that is on its
    /// way? `None` while there is no telling: none was asked, or it has not had its time to answer.
    pub(super) fn answers_since(
        &self,
        now: Now,
        member: &str,
        since: Duration,
        open: Option<Duration>,
    ) -> Option<bool> {
        let evidence = self.get(member)?;
        let state = evidence.state.as_ref().filter(|(asked, _)| *asked >= since);
        if evidence.answered.is_some_and(|asked| asked >= since)
            || state.is_some_and(|(_, state)| state.is_ok())
        {
            return Some(true);
        }
        let open = open.filter(|_| evidence.answered.is_none());
        let unanswered = open.is_some_and(|asked| {
            let waited = now.boot.saturating_sub(asked.max(since));
            waited >= if asked >= since { ANSWERS_WITHIN } else { HANGS }
        });
        (unanswered || state.is_some()).then_some(false)
    }

    /// Incus announced the healing of a member; without a name, of each member whose heartbeat is old enough.
    pub(super) fn handle_healing(&mut self, now: Now, member: Option<&str>, view: Option<&IncusSnapshot>) {
        let Some(member) = member else {
            let due = |name: &String| {
                let view = view?;
                Some(view.members.get(name)?.heartbeat_age? >= view.thresholds.healing?)
            };
            for (name, evidence) in &mut self.evidence {
                if evidence.is_lost() && due(name) == Some(true) {
                    evidence.note_healing(now.boot);
                }
            }
            return;
        };
        self.of(member).note_healing(now.boot);
    }

    pub(super) fn handle_heal_refused(&mut self, now: Now, member: &str) {
        self.of(member).heal_refused = Some(now.boot);
    }

    pub(super) fn handle_ping(&mut self, asked: Duration, member: String, answered: Result<bool, String>) {
        self.evidence.entry(member).or_default().ping = Some((asked, answered));
    }

    /// The member answers, but has not given its state yet.
    pub(super) fn handle_answer(&mut self, asked: Duration, member: &str) {
        self.of(member).note_answer(asked);
    }

    /// Takes in a reading of Incus. `moved`: instances that are elsewhere now, each with the member it left. Where that member
    /// is lost and its gate was not open, somebody placed the instance without asking the gate.
    pub(super) fn handle_view(
        &mut self,
        now: Now,
        began: Duration,
        view: &IncusSnapshot,
        moved: Vec<(InstanceId, String)>,
        is_open: impl Fn(&str) -> bool,
    ) {
        for (instance, member) in moved {
            if let Some(evidence) = self.evidence.get_mut(&member)
                && evidence.is_lost()
                && !is_open(&member)
            {
                evidence.moved = Some(instance.to_string());
            }
        }
        let healing = view.operations.iter().flatten().any(|operation| operation.kind == OperationKind::Heal);
        for (name, member) in &view.members {
            let evidence = self.evidence.entry(name.clone()).or_default();
            evidence.note_status(&member.status, began);
            evidence.note_evacuation(&member.status, healing || view.operations.is_none(), began);
            let due = view.thresholds.healing.zip(member.heartbeat_age).is_some_and(|(at, age)| age >= at);
            if healing && due && evidence.is_lost() {
                evidence.note_healing(now.boot);
            }
        }
        self.evidence.retain(|name, _| view.members.contains_key(name));
        self.unidentified.retain(|name| view.members.contains_key(name));
    }

    /// A member answered the question for its state, or did not.
    pub(super) fn handle_state(
        &mut self,
        asked: Duration,
        member: &str,
        state: &Result<MemberState, String>,
    ) {
        let evidence = self.evidence.entry(member.to_owned()).or_default();
        match state {
            Ok(_) if evidence.is_asked_on() => evidence.note_answer(asked),
            Ok(_) => {}
            Err(_) => {
                evidence.note_silence(asked);
                self.returned.remove(member);
            }
        }
    }

    pub(super) fn keep_state(&mut self, asked: Duration, member: &str, state: Result<MemberState, String>) {
        self.of(member).state = Some((asked, state));
    }

    /// Notes which members have clients in a look at Ceph.
    pub(super) fn handle_look(&mut self, began: Duration, world: &CephSnapshot, book: &AddressBook) {
        for (name, evidence) in &mut self.evidence {
            let record = book.members.get(name);
            let seen = |ip| record.is_some_and(|record| record.addresses.contains_key(ip));
            if world.clients.keys().any(|client| seen(&client.ip)) {
                evidence.clients_seen = evidence.clients_seen.max(Some(began));
            }
        }
    }

    /// Notes which members have clients in a sweep.
    pub(super) fn handle_sweep(&mut self, began: Duration, uses: &[ImageUse], members: &Members) {
        for (name, evidence) in &mut self.evidence {
            let seen = |one: &ImageUse| {
                one.clients().iter().any(|c| members.owner(c.ip).is_some_and(|m| m.name == *name))
            };
            if uses.iter().any(seen) {
                evidence.clients_seen = evidence.clients_seen.max(Some(began));
            }
        }
    }

    /// Notes whether the machine of a healthy member can be told from those of the others.
    pub(super) fn note_identity(&mut self, member: &str, is_known: bool) {
        if is_known {
            self.unidentified.remove(member);
        } else {
            self.unidentified.insert(member.to_owned());
        }
    }

    /// The member is back and proved a reboot (`None`), or did not. Is that new?
    pub(super) fn note_return(&mut self, member: &str, not: Option<NotProved>) -> bool {
        match not {
            Some(not) => self.returned.insert(member.to_owned(), not).is_none(),
            None => self.returned.remove(member).is_some(),
        }
    }

    /// The fence of the member is over: the evidence starts anew. If the member is still lost, the next reading shows it.
    pub(super) fn end(&mut self, member: &str) {
        self.returned.remove(member);
        self.evidence.insert(member.to_owned(), LossEvidence::default());
    }

    fn of(&mut self, member: &str) -> &mut LossEvidence {
        self.evidence.entry(member.to_owned()).or_default()
    }

    /// Healthy members whose API shows nothing that tells their machine from another. A fence of such a member is never
    /// released by proof, and an operator should know that before one is needed.
    pub(super) fn alarms(&self) -> Vec<Alarm> {
        let alarm = |name: &String| {
            let text = "nothing that its API shows tells its machine from another (a UUID, a serial number or a network \
                        card that no other member has): if it is fenced, no reboot proves that it may be released";
            let advice = vec![
                format!("see what it shows: incus info --resources --target {name}"),
                format!("after a fence and a reboot, release it by hand: {}", assert_off(name)),
            ];
            Alarm::new("no-machine-identity", Some(name), text.to_owned(), advice)
        };
        self.unidentified.iter().map(alarm).collect()
    }
}

/// What to do about a member that is back without a proof of a reboot.
pub(super) fn ways_back(name: &str, not: &NotProved) -> Vec<String> {
    let waits = format!(
        "do not run `incus cluster restore {name}` before it is released: its old instances may still run"
    );
    let by_proof = match not {
        NotProved::BootedBeforeSeal { .. } => {
            Some(format!("reboot {name}: it is released by itself when it has"))
        }
        NotProved::SameBoot { .. } => Some(format!(
            "reboot {name}, also if it was rebooted since the fence: it is released by itself when it tells a shorter uptime"
        )),
        NotProved::NoSample | NotProved::NoSeal | NotProved::NoIdentity | NotProved::OtherMachine { .. } => {
            None
        }
    };
    let by_hand = || {
        format!("if you know that {name} was powered off or rebooted since the fence: {}", assert_off(name))
    };
    vec![by_proof.unwrap_or_else(by_hand), waits]
}

fn assert_off(name: &str) -> String {
    format!("rbd-guardian release {name} --assert-powered-off --reason TEXT")
}
