//! The steps of a fence and of its release, and what becomes of each: the one vocabulary for those who decide (the
//! machines, the guardian) and for those who perform (the daemon, a verb that runs alone).

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};

use crate::model::addr::{ClientAddr, Entry};
use crate::model::barrier::{PoolProof, PoolToProve};
use crate::model::ceph_snapshot::Daemon;
use crate::model::epoch::OsdEpoch;
use crate::model::osdmap::OsdMap;

/// Something for the shell to perform. Of one machine, one is outstanding at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Make a standby take over from this daemon.
    FailOver(Daemon),
    /// Read which daemons are active now. Asked again until it is settled: pace it.
    ReadDaemons,
    /// Add entries, all at the same time, so that one proposal of the monitors commits them.
    Add(Vec<Entry>),
    Remove(Vec<Entry>),
    /// Read an osdmap that is at least as new as everything answered so far.
    ReadMap,
    /// Ask every PG of these pools with an operation that carries this epoch or a later one. What a PG answered to such an
    /// operation counts whenever it was asked: its map only moves forward.
    Barrier {
        pools: Vec<PoolToProve>,
        /// The epoch in which the entries were read back, held without interruption since. 0 in older recordings, whose
        /// shell asked with the newest.
        #[serde(default)]
        epoch: OsdEpoch,
    },
    /// Ask every monitor for its sessions, and every image for its watchers and lock owner.
    ReadClients,
}

/// What became of one command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sent {
    /// The monitors said it is done.
    Acknowledged,
    /// The monitors said no, in these words.
    Refused(String),
    /// No answer in time: it may or may not have been done, or may be done yet.
    Unknown,
}

/// What became of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepOutcome {
    /// Of [`Step::FailOver`].
    FailedOver(Daemon, Sent),
    /// Of [`Step::ReadDaemons`]; `None` if they could not be read.
    Daemons(Option<Vec<Daemon>>),
    /// Of [`Step::Add`].
    Added(Vec<(Entry, Sent)>),
    /// Of [`Step::Remove`].
    Removed(Vec<(Entry, Sent)>),
    /// Of [`Step::ReadMap`]; `None` if it could not be read.
    Map(Option<Arc<OsdMap>>),
    /// Of [`Step::Barrier`].
    Proved(Vec<PoolProof>),
    /// Of [`Step::ReadClients`]; `None` if they could not be read, and nobody says why.
    Clients(Option<BTreeSet<ClientAddr>>),
    /// Of [`Step::ReadClients`]: the sources that could not be read, in words. A client that only an unread source knows
    /// must not be forgotten, so that the clients of the others do not count.
    Unread(Vec<String>),
}

/// A fence on its way to the seal, or to the release.
pub trait StepMachine {
    /// What to do next; `None` while a step is outstanding and when there is nothing left to do.
    fn next_step(&mut self) -> Option<Step>;

    /// Takes in what became of the last step.
    fn handle(&mut self, outcome: StepOutcome);

    fn is_done(&self) -> bool;
}

impl Step {
    /// As tests and logs name it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::FailOver(_) => "fail-over",
            Self::ReadDaemons => "read-daemons",
            Self::Add(_) => "add",
            Self::Remove(_) => "rm",
            Self::ReadMap => "read-map",
            Self::Barrier { .. } => "barrier",
            Self::ReadClients => "read-clients",
        }
    }

    /// Entries that it removes.
    pub fn removals(&self) -> &[Entry] {
        if let Self::Remove(entries) = self { entries } else { &[] }
    }

    /// Does it change the storage?
    pub fn changes_storage(&self) -> bool {
        self.changes_entries() || matches!(self, Self::FailOver(_))
    }

    /// Does it change the blocklist?
    pub fn changes_entries(&self) -> bool {
        matches!(self, Self::Add(_) | Self::Remove(_))
    }

    /// What is known of a step that nobody answered: whether anything was done is unknown (INV-9).
    pub fn unanswered(self, why: &str) -> StepOutcome {
        let unknown = |entries: Vec<Entry>| entries.into_iter().map(|entry| (entry, Sent::Unknown)).collect();
        match self {
            Self::FailOver(daemon) => StepOutcome::FailedOver(daemon, Sent::Unknown),
            Self::ReadDaemons => StepOutcome::Daemons(None),
            Self::Add(entries) => StepOutcome::Added(unknown(entries)),
            Self::Remove(entries) => StepOutcome::Removed(unknown(entries)),
            Self::ReadMap => StepOutcome::Map(None),
            Self::Barrier { pools, .. } => {
                let silent = |pool: PoolToProve| PoolProof {
                    pending: (0..pool.pg_num).collect(),
                    trouble: Some(why.to_owned()),
                    pool,
                };
                StepOutcome::Proved(pools.into_iter().map(silent).collect())
            }
            Self::ReadClients => StepOutcome::Unread(vec![why.to_owned()]),
        }
    }
}

impl StepOutcome {
    /// Is anything of it unknown, refused or missing?
    pub fn has_failed(&self) -> bool {
        let unsure = |sent: &[(Entry, Sent)]| sent.iter().any(|(_, sent)| *sent != Sent::Acknowledged);
        match self {
            Self::FailedOver(_, sent) => *sent != Sent::Acknowledged,
            Self::Daemons(daemons) => daemons.is_none(),
            Self::Added(sent) | Self::Removed(sent) => unsure(sent),
            Self::Map(map) => map.is_none(),
            Self::Proved(proofs) => !proofs.iter().all(PoolProof::is_complete),
            Self::Clients(clients) => clients.is_none(),
            Self::Unread(_) => true,
        }
    }

    /// Would the machine ask the same again at once? Then the next step is to be paced.
    pub fn is_asked_again(&self) -> bool {
        match self {
            // Until a standby is active.
            Self::Daemons(_) => true,
            Self::Map(_) | Self::Proved(_) | Self::Clients(_) | Self::Unread(_) => self.has_failed(),
            // The map tells what came of it.
            Self::FailedOver(..) | Self::Added(_) | Self::Removed(_) => false,
        }
    }
}

impl Sent {
    pub(super) fn refused(self) -> Option<String> {
        match self {
            Self::Refused(status) => Some(status),
            Self::Acknowledged | Self::Unknown => None,
        }
    }
}

/// Reads also what recordings of before hold, where a step said on which way it is, and before that also whose it is.
pub(super) fn earlier<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Step>, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum OnItsWay {
        Fence(Step),
        Release(Step),
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum WithId {
        Fence(IgnoredAny, Step),
        Release(IgnoredAny, Step),
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Step(Step),
        OnItsWay(OnItsWay),
        WithId(WithId),
    }
    Ok(Option::<Either>::deserialize(deserializer)?.map(|read| match read {
        Either::Step(step)
        | Either::OnItsWay(OnItsWay::Fence(step) | OnItsWay::Release(step))
        | Either::WithId(WithId::Fence(_, step) | WithId::Release(_, step)) => step,
    }))
}
