//! What a guardian sees of the platform, whether it leads or not, and which of several should lead by that
//! (DESIGN §6).
//!
//! A guardian that sees leads. One that does not leads only while no other one could do better, and then to hold: it
//! decides no fence by itself, which the [`guardian`](super::guardian) never does without a fresh view. Nobody is told
//! to wait for so long and so long: who is asked is the one that says of itself, for seconds at a time, that it is
//! ready. So nothing changes hands while nobody sees, and whoever sees first has the lead at once.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use super::guardian::evidence::Evidence;
use super::member::Members;
use super::view::View;

/// Without a reading by a member with quorum for so long, a guardian sees nothing.
pub const BLIND: Duration = Duration::from_secs(5);
/// For so long after a reading a guardian that waits calls itself ready. So short that when all lose sight together,
/// nobody is ready any more when the leader, whose last reading may have begun seconds earlier, counts as blind.
pub const READY: Duration = Duration::from_millis(2500);

/// What was seen last, and when.
#[derive(Debug, Clone)]
pub struct Outlook {
    /// When the last good reading began; before the first one, when the guardian began.
    since: Duration,
    seen: bool,
    members: BTreeMap<String, Evidence>,
    suspect: Option<Unfit>,
}

/// Why another guardian would lead better.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// No member with a quorum has answered for [`BLIND`].
    Blind,
    /// It runs on the host of a member that is lost: it may not fence its own address, and may be lost itself next.
    Suspect {
        /// The member.
        member: String,
        /// The address that both have.
        ip: IpAddr,
    },
}

/// What a guardian makes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Course {
    /// It leads, or bids for the lead.
    Lead,
    /// The same, because nobody could do better.
    Hold(Unfit),
    /// It leaves the lead to another one.
    Yield {
        /// Why.
        why: Unfit,
        /// To whom.
        to: String,
    },
}

impl Outlook {
    /// Has seen nothing yet, which counts from now.
    pub fn new(now: Duration) -> Self {
        Self { since: now, seen: false, members: BTreeMap::new(), suspect: None }
    }

    /// A member with quorum answered. `own` are the guardian's own addresses as a client of the storage, `known` what
    /// is known of the members' addresses.
    pub fn note(&mut self, began: Duration, view: &View, own: &[IpAddr], known: &Members) {
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

    /// Why another one would lead better now.
    pub fn unfit(&self, now: Duration) -> Option<Unfit> {
        // What a blind one saw last of its own host is old.
        if now.saturating_sub(self.since) >= BLIND { Some(Unfit::Blind) } else { self.suspect.clone() }
    }

    /// Could it do better than one that is not fit?
    pub fn is_ready(&self, now: Duration) -> bool {
        self.seen && self.unfit(now).is_none()
    }

    /// For how long nothing was seen.
    pub fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.since)
    }
}

/// What follows, for one that leads as for one that waits, if this other one says that it is ready.
pub fn course(unfit: Option<Unfit>, ready: Option<&str>) -> Course {
    match (unfit, ready) {
        (None, _) => Course::Lead,
        (Some(why), None) => Course::Hold(why),
        (Some(why), Some(to)) => Course::Yield { why, to: to.to_owned() },
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
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
    use crate::domain::member::Member;
    use crate::domain::view::{MemberStatus, MemberView};

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

    fn view(n1: MemberStatus) -> View {
        let member = |status| MemberView {
            status,
            heartbeat_age: None,
            url: String::new(),
            leads: false,
            addresses: Ok([].into()),
        };
        let members = [("n1".to_owned(), member(n1)), ("n2".to_owned(), member(MemberStatus::Online))].into();
        View { members, ..View::default() }
    }

    #[test]
    fn one_that_has_seen_nothing_yet_is_not_blind_at_once_and_never_ready() {
        let outlook = Outlook::new(secs(100));
        assert_eq!(outlook.unfit(secs(104)), None);
        assert!(!outlook.is_ready(secs(100)));
        assert_eq!(outlook.unfit(secs(105)), Some(Unfit::Blind));
    }

    #[test]
    fn it_is_blind_five_seconds_after_its_last_reading_began_and_sees_at_the_next() {
        let mut outlook = Outlook::new(secs(0));
        outlook.note(secs(10), &view(MemberStatus::Online), &[ip(9)], &known());
        assert!(outlook.is_ready(secs(14)) && outlook.unfit(secs(14)).is_none());
        assert_eq!(outlook.unfit(secs(15)), Some(Unfit::Blind));
        assert!(!outlook.is_ready(secs(15)));
        // A link that flaps: each good reading counts from its own beginning, and one that is late takes nothing back.
        for at in [16, 20, 24] {
            outlook.note(secs(at), &view(MemberStatus::Online), &[ip(9)], &known());
            assert!(outlook.is_ready(secs(at + 4)), "{at}");
        }
        outlook.note(secs(12), &view(MemberStatus::Online), &[ip(9)], &known());
        assert_eq!((outlook.unfit(secs(28)), outlook.age(secs(28))), (None, secs(4)));
        assert_eq!(outlook.unfit(secs(29)), Some(Unfit::Blind));
    }

    #[test]
    fn on_the_host_of_a_lost_member_it_is_the_suspect_until_that_is_back() {
        let suspect = Unfit::Suspect { member: "n1".to_owned(), ip: ip(101) };
        let mut outlook = Outlook::new(secs(0));
        let own = [ip(101)];
        outlook.note(secs(1), &view(MemberStatus::Online), &own, &known());
        assert_eq!(outlook.unfit(secs(2)), None);
        outlook.note(secs(2), &view(MemberStatus::Offline), &own, &known());
        assert_eq!(outlook.unfit(secs(3)), Some(suspect.clone()));
        assert!(!outlook.is_ready(secs(3)));
        // Healed, it is called evacuated, and is as lost as before.
        outlook.note(secs(4), &view(MemberStatus::Evacuated), &own, &known());
        assert_eq!(outlook.unfit(secs(5)), Some(suspect));
        assert_eq!(outlook.unfit(secs(9)), Some(Unfit::Blind), "old words count no more");
        outlook.note(secs(10), &view(MemberStatus::Online), &own, &known());
        assert!(outlook.is_ready(secs(11)));
        // Somebody else's host.
        outlook.note(secs(12), &view(MemberStatus::Offline), &[ip(2)], &known());
        assert!(outlook.is_ready(secs(13)));
    }

    #[test]
    fn who_is_fit_leads_and_who_is_not_yields_only_to_one_that_is_ready() {
        assert_eq!(course(None, None), Course::Lead);
        assert_eq!(course(None, Some("b")), Course::Lead);
        assert_eq!(course(Some(Unfit::Blind), None), Course::Hold(Unfit::Blind));
        let to = "b".to_owned();
        assert_eq!(course(Some(Unfit::Blind), Some("b")), Course::Yield { why: Unfit::Blind, to });
    }

    /// Guardians that look once a second, one of which leads. Who sees is drawn for each second.
    struct Round {
        outlooks: Vec<Outlook>,
        leader: usize,
        /// Until when who calls itself ready.
        ready: Option<(usize, Duration)>,
        changes: usize,
    }

    impl Round {
        fn new(guardians: usize) -> Self {
            let outlooks = vec![Outlook::new(secs(0)); guardians];
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
                if number != self.leader && free && outlook.is_ready(now) && sees[number] {
                    self.ready = Some((number, now + READY));
                }
            }
            let other = self.ready.filter(|(who, _)| *who != self.leader);
            let name = other.map(|(who, _)| who.to_string());
            match course(self.outlooks[self.leader].unfit(now), name.as_deref()) {
                Course::Lead | Course::Hold(_) => {}
                Course::Yield { to, .. } => {
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
