//! Replaces the connection to Ceph where a new log-in shows that another one is needed.

use std::time::Duration;

use rbd_guardian_core::guardian::report::Level;
use rbd_guardian_core::rules::leader_fitness::Unfit;

use crate::ceph::lane;
use crate::ceph::rados::cluster::Cluster;
use crate::ceph::rados::error::ConnectError;
use crate::clock;
use crate::daemon::event_loop::ceph_link::LoginEnd;
use crate::daemon::event_loop::{EventLoop, Job, JobResult, LeadStage};
use crate::daemon::log;

impl EventLoop {
    fn is_deaf(&self, now: Duration) -> bool {
        self.election.as_ref().and_then(|election| election.unfit(now)) == Some(Unfit::Deaf)
    }

    /// Looks at the keyring, and begins a log-in when one is due or the keyring changed.
    pub(super) fn log_in_afresh(&mut self, now: Duration) {
        if self.single_request {
            return;
        }
        let deaf = self.is_deaf(now);
        let Some(attempt) = self.ceph.begin_login(now, deaf) else { return };
        let options = self.origin.ceph.clone();
        self.jobs.begin(Job::LogIn, async move {
            let (key, login) = attempt.run(options).await;
            JobResult::LoggedIn(key, login)
        });
    }

    /// A log-in ended. A connection that the monitors do not answer any more, or that was made with another key, is replaced.
    pub(super) fn logged_in(&mut self, key: Option<u64>, login: Option<Result<Cluster, ConnectError>>) {
        let deaf = self.is_deaf(clock::boot());
        let Some(end) = self.ceph.logged_in(key, login, deaf) else { return };
        self.figures.borrow_mut().logged_in = Some(clock::wall());
        let (fresh, why) = match end {
            LoginEnd::Unused(fresh) => return self.let_go(fresh),
            LoginEnd::Better(fresh, why) => (fresh, why),
        };
        if let LeadStage::Leading(leading) = &self.stage {
            let held_lead = leading.executor.held_lead.clone();
            self.depose("reconnects", why);
            self.give_up(held_lead);
        } else {
            log::line(Level::Info, "reconnects", None, why);
        }
        self.candidacy.reconnected(clock::boot() + self.pace());
        let old = self.ceph.replace(Some(fresh));
        self.let_go(old);
    }

    /// Disconnecting may block.
    pub(super) fn let_go<T: Send + 'static>(&mut self, old: T) {
        self.jobs.begin(Job::Disconnect, async move {
            lane::awaited(move || drop(old)).await;
            JobResult::Disconnected
        });
    }
}
