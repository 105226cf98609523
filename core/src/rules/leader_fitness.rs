//! What a guardian sees of the platform and hears of the monitors, whether it leads or not, and which of several should
//! lead by that (docs/design.md#several-guardians).
//!
//! A guardian that sees leads. One that does not leads only while no other one could do better, and then to hold: it
//! decides no fence by itself, which the guardian never does without a fresh view. Nobody is told
//! to wait for so long and so long: who is asked is the one that says of itself, for seconds at a time, that it is
//! ready. So nothing changes hands while nobody sees, and whoever sees first has the lead at once.
//!
//! A guardian that no monitor answers can neither fence nor hold, whatever it sees: it leaves the lead also to one that
//! sees nothing but hears the monitors.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::model::incus_snapshot::IncusSnapshot;
use crate::model::member::Members;
use crate::rules::loss_evidence::LossEvidence;

/// Without a reading by a member with quorum for so long, a guardian sees nothing.
pub const BLIND: Duration = Duration::from_secs(5);
/// Without an answer of a monitor for so long, a guardian is cut off from them.
pub const DEAF: Duration = Duration::from_secs(5);
/// For so long after a reading a guardian that waits calls itself ready. So short that when all lose sight together,
/// nobody is ready any more when the leader, whose last reading may have begun seconds earlier, counts as blind.
pub const READY: Duration = Duration::from_millis(2500);

/// What was seen last, and when.
#[derive(Debug, Clone)]
pub struct LeaderOutlook {
    /// Is there a platform to see?
    platform: bool,
    /// When the last good reading began; before the first one, when the guardian began.
    since: Duration,
    seen: bool,
    /// When the last question began that a monitor answered; before the first one, when the guardian began.
    heard: Duration,
    hears: bool,
    members: BTreeMap<String, LossEvidence>,
    suspect: Option<Unfit>,
}

/// Why another guardian would lead better.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// No monitor has answered for [`DEAF`].
    Deaf,
    /// It has no platform to see.
    Bare,
    /// No member with a quorum has answered for [`BLIND`].
    Blind,
    /// It runs on the host of a member that is lost: it may not fence its own address, and may be lost itself next.
    Suspect {
        member: String,
        /// The address that both have.
        ip: IpAddr,
    },
}

/// What a guardian that waits says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// It would lead well.
    Ready,
    /// The monitors answer it, and no more: it would hold.
    Hears,
}

/// Other guardians that wait.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OtherGuardians {
    /// One that is [`Readiness::Ready`].
    pub ready: Option<String>,
    /// One that is [`Readiness::Hears`].
    pub hears: Option<String>,
}

/// What a guardian makes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeadDecision {
    /// It leads, or bids for the lead.
    Lead,
    /// The same, because nobody could do better.
    Hold(Unfit),
    /// It leaves the lead to another one.
    Yield {
        why: Unfit,
        /// The guardian that is to lead.
        to: String,
    },
}

impl LeaderOutlook {
    /// Has seen and heard nothing yet, which counts from now.
    pub fn new(now: Duration, platform: bool) -> Self {
        Self {
            platform,
            since: now,
            seen: false,
            heard: now,
            hears: false,
            members: BTreeMap::new(),
            suspect: None,
        }
    }

    /// Is there a platform to see?
    pub fn has_platform(&self) -> bool {
        self.platform
    }

    /// A member with quorum answered. `own` are the guardian's own addresses as a client of the storage, `known` what
    /// is known of the members' addresses.
    pub fn note(&mut self, began: Duration, view: &IncusSnapshot, own: &[IpAddr], known: &Members) {
        self.since = self.since.max(began);
        self.seen = true;
        self.members.retain(|name, _| view.members.contains_key(name));
        for (name, member) in &view.members {
            self.members.entry(name.clone()).or_default().note_status(&member.status, began);
        }
        let lost = self.members.iter().filter(|(_, evidence)| evidence.is_lost());
        let mut here = lost.filter_map(|(name, _)| {
            let addresses = &known.get(name)?.addresses;
            let ip = *own.iter().find(|ip| addresses.contains(ip))?;
            Some(Unfit::Suspect { member: name.clone(), ip })
        });
        self.suspect = here.next();
    }

    /// A monitor answered a question that began then.
    pub fn heard(&mut self, began: Duration) {
        self.heard = self.heard.max(began);
        self.hears = true;
    }

    /// Why another one would lead better now.
    pub fn unfit(&self, now: Duration) -> Option<Unfit> {
        if now.saturating_sub(self.heard) >= DEAF {
            Some(Unfit::Deaf)
        } else if !self.platform {
            Some(Unfit::Bare)
        } else if now.saturating_sub(self.since) >= BLIND {
            // What a blind one saw last of its own host is old.
            Some(Unfit::Blind)
        } else {
            self.suspect.clone()
        }
    }

    /// Could it do better than one that is not fit? Only by what it saw and heard itself.
    pub fn readiness(&self, now: Duration) -> Option<Readiness> {
        if !self.hears {
            return None;
        }
        match self.unfit(now) {
            Some(Unfit::Deaf) => None,
            None if self.seen => Some(Readiness::Ready),
            None | Some(Unfit::Bare | Unfit::Blind | Unfit::Suspect { .. }) => Some(Readiness::Hears),
        }
    }

    /// For how long nothing was seen.
    pub fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.since)
    }
}

/// What follows, for one that leads as for one that waits, if these others wait.
pub fn course(unfit: Option<Unfit>, beside: OtherGuardians) -> LeadDecision {
    let Some(why) = unfit else { return LeadDecision::Lead };
    let better = match &why {
        Unfit::Deaf => beside.ready.or(beside.hears),
        Unfit::Bare | Unfit::Blind | Unfit::Suspect { .. } => beside.ready,
    };
    match better {
        Some(to) => LeadDecision::Yield { why, to },
        None => LeadDecision::Hold(why),
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deaf => write!(f, "no monitor has answered it for {} s", DEAF.as_secs()),
            Self::Bare => f.write_str("it has no [incus]"),
            Self::Blind => f.write_str("it sees no Incus"),
            Self::Suspect { member, ip } => {
                write!(f, "it runs on the host of {member}, which Incus lost ({ip})")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::incus_snapshot::MemberStatus;
    use crate::model::incus_snapshot::MemberView;
    use crate::model::member::Member;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn known() -> Members {
        Members(vec![
            Member { name: "n1".to_owned(), addresses: vec![ip(1), ip(101)] },
            Member { name: "n2".to_owned(), addresses: vec![ip(2)] },
        ])
    }

    fn view(n1: MemberStatus) -> IncusSnapshot {
        let member = |status| MemberView {
            status,
            heartbeat_age: None,
            url: String::new(),
            leads: false,
            addresses: Ok([].into()),
        };
        let members = [("n1".to_owned(), member(n1)), ("n2".to_owned(), member(MemberStatus::Online))].into();
        IncusSnapshot { members, ..IncusSnapshot::default() }
    }

    /// With an Incus to see, and monitors that answer for as long as the test lasts.
    fn outlook(now: Duration) -> LeaderOutlook {
        let mut outlook = LeaderOutlook::new(now, true);
        outlook.heard(secs(1_000_000));
        outlook
    }

    fn ready(name: &str) -> OtherGuardians {
        OtherGuardians { ready: Some(name.to_owned()), hears: None }
    }

    fn hears(name: &str) -> OtherGuardians {
        OtherGuardians { ready: None, hears: Some(name.to_owned()) }
    }

    #[test]
    fn one_that_has_seen_nothing_yet_is_not_blind_at_once_and_never_ready() {
        let outlook = outlook(secs(100));
        assert_eq!(outlook.unfit(secs(104)), None);
        assert!((outlook.readiness(secs(100)) != Some(Readiness::Ready)));
        assert_eq!(outlook.unfit(secs(105)), Some(Unfit::Blind));
    }

    #[test]
    fn it_is_blind_five_seconds_after_its_last_reading_began_and_sees_at_the_next() {
        let mut outlook = outlook(secs(0));
        outlook.note(secs(10), &view(MemberStatus::Online), &[ip(9)], &known());
        assert!((outlook.readiness(secs(14)) == Some(Readiness::Ready)) && outlook.unfit(secs(14)).is_none());
        assert_eq!(outlook.unfit(secs(15)), Some(Unfit::Blind));
        assert!((outlook.readiness(secs(15)) != Some(Readiness::Ready)));
        // A link that flaps: each good reading counts from its own beginning, and one that is late takes nothing back.
        for at in [16, 20, 24] {
            outlook.note(secs(at), &view(MemberStatus::Online), &[ip(9)], &known());
            assert!((outlook.readiness(secs(at + 4)) == Some(Readiness::Ready)), "{at}");
        }
        outlook.note(secs(12), &view(MemberStatus::Online), &[ip(9)], &known());
        assert_eq!((outlook.unfit(secs(28)), outlook.age(secs(28))), (None, secs(4)));
        assert_eq!(outlook.unfit(secs(29)), Some(Unfit::Blind));
    }

    #[test]
    fn on_the_host_of_a_lost_member_it_is_the_suspect_until_that_is_back() {
        let suspect = Unfit::Suspect { member: "n1".to_owned(), ip: ip(101) };
        let mut outlook = outlook(secs(0));
        let own = [ip(101)];
        outlook.note(secs(1), &view(MemberStatus::Online), &own, &known());
        assert_eq!(outlook.unfit(secs(2)), None);
        outlook.note(secs(2), &view(MemberStatus::Offline), &own, &known());
        assert_eq!(outlook.unfit(secs(3)), Some(suspect.clone()));
        assert!((outlook.readiness(secs(3)) != Some(Readiness::Ready)));
        // Healed, it is called evacuated, and is as lost as before.
        outlook.note(secs(4), &view(MemberStatus::Evacuated), &own, &known());
        assert_eq!(outlook.unfit(secs(5)), Some(suspect));
        assert_eq!(outlook.unfit(secs(9)), Some(Unfit::Blind), "old words count no more");
        outlook.note(secs(10), &view(MemberStatus::Online), &own, &known());
        assert!((outlook.readiness(secs(11)) == Some(Readiness::Ready)));
        // Somebody else's host.
        outlook.note(secs(12), &view(MemberStatus::Offline), &[ip(2)], &known());
        assert!((outlook.readiness(secs(13)) == Some(Readiness::Ready)));
    }

    #[test]
    fn who_is_fit_leads_and_who_is_not_yields_only_to_one_that_is_ready() {
        assert_eq!(course(None, OtherGuardians::default()), LeadDecision::Lead);
        assert_eq!(course(None, ready("b")), LeadDecision::Lead);
        let suspect = Unfit::Suspect { member: "n1".to_owned(), ip: ip(1) };
        for unfit in [Unfit::Blind, Unfit::Bare, suspect] {
            for beside in [OtherGuardians::default(), hears("c")] {
                assert_eq!(course(Some(unfit.clone()), beside), LeadDecision::Hold(unfit.clone()));
            }
            let to = "b".to_owned();
            assert_eq!(course(Some(unfit.clone()), ready("b")), LeadDecision::Yield { why: unfit, to });
        }
    }

    #[test]
    fn one_that_no_monitor_answers_yields_also_to_one_that_sees_nothing() {
        let yields = |to: &str| LeadDecision::Yield { why: Unfit::Deaf, to: to.to_owned() };
        assert_eq!(course(Some(Unfit::Deaf), OtherGuardians::default()), LeadDecision::Hold(Unfit::Deaf));
        assert_eq!(course(Some(Unfit::Deaf), hears("c")), yields("c"));
        let both = OtherGuardians { hears: Some("c".to_owned()), ..ready("b") };
        assert_eq!(course(Some(Unfit::Deaf), both), yields("b"), "the better one");
    }

    #[test]
    fn it_is_deaf_five_seconds_after_its_last_answered_question_began_whatever_it_sees() {
        let mut outlook = LeaderOutlook::new(secs(0), true);
        outlook.note(secs(1), &view(MemberStatus::Online), &[ip(9)], &known());
        assert_eq!((outlook.unfit(secs(2)), outlook.readiness(secs(2))), (None, None), "heard nothing yet");
        outlook.heard(secs(2));
        assert_eq!(outlook.readiness(secs(3)), Some(Readiness::Ready));
        for at in 3..=9 {
            outlook.note(secs(at), &view(MemberStatus::Online), &[ip(9)], &known());
        }
        // An answer that is late takes nothing back.
        outlook.heard(secs(1));
        assert_eq!(outlook.unfit(secs(6)), None);
        assert_eq!((outlook.unfit(secs(7)), outlook.readiness(secs(7))), (Some(Unfit::Deaf), None));
        outlook.heard(secs(8));
        assert_eq!(outlook.readiness(secs(9)), Some(Readiness::Ready));
        // It hears and does not see.
        outlook.heard(secs(20));
        assert_eq!(
            (outlook.unfit(secs(21)), outlook.readiness(secs(21))),
            (Some(Unfit::Blind), Some(Readiness::Hears))
        );
    }

    /// docs/design.md#several-guardians.
    #[test]
    fn one_without_a_platform_is_never_ready_itself() {
        let mut bare = LeaderOutlook::new(secs(0), false);
        bare.heard(secs(1));
        assert_eq!(
            (bare.unfit(secs(2)), bare.readiness(secs(2))),
            (Some(Unfit::Bare), Some(Readiness::Hears))
        );
        assert_eq!((bare.unfit(secs(9)), bare.readiness(secs(9))), (Some(Unfit::Deaf), None));
    }

    /// Guardians that look once a second, one of which leads. Who sees is drawn for each second.
    struct Round {
        outlooks: Vec<LeaderOutlook>,
        leader: usize,
        /// Until when who calls itself ready.
        ready: Option<(usize, Duration)>,
        changes: usize,
    }

    impl Round {
        fn new(guardians: usize) -> Self {
            let outlooks = vec![outlook(secs(0)); guardians];
            Self { outlooks, leader: 0, ready: None, changes: 0 }
        }

        fn second(&mut self, now: Duration, sees: &[bool]) {
            for (outlook, sees) in self.outlooks.iter_mut().zip(sees) {
                if *sees {
                    outlook.note(now, &view(MemberStatus::Online), &[], &known());
                }
            }
            self.ready = self.ready.filter(|(_, until)| *until > now);
            for (number, outlook) in self.outlooks.iter().enumerate() {
                let free = self.ready.is_none_or(|(who, _)| who == number);
                // Ready from the reading on, which is this second's.
                if number != self.leader
                    && free
                    && outlook.readiness(now) == Some(Readiness::Ready)
                    && sees[number]
                {
                    self.ready = Some((number, now + READY));
                }
            }
            let other = self.ready.filter(|(who, _)| *who != self.leader);
            let beside = OtherGuardians { ready: other.map(|(who, _)| who.to_string()), hears: None };
            match course(self.outlooks[self.leader].unfit(now), beside) {
                LeadDecision::Lead | LeadDecision::Hold(_) => {}
                LeadDecision::Yield { to, .. } => {
                    self.leader = to.parse().unwrap();
                    self.changes += 1;
                }
            }
        }
    }

    #[test]
    fn nothing_changes_hands_while_nobody_sees_and_whoever_sees_first_leads() {
        let mut round = Round::new(3);
        let mut at = 0;
        let mut run = |round: &mut Round, seconds: u64, sees: [bool; 3]| {
            for _ in 0..seconds {
                at += 1;
                round.second(secs(at), &sees);
            }
            (round.leader, round.changes)
        };
        assert_eq!(run(&mut round, 10, [true, true, true]), (0, 0));
        assert_eq!(run(&mut round, 120, [false, false, false]), (0, 0), "all blind: no ping-pong");
        assert_eq!(run(&mut round, 1, [false, false, true]), (2, 1), "the one that sees has it at once");
        assert_eq!(run(&mut round, 60, [true, true, true]), (2, 1), "nobody takes it from one that sees");
        assert_eq!(run(&mut round, 4, [true, true, false]), (2, 1), "not for a moment's blindness");
        assert_eq!(run(&mut round, 60, [true, true, true]), (2, 1));
        let (leader, changes) = run(&mut round, 10, [true, true, false]);
        assert!(leader != 2 && changes == 2);
    }

    #[test]
    fn a_link_that_flaps_changes_the_lead_no_more_often_than_sight_is_lost_for_good() {
        let mut round = Round::new(2);
        for at in 1..=600_u64 {
            // The leader of the moment sees in one second of three, which is enough.
            let mut sees = [true, true];
            sees[round.leader] = at % 3 == 0;
            round.second(secs(at), &sees);
        }
        assert_eq!(round.changes, 0);
        // In one of seven it is not: the other one leads, and each of them is given its time.
        for at in 601..=1200_u64 {
            let mut sees = [true, true];
            sees[round.leader] = at % 7 == 0;
            round.second(secs(at), &sees);
        }
        assert!((1..=600 / 5).contains(&round.changes), "{}", round.changes);
    }
}
