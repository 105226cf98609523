//! The connection to Ceph, the ledger over it, and the log-ins that show whether another connection is needed.

use std::time::Duration;

use crate::ceph::rados::cluster::Cluster;
use crate::ceph::rados::error::ConnectError;
use crate::daemon::login::{Attempt, Login, Replaced};
use crate::ledger::Ledger;

#[derive(Default)]
pub(super) struct CephLink {
    cluster: Option<Cluster>,
    /// Over that connection. One that the monitors do not answer could not open it again, and its OSD may answer.
    ledger: Option<Ledger>,
    login: Login,
    /// Replaced connections that have not ended.
    replaced: Replaced,
}

/// A connection that is no longer used, and the ledger over it. To drop them may block.
pub(super) type OldLink = (Option<Ledger>, Option<Cluster>);

/// What a log-in showed about the connection in use.
pub(super) enum LoginEnd {
    /// It stays, and this one is of no use.
    Unused(Cluster),
    /// It is to be replaced by this one, and why.
    Better(Cluster, &'static str),
}

impl CephLink {
    /// A connection was made.
    pub(super) fn connected(&mut self, cluster: Cluster) {
        self.cluster = Some(cluster);
        self.login.forget();
    }

    pub(super) fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// Is this the connection in use?
    pub(super) fn uses(&self, other: Option<&Cluster>) -> bool {
        other.zip(self.cluster.as_ref()).is_some_and(|(other, used)| other.is(used))
    }

    pub(super) fn ledger(&self) -> Option<&Ledger> {
        self.ledger.as_ref()
    }

    pub(super) fn keep(&mut self, ledger: &Ledger) {
        self.ledger = Some(ledger.clone());
    }

    /// May the connection be replaced? Only few of those that were may still be there.
    pub(super) fn has_room(&self) -> bool {
        self.replaced.has_room()
    }

    /// For `status`.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.login.trouble().or_else(|| self.replaced.trouble())
    }

    /// A log-in that is due. `deaf`: no monitor answers over the connection in use.
    pub(super) fn begin_login(&mut self, now: Duration, deaf: bool) -> Option<Attempt> {
        if self.cluster.is_none() || !self.has_room() {
            return None;
        }
        self.login.begin(now, deaf)
    }

    /// A log-in ended; `None` where it made no connection.
    pub(super) fn logged_in(
        &mut self,
        key: Option<u64>,
        login: Option<Result<Cluster, ConnectError>>,
        deaf: bool,
    ) -> Option<LoginEnd> {
        let (fresh, changed) = self.login.ended(key, login)?;
        if self.cluster.is_none() || !(changed || deaf) || !self.has_room() {
            return Some(LoginEnd::Unused(fresh));
        }
        self.login.replaced(key);
        let why = if changed {
            "the keyring holds a different key: switching to a new connection to Ceph"
        } else {
            "no monitor answers on this connection to Ceph, but one answered on a new connection: switching to the new connection"
        };
        Some(LoginEnd::Better(fresh, why))
    }

    /// Uses another connection, or none. The one that was used ends with the last call on it.
    pub(super) fn replace(&mut self, fresh: Option<Cluster>) -> OldLink {
        let old = std::mem::replace(&mut self.cluster, fresh);
        if let Some(old) = &old {
            self.replaced.note(old.life());
        }
        (self.ledger.take(), old)
    }
}
