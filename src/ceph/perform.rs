//! Performs the steps of fences and releases, for verbs and for the daemon alike.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rbd_guardian_core::fence::step::{Sent, Step, StepOutcome};
use rbd_guardian_core::model::addr::ClientAddr;
use rbd_guardian_core::model::barrier::PoolProof;
use rbd_guardian_core::model::ceph_snapshot::Daemon;
use rbd_guardian_core::model::osdmap::Guarded;

use super::barrier::{Probes, barrier};
use super::blocklist::{self, EntryChange, change};
use super::command::CephReadError;
use super::{daemons, lane, look, osdmap};
use crate::ceph::rados::cluster::Cluster;
use crate::deadline::{Deadline, DeadlineError};

/// A connection and what fences on it go by.
#[derive(Debug, Clone)]
pub struct Storage {
    pub cluster: Cluster,
    /// The pools whose images are swept for clients.
    pub guarded: Guarded,
    /// How long a new entry stands.
    pub expire: Duration,
}

/// What became of a step, and why, where something was not read.
#[derive(Debug)]
pub struct Performed {
    pub outcome: StepOutcome,
    pub error: Option<StepReadError>,
}

/// How long silent PGs are waited for before the map is read again: pools come and go, and entries must still stand.
pub const ROUND: Duration = Duration::from_secs(5);

/// Between two steps of which the second asks for the same as the first.
pub const PACE: Duration = Duration::from_millis(100);

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

fn performed<T>(
    step: Step,
    read: Result<T, StepReadError>,
    outcome: impl FnOnce(T) -> StepOutcome,
) -> Performed {
    match read {
        Ok(read) => Performed { outcome: outcome(read), error: None },
        Err(error) => Performed { outcome: step.unanswered(&error.to_string()), error: Some(error) },
    }
}

impl Storage {
    /// Performs a step; blocks no longer than to the deadline. `progress` is told now and then what a barrier misses.
    pub fn perform(
        &self,
        step: Step,
        names: &mut Probes,
        deadline: &Deadline,
        progress: &mut dyn FnMut(&[PoolProof]),
    ) -> Performed {
        let outcome = match step {
            Step::FailOver(daemon) => {
                let sent = self.fail_over(&daemon, deadline);
                StepOutcome::FailedOver(daemon, sent)
            }
            Step::Add(entries) => {
                let seconds = self.expire.as_secs_f64();
                StepOutcome::Added(change(&self.cluster, &entries, EntryChange::Add { seconds }, deadline))
            }
            Step::Remove(entries) => {
                StepOutcome::Removed(change(&self.cluster, &entries, EntryChange::Remove, deadline))
            }
            Step::Barrier { pools, epoch } => {
                StepOutcome::Proved(barrier(&self.cluster, &pools, epoch, names, deadline, progress))
            }
            Step::ReadDaemons => {
                let read = self.read(deadline, |cluster| {
                    Ok(daemons::mgrs(cluster)?.and(daemons::mdss(cluster)?).daemons)
                });
                return performed(step, read, |daemons| StepOutcome::Daemons(Some(daemons)));
            }
            Step::ReadMap => {
                let read = self.read(deadline, |cluster| Ok(osdmap::dump(cluster)?.map));
                return performed(step, read, |map| StepOutcome::Map(Some(Arc::new(map))));
            }
            Step::ReadClients => {
                return performed(step, self.clients(deadline), |(clients, unread)| {
                    if unread.is_empty() {
                        StepOutcome::Clients(Some(clients))
                    } else {
                        StepOutcome::Unread(unread)
                    }
                });
            }
        };
        Performed { outcome, error: None }
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
