//! Who should lead: what the loop does so that a guardian that sees leads, if there is one.

use std::time::Duration;

use rbd_guardian_core::model::incus_snapshot::IncusSnapshot;
use rbd_guardian_core::rules::leader_fitness::{LeadDecision, OtherGuardians, course};
use serde_json::json;

use crate::ceph::lane;
use crate::ceph::rados::cluster::Cluster;
use crate::clock;
use crate::daemon::event_loop::{EventLoop, Job, JobResult, LeadStage};
use crate::daemon::leadership::ips;
use crate::deadline::within;
use crate::incus::read;

impl EventLoop {
    /// Who should lead: a glance at Incus where nothing else tells, and a question after others where this one is not
    /// fit.
    pub(super) fn look_around(&mut self, now: Duration) {
        let Some(election) = &mut self.election else { return };
        let leading = if let LeadStage::Leading(leading) = &self.stage { Some(leading) } else { None };
        if let Some(incus) = self.incus.client()
            && election.glances(now, leading.is_some())
        {
            self.jobs.begin(Job::Glance, async move {
                let began = clock::boot();
                let view = match within(incus.timeout(), read::quorum(&incus)).await {
                    Ok(view) => view.map_err(|error| error.to_string()),
                    Err(late) => Err(late.to_string()),
                };
                JobResult::Glanced(began, view)
            });
        }
        if let Some(cluster) = self.ceph.cluster().cloned()
            && election.listens(now)
        {
            self.jobs.begin(Job::Listen, async move {
                let began = clock::boot();
                let heard = lane::awaited(move || is_answered(&cluster)).await;
                JobResult::Listened(heard.is_some_and(|answered| answered).then_some(began))
            });
        }
        // Whether it holds or yields is clear when others were asked.
        if leading.is_none() || election.unfit(now).is_none() {
            election.tell(now, leading.is_some(), false);
        }
        if let Some(leading) = leading
            && election.asks(now)
        {
            let (held_lead, epoch) = (leading.executor.held_lead.clone(), leading.epoch());
            self.jobs.begin(Job::Ready(epoch), async move {
                let beside = lane::awaited(move || held_lead.beside()).await;
                JobResult::Ready(epoch, beside.and_then(Result::ok).unwrap_or_default())
            });
        }
    }

    /// What it sees counts for who should lead, whatever it was read for.
    pub(super) fn saw(&mut self, began: Duration, view: &IncusSnapshot) {
        let Some(election) = &mut self.election else { return };
        let (own, known) = match (&self.stage, self.candidacy.waiting()) {
            (LeadStage::Leading(leading), _) => (&leading.executor.held_lead.own, leading.guardian.members()),
            (LeadStage::Connecting | LeadStage::Bidding, Some(waiting)) => {
                (&waiting.own, waiting.book.members(&self.config.members, None))
            }
            (LeadStage::Connecting | LeadStage::Bidding, None) => (&Vec::new(), self.config.members.clone()),
        };
        election.note(began, view, &ips(own), &known);
    }

    /// Another guardian is ready to lead: it does better than one that is not fit.
    pub(super) fn step_back(&mut self, beside: OtherGuardians) {
        let LeadStage::Leading(leading) = &self.stage else { return };
        let unfit = self.election.as_ref().and_then(|election| election.unfit(clock::boot()));
        let LeadDecision::Yield { why, to } = course(unfit, beside) else {
            if let Some(election) = &mut self.election {
                election.tell(clock::boot(), true, leading.guardian.knows_of_a_gate());
            }
            return;
        };
        let held_lead = leading.executor.held_lead.clone();
        self.depose("yields", &format!("yields to {to}: {why}"));
        self.give_up(held_lead);
    }
}

/// Does a monitor with a quorum answer? The shortest question about the osdmap: without a quorum it waits.
fn is_answered(cluster: &Cluster) -> bool {
    cluster.mon_command(&json!({"prefix": "osd getmaxosd", "format": "json"})).is_ok()
}
