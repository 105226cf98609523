//! Whether the key still opens the cluster. A connection that stands goes on with a key that was replaced, until it breaks, and
//! cannot ask single monitors any more, which a release needs. So the keyring is looked at, and a fresh log-in is tried regularly.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::sync::Weak;
use std::time::Duration;

use rbd_guardian_core::guardian::report::Level;
use rbd_guardian_core::rules::leader_fitness::Unfit;

use crate::ceph::lane;
use crate::ceph::rados::cluster::{Cluster, DEFAULT_ID, Options};
use crate::ceph::rados::error::ConnectError;
use crate::clock;
use crate::daemon::election::ElectionWatch;
use crate::daemon::event_loop::{EventLoop, Job, JobResult, LeadStage};
use crate::daemon::log;
use crate::ledger::LeaseError;

/// Between two looks at the keyring.
const LOOK: Duration = Duration::from_secs(5);
/// Between two log-ins where it did not change.
const EVERY: Duration = Duration::from_secs(60);
/// The same while no monitor answers the connection that is there.
const DEAF_EVERY: Duration = Duration::from_secs(10);

/// So many replaced connections live at most. Each may keep threads and sockets for itself and for its patient one, until the last
/// call on it ends.
const MOST_REPLACED: usize = 2;

/// Connections that were replaced and have not ended.
#[derive(Debug, Default)]
pub(super) struct Replaced(Vec<Weak<()>>);

impl Replaced {
    /// Another one may be replaced.
    pub(super) fn has_room(&self) -> bool {
        self.0.iter().filter(|life| life.strong_count() > 0).count() < MOST_REPLACED
    }

    fn note(&mut self, life: Weak<()>) {
        self.0.retain(|life| life.strong_count() > 0);
        self.0.push(life);
    }

    /// For `status`.
    pub(super) fn trouble(&self) -> Option<&'static str> {
        (!self.has_room()).then_some(FULL)
    }
}

const FULL: &str = "two replaced connections to Ceph have not ended: no other one is made until one of them has. If it stays so, restart the \
    service";

/// The fresh log-ins.
#[derive(Debug, Default)]
pub(super) struct Login {
    /// When the last one began, by the boot clock; before the first one, when the connection was made.
    last: Option<Duration>,
    /// When the keyring was looked at last.
    looked: Option<Duration>,
    under_way: bool,
    /// What was in the keyring when the connection was made; `None`: it was not looked at then.
    key: Option<u64>,
    /// Why the last one was refused, in words.
    trouble: Option<String>,
}

impl Login {
    /// For `status`.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }
}

impl EventLoop {
    fn is_deaf(&self, now: Duration) -> bool {
        self.election.as_ref().and_then(|election| ElectionWatch::unfit(election, now)) == Some(Unfit::Deaf)
    }

    /// A connection was made anew: with what is in the keyring now.
    pub(super) fn forget_login(&mut self) {
        self.login = Login { under_way: self.login.under_way, ..Login::default() };
    }

    /// Looks at the keyring, and begins a log-in when one is due or the keyring changed.
    pub(super) fn log_in_afresh(&mut self, now: Duration) {
        let deaf = self.is_deaf(now);
        let login = &mut self.login;
        let looked = login.looked.is_some_and(|looked| now.saturating_sub(looked) < LOOK);
        if self.single_request
            || self.cluster.is_none()
            || login.under_way
            || looked
            || !self.replaced.has_room()
        {
            return;
        }
        let last = *login.last.get_or_insert(now);
        let due = now.saturating_sub(last) >= if deaf { DEAF_EVERY } else { EVERY };
        (login.looked, login.under_way) = (Some(now), true);
        if due {
            login.last = Some(now);
        }
        let (before, options) = (login.key, self.origin.ceph.clone());
        self.jobs.begin(Job::LogIn, async move {
            let looked = lane::awaited(move || {
                let key = hash(&options);
                let changed = before.is_some_and(|before| before != key);
                (key, (due || changed).then(|| Cluster::connect(&options)))
            });
            let (key, login) = looked.await.unzip();
            JobResult::LoggedIn(key, login.flatten())
        });
    }

    /// It ended. A connection that the monitors do not answer any more, or that was made with another key, is replaced.
    pub(super) fn logged_in(&mut self, key: Option<u64>, login: Option<Result<Cluster, ConnectError>>) {
        self.login.under_way = false;
        self.login.key = self.login.key.or(key);
        let fresh = match login {
            Some(Ok(fresh)) => fresh,
            // That they do not answer is told elsewhere, and says nothing about the key.
            None | Some(Err(ConnectError::Unreachable { .. })) => return,
            Some(Err(error)) => {
                let why = format!(
                    "a new connection to Ceph would not be made: {error}. The one that stands goes on until it breaks; then \
                     this guardian can neither fence nor hold. If the key was replaced, write the new one into the keyring, and \
                     restart the service if systemd keeps a copy of it (LoadCredential=)"
                );
                if self.login.trouble.as_ref() != Some(&why) {
                    let few = matches!(error, ConnectError::TooFewFiles(_));
                    let code = if few { "few-descriptors" } else { "key-refused" };
                    log::line(Level::Error, code, None, &why);
                    self.login.trouble = Some(why);
                }
                return;
            }
        };
        if self.login.trouble.take().is_some() {
            log::line(Level::Info, "key-taken", None, "new connections to Ceph are made again");
        }
        let (changed, deaf) = (self.login.key != key, self.is_deaf(clock::boot()));
        if self.cluster.is_none() || !(changed || deaf) || !self.replaced.has_room() {
            self.let_go(fresh);
            return;
        }
        self.login.key = key;
        let why = if changed {
            "the keyring has another key: a new connection to Ceph is used"
        } else {
            "no monitor answers this connection to Ceph, and one answered a new one: the new one is used"
        };
        if let LeadStage::Leading(leading) = &self.stage {
            let held_lead = leading.executor.held_lead.clone();
            self.depose("reconnects", why);
            self.jobs.begin(Job::GiveUp, async move {
                let given_up = lane::awaited(move || held_lead.give_up()).await;
                JobResult::GaveUp(given_up.unwrap_or(Err(LeaseError::Unknown)))
            });
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
    fn let_go<T: Send + 'static>(&mut self, old: T) {
        self.jobs.begin(Job::Disconnect, async move {
            lane::awaited(move || drop(old)).await;
            JobResult::Disconnected
        });
    }
}

/// What is in the keyring, in short; nothing of it is kept.
fn hash(options: &Options) -> u64 {
    let id = options.id.as_deref().unwrap_or(DEFAULT_ID);
    let usual = || PathBuf::from(format!("/etc/ceph/ceph.client.{id}.keyring"));
    let path = options.keyring.clone().unwrap_or_else(usual);
    let mut hasher = DefaultHasher::new();
    fs::read(path).unwrap_or_default().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn no_connection_is_replaced_while_two_that_were_have_not_ended() {
        let [first, second] = [(); 2].map(Arc::new);
        let mut replaced = Replaced::default();
        replaced.note(Arc::downgrade(&first));
        assert!(replaced.has_room());
        replaced.note(Arc::downgrade(&second));
        assert!(!replaced.has_room());
        assert!(replaced.trouble().is_some());
        drop(first);
        assert!(replaced.has_room());
        assert_eq!(replaced.trouble(), None);
    }
}
