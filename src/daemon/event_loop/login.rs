//! Replaces the connection to Ceph where a new log-in shows that another one is needed.

use std::time::Duration;

use rbd_guardian_core::guardian::report::Level;
use rbd_guardian_core::rules::leader_fitness::Unfit;

use crate::ceph::lane;
use crate::ceph::rados::cluster::Cluster;
use crate::ceph::rados::error::ConnectError;
use crate::clock;
use crate::daemon::event_loop::{EventLoop, Job, JobResult, LeadStage};
use crate::daemon::log;

impl EventLoop {
    fn is_deaf(&self, now: Duration) -> bool {
        self.election.as_ref().and_then(|election| election.unfit(now)) == Some(Unfit::Deaf)
    }

    /// Looks at the keyring, and begins a log-in when one is due or the keyring changed.
    pub(super) fn log_in_afresh(&mut self, now: Duration) {
        if self.single_request || self.cluster.is_none() || !self.replaced.has_room() {
            return;
        }
        let deaf = self.is_deaf(now);
        let Some(attempt) = self.login.begin(now, deaf) else { return };
        let options = self.origin.ceph.clone();
        self.jobs.begin(Job::LogIn, async move {
            let (key, login) = attempt.run(options).await;
            JobResult::LoggedIn(key, login)
        });
    }

    /// A log-in ended. A connection that the monitors do not answer any more, or that was made with another key, is replaced.
    pub(super) fn logged_in(&mut self, key: Option<u64>, login: Option<Result<Cluster, ConnectError>>) {
        let Some((fresh, changed)) = self.login.ended(key, login) else { return };
        self.figures.borrow_mut().logged_in = Some(clock::wall());
        if self.cluster.is_none() || !(changed || self.is_deaf(clock::boot())) || !self.replaced.has_room() {
            self.let_go(fresh);
            return;
        }
        self.login.replaced(key);
        let why = if changed {
            "the keyring holds a different key: switching to a new connection to Ceph"
        } else {
            "no monitor answers on this connection to Ceph, but one answered on a new connection: switching to the new connection"
        };
        if let LeadStage::Leading(leading) = &self.stage {
            let held_lead = leading.executor.held_lead.clone();
            self.depose("reconnects", why);
            self.give_up(held_lead);
        } else {
            log::line(Level::Info, "reconnects", None, why);
        }
        self.waiting = None;
        let old = self.cluster.replace(fresh);
        self.retry_at = Some(clock::boot() + self.pace());
        self.replace(old);
    }

    /// The connection that was used goes, once the last call on it has ended, and the ledger over it.
    pub(super) fn replace(&mut self, old: Option<Cluster>) {
        if let Some(old) = &old {
            self.replaced.note(old.life());
        }
        let ledger = self.ledger.take();
        self.let_go((ledger, old));
    }

    /// Disconnecting may block.
    pub(super) fn let_go<T: Send + 'static>(&mut self, old: T) {
        self.jobs.begin(Job::Disconnect, async move {
            lane::awaited(move || drop(old)).await;
            JobResult::Disconnected
        });
    }
}
