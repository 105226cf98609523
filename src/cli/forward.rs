//! A request that the leader on another host executes: it goes and is answered through the ledger.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rbd_guardian_core::model::operator_request::Request;
use rbd_guardian_core::model::record::{FenceRecord, FenceState, Records, RequestRecord};
use rbd_guardian_core::model::span::whole_millis;
use rbd_guardian_core::rules::operator_request::{is_named, is_of};

use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::output::say;
use crate::clock;
use crate::control::protocol::ControlLine;
use crate::deadline::{Deadline, DeadlineError};
use crate::ledger::{Ledger, LedgerReadError, LedgerWriteError, Snapshot};
use rbd_guardian_core::model::epoch::LeaderEpoch;

pub(super) enum ForwardOutcome {
    /// The leader answered.
    Answered(ControlLine),
    /// No guardian leads, and nothing was begun.
    Nobody,
    /// The time was over, and the leader goes on with this fence, whose entries stand.
    Underway {
        /// As the ledger has it.
        fence: Box<FenceRecord>,
        /// What ended the wait.
        why: String,
    },
}

/// Between two looks for the answer.
const PACE: Duration = Duration::from_millis(300);
/// How long taking a request back may take, when the command's own time is over.
pub(super) const TIDY: Duration = Duration::from_secs(4);
/// Between two looks whether a request is gone.
const AGAIN: Duration = Duration::from_millis(50);
/// Maximum number of unanswered requests in the ledger: their askers wait, or a leader removes them in time.
const MOST: usize = 64;

/// Leaves the request for the leader, if there is one, and waits for its answer.
pub(super) fn pass(context: &Context, ledger: &Ledger, request: Request) -> Result<ForwardOutcome, CliError> {
    let deadline = &context.deadline;
    if ledger.holder(deadline)?.is_none() {
        return Ok(ForwardOutcome::Nobody);
    }
    let mut seen = ledger.glance(deadline)?;
    let waiting = seen.records().requests.len();
    if waiting >= MOST {
        return Err(CliError::Crowded { waiting });
    }
    let mut asked = ForwardedRequest::new(context, ledger, of_now(ledger, request, deadline)?)?;
    match asked.leave(&mut seen) {
        // Refused for certain, so it is not there.
        Err(CliError::NotAsked(why)) => return Err(why.into()),
        Err(fault) => return asked.give_up(&fault),
        Ok(()) => {}
    }
    asked.wait(&mut seen).or_else(|fault| asked.give_up(&fault))
}

/// A request that waits in the ledger is of the fence that is held now, and of no later one of the same name.
fn of_now(ledger: &Ledger, mut request: Request, deadline: &Deadline) -> Result<Request, CliError> {
    if let Request::Release { fence: name, since, .. } = &mut request {
        let snapshot = ledger.read(deadline)?;
        *since = Some(meant(snapshot.records(), name));
    }
    Ok(request)
}

/// When the newest fence of this name that is held began. Where none is held the request is of none: one that begins while
/// it waits is not released by it.
fn meant(records: &Records, name: &str) -> Timestamp {
    let held = |fence: &FenceRecord| is_named(fence, name) && fence.state.is_in_force();
    FenceRecord::newest(&records.fences, held).map_or(Timestamp::UNIX_EPOCH, |fence| fence.since)
}

/// A request that was left in the ledger.
struct ForwardedRequest<'c> {
    ledger: &'c Ledger,
    deadline: &'c Deadline,
    record: RequestRecord,
    /// How long a lease lasts.
    lease: Duration,
    /// How long nobody may hold the lease before nobody leads: who waits for it takes it sooner.
    vacancy: Duration,
    /// Who was last told to lead, and whether the request was last told to be taken.
    told: (Option<LeaderEpoch>, bool),
}

impl<'c> ForwardedRequest<'c> {
    fn new(context: &'c Context, ledger: &'c Ledger, request: Request) -> Result<Self, CliError> {
        let deadline = &context.deadline;
        let record = RequestRecord {
            // The storage gives a number to each connection, and to none twice.
            id: format!("R-{}", context.cluster.instance_id()),
            request,
            at: clock::wall(),
            patience: whole_millis(deadline.left()?),
            taken: None,
            answer: None,
        };
        let lease = context.config.daemon.lease;
        Ok(Self { ledger, deadline, record, lease, vacancy: lease * 2, told: (None, false) })
    }

    /// A write that was not answered is made again: there can be only one of this ID.
    fn leave(&self, seen: &mut Snapshot) -> Result<(), CliError> {
        loop {
            match self.ledger.ask(seen, self.record.clone(), self.deadline) {
                Ok(()) => return Ok(()),
                Err(LedgerWriteError::Conflict { .. })
                    if seen.records().requests.contains_key(&self.record.id) =>
                {
                    return Ok(());
                }
                Err(LedgerWriteError::Conflict { .. } | LedgerWriteError::Unknown) => {
                    self.deadline.pause(PACE)?
                }
                Err(error) => return Err(CliError::NotAsked(error)),
            }
        }
    }

    fn wait(&mut self, seen: &mut Snapshot) -> Result<ForwardOutcome, CliError> {
        let mut vacant: Option<Instant> = None;
        loop {
            if self.read(seen)? {
                self.tell(seen);
                let Some(found) = seen.records().requests.get(&self.record.id) else {
                    let why = "somebody removed the request from the ledger: `rbd-guardian ledger audit` shows what \
                               was done";
                    return Ok(ForwardOutcome::Answered(ControlLine::Unavailable(why.to_owned())));
                };
                if let Some(line) = answer(found) {
                    self.tidy(seen);
                    return Ok(ForwardOutcome::Answered(line));
                }
                let free = match self.ledger.holder(self.deadline) {
                    Ok(None) => true,
                    // A dead leader's lease may last for as long as the clocks of OSDs differ.
                    Ok(Some(_)) => self.ledger.break_silent_lease(self.lease, self.deadline),
                    Err(_) => false,
                };
                vacant = if free { vacant.or(Some(clock::monotonic())) } else { None };
            }
            let over = |since: Instant| clock::monotonic().duration_since(since) > self.vacancy;
            // Once it is gone from the ledger nobody takes it; what was taken and recorded, the next leader goes on with.
            if vacant.is_some_and(over) && self.tidy(seen) {
                say("nobody leads any more");
                return Ok(ForwardOutcome::Nobody);
            }
            self.deadline.pause(PACE)?;
        }
    }

    /// Reads the ledger anew; `false` if it does not answer now.
    fn read(&self, seen: &mut Snapshot) -> Result<bool, CliError> {
        match self.ledger.glance(self.deadline) {
            Ok(fresh) => *seen = fresh,
            Err(LedgerReadError::Silent { late: DeadlineError::Interrupted, .. }) => {
                return Err(CliError::Late(DeadlineError::Interrupted));
            }
            Err(LedgerReadError::Silent { .. }) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }

    fn tell(&mut self, seen: &Snapshot) {
        let Some(leader) = &seen.records().leader else { return };
        let taken = seen.records().requests.get(&self.record.id).is_some_and(|found| found.taken.is_some());
        if self.told == (Some(leader.epoch), taken) {
            return;
        }
        let (guardian, host, what) = (&leader.guardian, &leader.host, self.record.request.what());
        if taken {
            say(&format!("{guardian} on {host} leads and has taken it; waiting for it to {what}"));
        } else {
            say(&format!("{guardian} on {host} leads; asked it through the ledger to {what}"));
        }
        self.told = (Some(leader.epoch), taken);
    }

    /// Removes the request as it was read last; not if it was taken or answered since.
    fn tidy(&self, seen: &mut Snapshot) -> bool {
        let moment = Deadline::after(TIDY, Arc::default());
        self.ledger.withdraw(seen, &self.record.id, &moment).is_ok()
    }

    /// Whatever ended the wait: what nobody took is taken back, and read back as gone. Operations of one client on one
    /// object keep their order, so a read that is answered sees every write that was sent before it, also one whose
    /// answer never came.
    fn give_up(&self, fault: &CliError) -> Result<ForwardOutcome, CliError> {
        let (why, moment) = (fault.cause(), Deadline::after(TIDY, Arc::default()));
        while let Ok(mut last) = self.ledger.read(&moment) {
            let Some(found) = last.records().requests.get(&self.record.id) else {
                // The leader removes only what it answered, long after.
                return Err(CliError::NotTaken { why });
            };
            if let Some(line) = answer(found) {
                self.tidy(&mut last);
                return Ok(ForwardOutcome::Answered(line));
            }
            if found.taken.is_none() {
                // It is taken meanwhile, or it is gone: the next reading tells.
                let _ = self.ledger.withdraw(&mut last, &self.record.id, &moment);
                if moment.pause(AGAIN).is_err() {
                    break;
                }
                continue;
            }
            return match came(&self.record.request, last.records()) {
                RequestStage::Stands(fence) => Ok(ForwardOutcome::Underway { fence, why }),
                RequestStage::Intended | RequestStage::Releasing | RequestStage::Nowhere => {
                    Err(CliError::Passed { why })
                }
            };
        }
        Err(CliError::MayBePassed { why })
    }
}

/// How far what was asked for came, by the ledger.
pub(super) enum RequestStage {
    /// Entries of the fence stand.
    Stands(Box<FenceRecord>),
    /// The fence is recorded; nothing is known to stand.
    Intended,
    /// The release is recorded.
    Releasing,
    /// Nothing of it is recorded.
    Nowhere,
}

pub(super) fn came(request: &Request, records: &Records) -> RequestStage {
    match request {
        Request::Fence { target, .. } => {
            match FenceRecord::newest(&records.fences, |fence| is_of(fence, target)) {
                Some(fence) if fence.state.stands() => RequestStage::Stands(Box::new(fence.clone())),
                Some(fence) if fence.state == FenceState::Intended => RequestStage::Intended,
                Some(_) | None => RequestStage::Nowhere,
            }
        }
        Request::Release { fence: name, .. } => {
            match FenceRecord::newest(&records.fences, |fence| is_named(fence, name)) {
                Some(fence) if fence.state == FenceState::Releasing => RequestStage::Releasing,
                Some(_) | None => RequestStage::Nowhere,
            }
        }
        Request::Note { .. } | Request::Disarm { .. } | Request::Arm { .. } => RequestStage::Nowhere,
    }
}

/// What a newer leader may say is told as what it is.
fn answer(record: &RequestRecord) -> Option<ControlLine> {
    let answer = record.answer.clone()?;
    let odd =
        |error: serde_json::Error| ControlLine::Unavailable(format!("the answer is not understood: {error}"));
    Some(serde_json::from_value(answer).unwrap_or_else(odd))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inv5_a_release_that_waits_in_the_ledger_is_of_the_fence_that_is_held_and_of_no_later_one() {
        let at = |day: u32| format!("2026-01-0{day}T00:00:00Z");
        let mut records = Records::default();
        let mut add = |id: &str, day: u32, state: &str| {
            let json = serde_json::json!({"id": id, "member": "n1", "state": state, "by": "a", "since": at(day), "entries": {},
                    "in_doubt": [], "breaches": [], "seen": []});
            records.fences.insert(id.into(), serde_json::from_value(json).unwrap());
        };
        add("F-1", 1, "released");
        add("F-3", 3, "sealed");
        // Only after something went wrong are there two.
        add("F-2", 2, "pending");
        assert_eq!(meant(&records, "n1"), at(3).parse().unwrap());
        assert_eq!(meant(&records, "F-2"), at(2).parse().unwrap());
        for none in ["n2", "F-1"] {
            assert_eq!(meant(&records, none), Timestamp::UNIX_EPOCH, "{none}");
        }
    }
}
