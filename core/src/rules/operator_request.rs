//! What a leader does with the requests that it finds in the ledger: each is done at most once, also when leaders die.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::model::epoch::LeaderEpoch;
use crate::model::fence_id::{FenceContent, FenceId};
use crate::model::operator_request::Request;
use crate::model::record::{FenceRecord, FenceState, RequestRecord};
use crate::model::target::Target;

/// An answer that nobody fetches is kept for so long.
const KEPT: Duration = Duration::from_secs(600);

/// What is to be done with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestAction {
    /// Record that it is taken; only then do it.
    Take,
    /// Do it: this leader recorded that it took it.
    Begin,
    /// Another leader took it, and died: see what came of it ([`settle`]).
    Settle,
    /// Answer that its time was over: whoever asked does not wait any more.
    Expire,
    /// Remove it: it was answered, and nobody fetches the answer.
    Forget,
    /// Nothing.
    Leave,
}

/// What became of a request that a leader took who died.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// What it asked for is under way, and goes on: its end is the answer.
    GoesOn,
    /// It is done.
    Released(Box<FenceRecord>),
    /// Nothing was recorded, so nothing was begun (INV-8).
    Nothing,
}

/// What is to be done with a request by the leader of this epoch, unless it has it in hand.
pub fn todo(record: &RequestRecord, epoch: LeaderEpoch, now: Timestamp) -> RequestAction {
    // A clock that is ahead by more than the asker waits says as little of its age as one that is behind.
    let age = now.duration_since(record.at).unsigned_abs();
    let older = |than: Duration| age > than;
    match (&record.answer, record.taken) {
        (Some(_), _) if older(record.patience + KEPT) => RequestAction::Forget,
        (Some(_), _) => RequestAction::Leave,
        (None, Some(by)) if by == epoch => RequestAction::Begin,
        (None, Some(_)) => RequestAction::Settle,
        (None, None) if older(record.patience) => RequestAction::Expire,
        (None, None) => RequestAction::Take,
    }
}

/// What the ledger's fences say of a request that another leader took.
pub fn settle(request: &Request, fences: &BTreeMap<FenceId, FenceRecord>) -> Settled {
    match request {
        Request::Fence { target, .. } => {
            match FenceRecord::newest(fences, |fence| in_force(fence.state) && is_of(fence, target)) {
                Some(_) => Settled::GoesOn,
                None => Settled::Nothing,
            }
        }
        Request::Release { fence: name, .. } => match FenceRecord::newest(fences, |fence| {
            is_named(fence, name)
        }) {
            Some(fence) if fence.state == FenceState::Releasing => Settled::GoesOn,
            Some(fence) if fence.state == FenceState::Released => Settled::Released(Box::new(fence.clone())),
            Some(_) | None => Settled::Nothing,
        },
        // Recorded twice it does no harm, lost it would.
        Request::Note { .. } | Request::Disarm { .. } | Request::Arm { .. } => Settled::GoesOn,
    }
}

/// Is it a fence that stands or comes to stand?
fn in_force(state: FenceState) -> bool {
    match state {
        FenceState::Intended
        | FenceState::Committed
        | FenceState::Pending
        | FenceState::Sealed
        | FenceState::Breached => true,
        FenceState::Releasing | FenceState::Released => false,
    }
}

/// Is it the fence of this target?
pub fn is_of(fence: &FenceRecord, target: &Target) -> bool {
    match target {
        Target::Member(name) => fence.member.as_ref() == Some(name),
        Target::Addresses(entries) => entries.iter().all(|entry| fence.entries.contains_key(entry)),
    }
}

/// Is a fence named by its ID, by its member, or by the ID that the addresses make which somebody else knows of the
/// member? The ID of another fence of the same member names that one alone.
pub fn is_named(fence: &FenceRecord, name: &str) -> bool {
    let of_target = || name.parse::<FenceContent>().ok().filter(|id| id.made.is_none());
    let Some(member) = &fence.member else {
        let own = || fence.id.read().ok();
        return fence.id == name
            || of_target().zip(own()).is_some_and(|(named, own)| named.is_same_target(&own));
    };
    let of_member = || of_target().and_then(|id| id.member);
    fence.id == name || member == name || of_member().as_ref() == Some(member)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::addr::Entry;
    use crate::model::overrides::Overrides;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn fence_request() -> Request {
        let (target, by) = (Target::Member("n1".to_owned()), "root@elsewhere".to_owned());
        Request::Fence { target, overrides: Overrides::default(), reason: None, by }
    }

    fn record(taken: Option<LeaderEpoch>, answered: bool) -> RequestRecord {
        RequestRecord {
            id: "R-1".to_owned(),
            request: fence_request(),
            at: at(0),
            patience: Duration::from_secs(60),
            taken,
            answer: answered.then(|| serde_json::json!({"failed": "no"})),
        }
    }

    #[test]
    fn inv8_a_request_is_taken_before_it_is_done_and_never_twice() {
        assert_eq!(todo(&record(None, false), LeaderEpoch(7), at(1)), RequestAction::Take);
        assert_eq!(todo(&record(Some(LeaderEpoch(7)), false), LeaderEpoch(7), at(1)), RequestAction::Begin);
        assert_eq!(todo(&record(Some(LeaderEpoch(6)), false), LeaderEpoch(7), at(1)), RequestAction::Settle);
        assert_eq!(todo(&record(Some(LeaderEpoch(6)), true), LeaderEpoch(7), at(1)), RequestAction::Leave);
        // However late: what was taken may have been begun.
        assert_eq!(
            todo(&record(Some(LeaderEpoch(6)), false), LeaderEpoch(7), at(10_000)),
            RequestAction::Settle
        );
    }

    #[test]
    fn what_nobody_waits_for_is_not_done_and_does_not_stay() {
        assert_eq!(todo(&record(None, false), LeaderEpoch(7), at(60)), RequestAction::Take);
        assert_eq!(todo(&record(None, false), LeaderEpoch(7), at(61)), RequestAction::Expire);
        assert_eq!(todo(&record(Some(LeaderEpoch(7)), true), LeaderEpoch(7), at(660)), RequestAction::Leave);
        assert_eq!(todo(&record(Some(LeaderEpoch(7)), true), LeaderEpoch(7), at(661)), RequestAction::Forget);
        // The asker's clock is ahead: by less than it waits, or so far that the request would stay alive for hours.
        assert_eq!(todo(&record(None, false), LeaderEpoch(7), at(-59)), RequestAction::Take);
        assert_eq!(todo(&record(None, false), LeaderEpoch(7), at(-100)), RequestAction::Expire);
        assert_eq!(todo(&record(None, false), LeaderEpoch(7), at(-36_000)), RequestAction::Expire);
    }

    #[test]
    fn a_request_of_a_leader_that_died_is_answered_by_the_state_of_the_fence() {
        let host: Entry = Entry::Host([10, 0, 0, 1].into());
        let id = FenceContent::new(Some("n1"), &[host].into()).to_string();
        let fence = |state: &str| -> FenceRecord {
            let json = serde_json::json!({"id": id, "member": "n1", "state": state, "by": "a",
                "since": "2026-01-01T00:00:00Z", "entries": {"10.0.0.1:0/0": null},
                "in_doubt": [], "breaches": [], "seen": []});
            serde_json::from_value(json).unwrap()
        };
        let fences = |state: &str| BTreeMap::from([(FenceId::from(id.as_str()), fence(state))]);
        let other = FenceContent::new(Some("n1"), &[Entry::Host([10, 0, 9, 1].into())].into()).to_string();
        for name in ["n1", &id, &other] {
            assert!(is_named(&fence("sealed"), name), "{name}");
            let (fence, reason, by) = (name.to_owned(), None, "root@elsewhere".to_owned());
            let release = Request::Release { fence, since: None, assert_powered_off: true, reason, by };
            assert_eq!(settle(&release, &fences("sealed")), Settled::Nothing);
            assert_eq!(settle(&release, &fences("releasing")), Settled::GoesOn);
            assert!(matches!(settle(&release, &fences("released")), Settled::Released(_)));
        }
        assert!(!is_named(&fence("sealed"), "n2"));
        for state in ["intended", "committed", "pending", "sealed", "breached"] {
            assert_eq!(settle(&fence_request(), &fences(state)), Settled::GoesOn, "{state}");
        }
        for state in ["releasing", "released"] {
            assert_eq!(settle(&fence_request(), &fences(state)), Settled::Nothing, "{state}");
        }
        assert_eq!(settle(&fence_request(), &BTreeMap::new()), Settled::Nothing);
    }

    /// Released while the clock was a year ahead, and fenced again when it was right: the later one is meant.
    #[test]
    fn inv5_the_newest_fence_is_the_one_recorded_last_whatever_the_clocks_said() {
        let host: Entry = Entry::Host([10, 0, 0, 1].into());
        let fence = |made: u64, since: &str, state: &str| -> FenceRecord {
            let made = Some(made);
            let id = FenceContent { made, ..FenceContent::new(Some("n1"), &[host].into()) }.to_string();
            let json = serde_json::json!({"id": id, "member": "n1", "state": state, "by": "a", "since": since,
                "entries": {"10.0.0.1:0/0": null}, "in_doubt": [], "breaches": [], "seen": []});
            serde_json::from_value(json).unwrap()
        };
        let ahead = fence(1_800_000_000_000, "2027-01-15T08:00:00Z", "released");
        let later = fence(1_800_000_000_001, "2026-01-15T08:00:00Z", "sealed");
        let fences = [ahead, later].map(|fence| (fence.id.clone(), fence)).into();
        let (fence, reason, by) = ("n1".to_owned(), None, "root@elsewhere".to_owned());
        let release = Request::Release { fence, since: None, assert_powered_off: true, reason, by };
        assert_eq!(settle(&release, &fences), Settled::Nothing, "it is not released");
        assert_eq!(settle(&fence_request(), &fences), Settled::GoesOn);
    }
}
