//! What speaks for and against a member being lost, and the moment to fence it (docs/design.md#when-to-fence).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::incus_snapshot::{MemberState, MemberStatus, MemberView, Thresholds};

/// Gathered about one member. Times are of the guardian's boot clock.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LossEvidence {
    /// Since when a member with quorum says that it is offline; kept while maintenance states hide it.
    pub offline_since: Option<Duration>,
    /// Healing asked for one of its instances and the gate refused.
    pub heal_refused: Option<Duration>,
    /// Its healing was announced or listed last, or instances of it turned up elsewhere.
    pub healing: Option<Duration>,
    /// When that healing was announced first: it is listed for as long as it lasts.
    #[serde(default)]
    pub healing_since: Option<Duration>,
    /// An instance of it is placed elsewhere now, though it never was online to give it away.
    pub moved: Option<String>,
    /// Whether its host answered a ping, and when it was asked.
    pub ping: Option<(Duration, Result<bool, String>)>,
    /// What it last said of itself, and when it was asked.
    pub state: Option<(Duration, Result<MemberState, String>)>,
    /// It answered a question of this time while its cluster called it lost, and no question since was left unanswered.
    /// It is asked on as long as that lasts.
    #[serde(default)]
    pub answered: Option<Duration>,
    /// When one of its storage clients was seen last.
    pub clients_seen: Option<Duration>,
    /// Since when it has been evacuated with no healing under way.
    #[serde(default)]
    pub evacuated: Option<Duration>,
}

/// What the evidence comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// Its cluster reaches it.
    Healthy,
    /// Its cluster lost it, the storage still sees its clients: the dangerous case.
    ControlPlaneOnly,
    /// Neither sees it.
    Silent,
    /// Nothing is known: there is no reading of the cluster that could be trusted.
    Unknown,
}

/// A client unseen for longer than a watch lives has let go (`osd_client_watch_timeout`, 30 s).
const CLIENT_LAPSES: Duration = Duration::from_secs(30);
/// A ping is an answer for so long.
const PING_LASTS: Duration = Duration::from_secs(5);
/// A reading is not of one instant: what healing has moved in the last of them counts as placed where it was for so long.
const EVACUATION_SETTLES: Duration = Duration::from_secs(10);
/// What is listed again within this time is one healing.
const SAME_HEALING: Duration = Duration::from_secs(10);
/// An announcement of healing counts for so long: the next tick of healing makes a new one (docs/facts/incus.md#healing).
const HEALING_LASTS: Duration = Duration::from_secs(75);

impl LossEvidence {
    /// A member with quorum says this of it.
    pub fn note_status(&mut self, status: &MemberStatus, began: Duration) {
        match status {
            MemberStatus::Offline => {
                // INV-6: the heartbeat of one that answers is only not written yet.
                if self.answered.is_none() {
                    self.offline_since.get_or_insert(began);
                }
            }
            // Healing sets these too, and then nobody can tell from them whether the member is reachable.
            MemberStatus::Evacuating | MemberStatus::Evacuated | MemberStatus::Restoring => {
                self.answered = None;
            }
            MemberStatus::Online | MemberStatus::Blocked | MemberStatus::Other(_) => {
                *self = Self { state: self.state.take(), clients_seen: self.clients_seen, ..Self::default() };
            }
        }
    }

    /// Its healing was announced, or is listed. The ticks of healing are a minute apart (docs/facts/incus.md#healing).
    pub fn note_healing(&mut self, now: Duration) {
        let is_new = self.healing.is_none_or(|last| now > last + SAME_HEALING);
        if is_new || self.healing_since.is_none() {
            self.healing_since = Some(now);
        }
        self.healing = Some(now);
    }

    /// As [`LossEvidence::note_status`]; `healing`: whether a healing is under way, or may be.
    pub fn note_evacuation(&mut self, status: &MemberStatus, healing: bool, began: Duration) {
        let over = *status == MemberStatus::Evacuated && !healing;
        self.evacuated = over.then(|| self.evacuated.unwrap_or(began));
    }

    /// Has Incus evacuated it, and moved what it was going to move?
    pub fn is_evacuated(&self, now: Duration) -> bool {
        self.evacuated.is_some_and(|since| now.saturating_sub(since) >= EVACUATION_SETTLES)
    }

    /// It answered a question asked then: what spoke for its loss is over (INV-6).
    pub fn note_answer(&mut self, asked: Duration) {
        let (state, clients_seen) = (self.state.take(), self.clients_seen);
        *self = Self { state, clients_seen, answered: Some(asked), ..Self::default() };
    }

    /// It did not answer a question asked then.
    pub fn note_silence(&mut self, asked: Duration) {
        self.answered = self.answered.filter(|answered| *answered > asked);
    }

    /// Does what an answer would settle hang on it: its cluster calls it lost, or did until it answered?
    pub fn is_asked_on(&self) -> bool {
        self.is_lost() || self.answered.is_some()
    }

    /// Does its cluster count it as lost, without an answer of its own that says otherwise?
    pub fn is_lost(&self) -> bool {
        self.offline_since.is_some()
    }

    /// What it comes to now, while Incus shows this status. One of maintenance hides whether it is reached: a guardian that
    /// takes over after the healing never saw it offline, and goes by its last answer.
    pub fn health(&self, status: Option<&MemberStatus>, view_is_fresh: bool, now: Duration) -> Health {
        let seen = self.clients_seen.is_some_and(|seen| now.saturating_sub(seen) < CLIENT_LAPSES);
        let is_masked = matches!(
            status,
            Some(MemberStatus::Evacuating | MemberStatus::Evacuated | MemberStatus::Restoring)
        );
        let is_silent = is_masked && matches!(self.state, Some((_, Err(_))));
        match (view_is_fresh, self.is_lost() || is_silent) {
            (false, _) => Health::Unknown,
            (true, false) => Health::Healthy,
            (true, true) if seen => Health::ControlPlaneOnly,
            (true, true) => Health::Silent,
        }
    }

    /// Why it is to be fenced now, where the gate stands at every member.
    pub fn with_gate(&self, now: Duration) -> Option<String> {
        self.offline_since?;
        let lasts = |at: Duration| now.saturating_sub(at) < HEALING_LASTS;
        if let Some(name) = &self.moved {
            return Some(format!("its instance {name} was placed elsewhere while it is offline"));
        }
        if self.heal_refused.is_some_and(lasts) {
            return Some("it is offline, and the gate refused to heal an instance of it".to_owned());
        }
        self.healing.is_some_and(lasts).then(|| "it is offline, and its healing has begun".to_owned())
    }

    /// Is its healing so near that a fence cannot wait for it, because no gate would hold it up?
    pub fn healing_is_near(&self, member: &MemberView, thresholds: &Thresholds, lead: Duration) -> bool {
        let (Some(healing), Some(age)) = (thresholds.healing, member.heartbeat_age) else { return false };
        self.is_lost() && age >= thresholds.offline.max(healing.saturating_sub(lead))
    }

    /// Why it is to be fenced now, where a member may heal without the gate. A host that answers a ping is not
    /// healed (docs/facts/incus.md#healing); one that could not be pinged counts as silent there as well.
    pub fn without_gate(
        &self,
        member: &MemberView,
        thresholds: &Thresholds,
        lead: Duration,
        now: Duration,
    ) -> Option<String> {
        if let Some(why) = self.with_gate(now) {
            return Some(why);
        }
        let near = self.healing_is_near(member, thresholds, lead);
        let silent = match &self.ping {
            Some((at, answered)) if now.saturating_sub(*at) < PING_LASTS => {
                !answered.clone().unwrap_or(false)
            }
            Some(_) | None => false,
        };
        (near && silent).then(|| {
            let age = member.heartbeat_age.unwrap_or_default().as_secs();
            format!(
                "no heartbeat for {age} s, no answer to a ping, and no gate at every member: healing is near"
            )
        })
    }

    /// Is a ping needed, because the last answer is old?
    pub fn ping_is_due(&self, now: Duration) -> bool {
        self.ping.as_ref().is_none_or(|(at, _)| now.saturating_sub(*at) >= PING_LASTS / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn member(age: u64) -> MemberView {
        MemberView {
            status: MemberStatus::Offline,
            heartbeat_age: Some(secs(age)),
            url: String::new(),
            leads: false,
            addresses: Ok(std::collections::BTreeSet::new()),
        }
    }

    #[test]
    fn inv2_healing_of_a_lost_member_is_the_moment() {
        let mut evidence = LossEvidence { heal_refused: Some(secs(5)), ..LossEvidence::default() };
        assert_eq!(evidence.with_gate(secs(6)), None, "its cluster reaches it");
        evidence.note_status(&MemberStatus::Offline, secs(1));
        assert!(evidence.with_gate(secs(6)).is_some());
        evidence.note_status(&MemberStatus::Evacuated, secs(7));
        assert!(evidence.with_gate(secs(8)).is_some(), "a state of maintenance tells nothing");
        assert_eq!(evidence.with_gate(secs(200)), None, "that was long ago");
        evidence.note_status(&MemberStatus::Online, secs(9));
        assert_eq!((evidence.with_gate(secs(9)), evidence.is_lost()), (None, false));
        evidence.note_status(&MemberStatus::Evacuated, secs(10));
        assert!(!evidence.is_lost(), "evacuated by hand");
    }

    #[test]
    fn without_a_gate_it_is_before_healing_and_only_when_the_host_is_silent() {
        let thresholds = Thresholds { offline: secs(20), healing: Some(secs(60)) };
        let mut evidence = LossEvidence::default();
        evidence.note_status(&MemberStatus::Offline, secs(0));
        evidence.ping = Some((secs(100), Ok(false)));
        let wants = |evidence: &LossEvidence, age| {
            evidence.without_gate(&member(age), &thresholds, secs(10), secs(101)).is_some()
        };
        assert!(!wants(&evidence, 49));
        assert!(wants(&evidence, 50));
        evidence.ping = Some((secs(100), Ok(true)));
        assert!(!wants(&evidence, 50), "it answers: it is not healed");
        evidence.ping = Some((secs(10), Ok(false)));
        assert!(!wants(&evidence, 50), "that was long ago");
        let never = Thresholds { offline: secs(20), healing: None };
        assert!(!evidence.healing_is_near(&member(500), &never, secs(10)));
    }

    #[test]
    fn the_dangerous_case_is_told_from_silence() {
        let mut evidence = LossEvidence { clients_seen: Some(secs(10)), ..LossEvidence::default() };
        assert_eq!(evidence.health(None, true, secs(11)), Health::Healthy);
        evidence.note_status(&MemberStatus::Offline, secs(11));
        assert_eq!(evidence.health(None, true, secs(12)), Health::ControlPlaneOnly);
        assert_eq!(evidence.health(None, true, secs(60)), Health::Silent);
        assert_eq!(evidence.health(None, false, secs(60)), Health::Unknown);
    }
}
