//! Who should lead: what the loop does so that a guardian that sees leads, if there is one.

use std::time::Duration;

use rbd_guardian_core::model::incus_snapshot::View;
use rbd_guardian_core::rules::leader_fitness::{Beside, Course, course};
use serde_json::json;

use crate::ceph::lane;
use crate::ceph::rados::cluster::Cluster;
use crate::clock;
use crate::daemon::event_loop::{Done, Driver, Job, Stage};
use crate::daemon::leadership::ips;
use crate::deadline::within;
use crate::incus::read;
use crate::ledger::NotLeased;

impl Driver {
    /// Who should lead: a glance at Incus where nothing else tells, and a question after others where this one is not
    /// fit.
    pub(super) fn look_around(&mut self, now: Duration) {
        let Some(lookout) = &mut self.lookout else { return };
        let leading = if let Stage::Leading(leading) = &self.stage { Some(leading) } else { None };
        if let Some(incus) = self.incus.clone()
            && lookout.glances(now, leading.is_some())
        {
            self.jobs.begin(Job::Glance, async move {
                let began = clock::boot();
                let view = match within(incus.timeout(), read::quorum(&incus)).await {
                    Ok(view) => view.map_err(|error| error.to_string()),
                    Err(late) => Err(late.to_string()),
                };
                Done::Glanced(began, view)
            });
        }
        if let Some(cluster) = self.cluster.clone()
            && lookout.listens(now)
        {
            self.jobs.begin(Job::Listen, async move {
                let began = clock::boot();
                let heard = lane::awaited(move || is_answered(&cluster)).await;
                Done::Listened(heard.is_some_and(|answered| answered).then_some(began))
            });
        }
        // Whether it holds or yields is clear when others were asked.
        if leading.is_none() || lookout.unfit(now).is_none() {
            lookout.tell(now, leading.is_some(), false);
        }
        if let Some(leading) = leading
            && lookout.asks(now)
        {
            let (tenure, epoch) = (leading.hands.tenure.clone(), leading.epoch());
            self.jobs.begin(Job::Ready(epoch), async move {
                let beside = lane::awaited(move || tenure.beside()).await;
                Done::Ready(epoch, beside.and_then(Result::ok).unwrap_or_default())
            });
        }
    }

    /// What it sees counts for who should lead, whatever it was read for.
    pub(super) fn saw(&mut self, began: Duration, view: &View) {
        let Some(lookout) = &mut self.lookout else { return };
        let (own, known) = match (&self.stage, &self.waiting) {
            (Stage::Leading(leading), _) => (&leading.hands.tenure.own, leading.guardian.members()),
            (Stage::Connecting | Stage::Bidding, Some(waiting)) => {
                (&waiting.own, waiting.book.members(&self.config.members, None))
            }
            (Stage::Connecting | Stage::Bidding, None) => (&Vec::new(), self.config.members.clone()),
        };
        lookout.note(began, view, &ips(own), &known);
    }

    /// Another guardian is ready to lead: it does better than one that is not fit.
    pub(super) fn step_back(&mut self, beside: Beside) {
        let Stage::Leading(leading) = &self.stage else { return };
        let unfit = self.lookout.as_ref().and_then(|lookout| lookout.unfit(clock::boot()));
        let Course::Yield { why, to } = course(unfit, beside) else {
            if let Some(lookout) = &mut self.lookout {
                lookout.tell(clock::boot(), true, leading.guardian.knows_of_a_gate());
            }
            return;
        };
        let tenure = leading.hands.tenure.clone();
        self.depose("yields", &format!("yields to {to}: {why}"));
        self.jobs.begin(Job::GiveUp, async move {
            let given_up = lane::awaited(move || tenure.give_up()).await;
            Done::GaveUp(given_up.unwrap_or(Err(NotLeased::Unknown)))
        });
    }
}

/// Does a monitor with a quorum answer? The shortest question about the osdmap: without a quorum it waits.
fn is_answered(cluster: &Cluster) -> bool {
    cluster.mon_command(&json!({"prefix": "osd getmaxosd", "format": "json"})).is_ok()
}
