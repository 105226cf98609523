//! Performs the steps of fences and releases, for verbs and for the daemon alike.

use std::collections::BTreeSet;
use std::time::Duration;

use rbd_guardian_core::fence::releasing;
use rbd_guardian_core::fence::sealing::{self, Sent};
use rbd_guardian_core::model::addr::{ClientAddr, Entry};
use rbd_guardian_core::model::barrier::{PoolProof, PoolToProve};
use rbd_guardian_core::model::ceph_snapshot::Daemon;
use rbd_guardian_core::model::osdmap::{Guarded, OsdMap};

use super::barrier::{Probes, barrier};
use super::blocklist::{self, EntryChange, change};
use super::command::CephReadError;
use super::{daemons, lane, look, osdmap};
use crate::ceph::rados::cluster::Cluster;
use crate::deadline::{Deadline, DeadlineError};
use rbd_guardian_core::model::epoch::OsdEpoch;

/// A connection and what fences on it go by.
#[derive(Debug, Clone)]
pub struct Storage {
    pub cluster: Cluster,
    /// The pools whose images are swept for clients.
    pub guarded: Guarded,
    /// How long a new entry stands.
    pub expire: Duration,
}

/// A step of a fence or of a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CephStep {
    /// Make a standby take over from this daemon.
    FailOver(Daemon),
    /// Read which daemons are active.
    ReadDaemons,
    /// Add entries.
    Add(Vec<Entry>),
    /// Remove entries.
    Remove(Vec<Entry>),
    /// Read the osdmap.
    ReadMap,
    /// Ask every PG of these pools, with an osdmap of this epoch or a later one.
    Barrier(Vec<PoolToProve>, OsdEpoch),
    /// Ask every monitor and every image for its clients.
    ReadClients,
}

/// What became of a step.
#[derive(Debug)]
pub enum CephOutcome {
    /// Of [`CephStep::FailOver`].
    FailedOver(Daemon, Sent),
    /// Of [`CephStep::ReadDaemons`].
    Daemons(Result<Vec<Daemon>, StepReadError>),
    /// Of [`CephStep::Add`].
    Added(Vec<(Entry, Sent)>),
    /// Of [`CephStep::Remove`].
    Removed(Vec<(Entry, Sent)>),
    /// Of [`CephStep::ReadMap`].
    Map(Result<OsdMap, StepReadError>),
    /// Of [`CephStep::Barrier`].
    Proved(Vec<PoolProof>),
    /// Of [`CephStep::ReadClients`]: those seen, and what could not be read, in words. A client that only an unread source
    /// knows must not be forgotten.
    Clients(Result<(BTreeSet<ClientAddr>, Vec<String>), StepReadError>),
}

/// Why something was not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepReadError {
    /// No answer before the deadline.
    #[error(transparent)]
    Late(#[from] DeadlineError),
    /// Another answer than was expected, or librados' own time-out.
    #[error(transparent)]
    Read(#[from] CephReadError),
}

impl From<sealing::SealingEffect> for CephStep {
    fn from(effect: sealing::SealingEffect) -> Self {
        match effect {
            sealing::SealingEffect::FailOver(daemon) => Self::FailOver(daemon),
            sealing::SealingEffect::ReadDaemons => Self::ReadDaemons,
            sealing::SealingEffect::Add(entries) => Self::Add(entries),
            sealing::SealingEffect::Remove(entries) => Self::Remove(entries),
            sealing::SealingEffect::ReadMap => Self::ReadMap,
            sealing::SealingEffect::Barrier { pools, epoch } => Self::Barrier(pools, epoch),
        }
    }
}

impl From<releasing::ReleasingEffect> for CephStep {
    fn from(effect: releasing::ReleasingEffect) -> Self {
        match effect {
            releasing::ReleasingEffect::ReadMap => Self::ReadMap,
            releasing::ReleasingEffect::ReadClients => Self::ReadClients,
            releasing::ReleasingEffect::Add(entries) => Self::Add(entries),
            releasing::ReleasingEffect::Remove(entries) => Self::Remove(entries),
        }
    }
}

impl Storage {
    /// Performs a step; blocks no longer than to the deadline. `progress` is told now and then what a barrier misses.
    pub fn perform(
        &self,
        step: CephStep,
        names: &mut Probes,
        deadline: &Deadline,
        progress: &mut dyn FnMut(&[PoolProof]),
    ) -> CephOutcome {
        match step {
            CephStep::FailOver(daemon) => {
                let sent = self.fail_over(&daemon, deadline);
                CephOutcome::FailedOver(daemon, sent)
            }
            CephStep::ReadDaemons => {
                CephOutcome::Daemons(self.read(deadline, |cluster| {
                    Ok(daemons::mgrs(cluster)?.and(daemons::mdss(cluster)?).daemons)
                }))
            }
            CephStep::Add(entries) => {
                let seconds = self.expire.as_secs_f64();
                CephOutcome::Added(change(&self.cluster, &entries, EntryChange::Add { seconds }, deadline))
            }
            CephStep::Remove(entries) => {
                CephOutcome::Removed(change(&self.cluster, &entries, EntryChange::Remove, deadline))
            }
            CephStep::ReadMap => {
                CephOutcome::Map(self.read(deadline, |cluster| Ok(osdmap::dump(cluster)?.map)))
            }
            CephStep::Barrier(pools, epoch) => {
                CephOutcome::Proved(barrier(&self.cluster, &pools, epoch, names, deadline, progress))
            }
            CephStep::ReadClients => CephOutcome::Clients(self.clients(deadline)),
        }
    }

    /// Runs blocking reads on a thread of their own, so that the deadline counts.
    ///
    /// # Errors
    /// See [`StepReadError`].
    pub fn read<T, F>(&self, deadline: &Deadline, read: F) -> Result<T, StepReadError>
    where
        T: Send + 'static,
        F: FnOnce(&Cluster) -> Result<T, CephReadError> + Send + 'static,
    {
        let cluster = self.cluster.clone();
        Ok(lane::one(move || read(&cluster), deadline)??)
    }

    fn fail_over(&self, daemon: &Daemon, deadline: &Deadline) -> Sent {
        let command = format!("{} fail", daemon.kind);
        let (cluster, daemon) = (self.cluster.clone(), daemon.clone());
        match lane::one(move || daemons::fail_over(&cluster, &daemon), deadline) {
            Ok(Ok(())) => Sent::Acknowledged,
            Ok(Err(error)) => blocklist::sent(&error, &command),
            Err(_) => Sent::Unknown,
        }
    }

    fn clients(&self, deadline: &Deadline) -> Result<(BTreeSet<ClientAddr>, Vec<String>), StepReadError> {
        let guarded = self.guarded.clone();
        let within = deadline.clone();
        self.read(deadline, move |cluster| {
            let (map, mons) = (osdmap::dump(cluster)?.map, daemons::mons(cluster)?);
            let found = look::clients(cluster, &mons, &guarded.pools(&map), &within);
            // A user that is there and was not understood has no address that an entry could name: nothing waits for it.
            Ok((found.clients.into_keys().collect(), found.unread))
        })
    }
}
