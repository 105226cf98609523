//! What the loop does with requests that verbs on other hosts left in the ledger. Each is recorded as taken before
//! anything is done for it, and its answer is recorded for whoever asked.

use std::time::Duration;

use rbd_guardian_core::guardian::io::Recorded;
use rbd_guardian_core::model::record::{Change, Key, Record, RequestRecord};
use rbd_guardian_core::rules::operator_request::{RequestAction, Settled, todo};
use tokio::sync::mpsc::channel;

use crate::ceph::lane;
use crate::clock;
use crate::control::protocol::ControlLine;
use crate::daemon::event_loop::{EventLoop, Job, JobResult, LeadStage, Leading};
use crate::daemon::forwarded_requests::{RequestNote, RequestProgress, ended, not_noted};
use rbd_guardian_core::model::epoch::LeaderEpoch;

/// Lines of an answer on their way to its last one.
const LINES: usize = 64;

impl EventLoop {
    pub(super) fn look_for_requests(&mut self, now: Duration) {
        let LeadStage::Leading(leading) = &mut self.stage else { return };
        // A single request is not in the ledger.
        if self.single_request || !leading.requests.looks(now) {
            return;
        }
        let (held_lead, epoch) = (leading.executor.held_lead.clone(), leading.epoch());
        self.jobs.begin(Job::Requests(epoch), async move {
            let found = lane::awaited(move || held_lead.requests()).await;
            JobResult::Requests(epoch, found.and_then(Result::ok))
        });
    }

    /// Requests that are there. Those that could not be read are looked for again.
    pub(super) fn requests_found(
        &mut self,
        epoch: LeaderEpoch,
        found: Option<Vec<(RequestRecord, Settled)>>,
    ) {
        let Some(leading) = self.leading_with(epoch) else { return };
        leading.requests.looked(clock::boot(), found.as_deref());
        for (record, settled) in found.into_iter().flatten() {
            let Some(leading) = self.leading_with(epoch) else { return };
            match leading.requests.hand(&record.id) {
                Some(RequestProgress::Busy) => continue,
                Some(RequestProgress::Answered(answered)) => {
                    let answered = answered.clone();
                    self.note(epoch, answered, RequestNote::Answered);
                    continue;
                }
                None => {}
            }
            let record = Box::new(record);
            match todo(&record, epoch, clock::wall()) {
                RequestAction::Leave => {}
                RequestAction::Take => {
                    self.note(
                        epoch,
                        Box::new(RequestRecord { taken: Some(epoch), ..*record }),
                        RequestNote::Taken,
                    );
                }
                RequestAction::Begin => self.begin_request(epoch, record),
                RequestAction::Settle => match settled {
                    Settled::GoesOn => self.begin_request(epoch, record),
                    Settled::Released(fence) => {
                        self.answered(epoch, record, &ControlLine::Released { fence })
                    }
                    Settled::Nothing => {
                        let why = "the guardian that took the request no longer leads and recorded nothing: nothing was begun; ask again";
                        self.answered(epoch, record, &ControlLine::Unavailable(why.to_owned()));
                    }
                },
                RequestAction::Expire => {
                    let why = format!(
                        "the request of {} was found at {}, too late for anyone to be waiting for it still: nothing was begun; are the hosts' clocks in step?",
                        record.at,
                        clock::wall()
                    );
                    self.answered(epoch, record, &ControlLine::Unavailable(why));
                }
                RequestAction::Forget => self.note(epoch, record, RequestNote::Forgotten),
            }
        }
    }

    /// Does it, as for somebody at the control socket.
    fn begin_request(&mut self, epoch: LeaderEpoch, record: Box<RequestRecord>) {
        let Some(leading) = self.leading_with(epoch) else { return };
        leading.requests.keep(&record.id, RequestProgress::Busy);
        let (to, mut lines) = channel(LINES);
        leading.ask(record.request.clone(), to);
        self.jobs.begin(Job::Asked(epoch, record.clone()), async move {
            while let Some(line) = lines.recv().await {
                if line.is_last() {
                    return JobResult::Asked(epoch, record, line);
                }
            }
            JobResult::Asked(epoch, record, ended())
        });
    }

    /// Records the answer.
    pub(super) fn answered(
        &mut self,
        epoch: LeaderEpoch,
        mut record: Box<RequestRecord>,
        line: &ControlLine,
    ) {
        // Every type of an answer has a JSON form.
        record.answer = serde_json::to_value(line).ok();
        self.note(epoch, record, RequestNote::Answered);
    }

    fn note(&mut self, epoch: LeaderEpoch, record: Box<RequestRecord>, noting: RequestNote) {
        let Some(leading) = self.leading_with(epoch) else { return };
        leading.requests.keep(&record.id, RequestProgress::Busy);
        let held_lead = leading.executor.held_lead.clone();
        let job = Job::Note(epoch, record.clone(), noting);
        self.jobs.begin(job, async move {
            let change = match noting {
                RequestNote::Taken | RequestNote::Answered => Change::Put(Record::Request((*record).clone())),
                RequestNote::Forgotten => Change::Remove(Key::Request(record.id.clone())),
            };
            let what = format!("{} request {}: {}", noting.words(), record.id, record.request.what());
            let why = format!("{}: {}", record.request.by(), record.request.reason().unwrap_or_default());
            let recorded = lane::awaited(move || held_lead.record(&[change], what, why)).await;
            JobResult::Noted(epoch, record, noting, recorded.unwrap_or_else(not_noted))
        });
    }

    pub(super) fn noted(
        &mut self,
        epoch: LeaderEpoch,
        record: Box<RequestRecord>,
        noting: RequestNote,
        recorded: Recorded,
    ) {
        let Some(leading) = self.leading_with(epoch) else { return };
        match (noting, recorded) {
            (_, Recorded::Deposed(by)) => self.depose("deposed", &format!("no longer leads: {by}")),
            (RequestNote::Taken, Recorded::Written) => self.begin_request(epoch, record),
            (RequestNote::Answered, Recorded::Not { .. }) => {
                leading.requests.keep(&record.id.clone(), RequestProgress::Answered(record));
            }
            (RequestNote::Answered | RequestNote::Forgotten, Recorded::Written)
            | (RequestNote::Taken | RequestNote::Forgotten, Recorded::Not { .. }) => {
                leading.requests.let_go(&record.id);
            }
        }
    }

    /// The lead of this epoch, if it lasts.
    fn leading_with(&mut self, epoch: LeaderEpoch) -> Option<&mut Leading> {
        match &mut self.stage {
            LeadStage::Leading(leading) if leading.epoch() == epoch => Some(leading),
            LeadStage::Leading(_) | LeadStage::Connecting | LeadStage::Bidding => None,
        }
    }
}
