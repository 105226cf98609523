//! Why the ledger cannot be opened, read, written or led.

use nix::errno::Errno;
use rbd_guardian_core::model::record::Leader;

use super::codec::{NAMESPACE, OBJECT};
use crate::ceph::command::CephReadError;
use crate::ceph::rados::errno::words;
use crate::deadline::DeadlineError;

/// Why there is no ledger.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerOpenError {
    /// No such pool.
    #[error(
        "no pool '{pool}' for the ledger: create it ({}) or name another one as ledger.pool",
        create(pool)
    )]
    NoPool { pool: String },
    /// It cannot hold omaps.
    #[error(
        "pool '{pool}' is erasure-coded, which cannot hold the ledger: name a replicated pool as ledger.pool, or \
         create one ({})",
        create("NAME")
    )]
    ErasureCoded { pool: String },
    /// A single failing disk would destroy the ledger.
    #[error(
        "pool '{pool}' keeps {size} copy: the ledger needs 2 or more (`ceph osd pool set {pool} size 3`)"
    )]
    OneCopy {
        pool: String,
        /// Copies.
        size: u32,
    },
    /// The osdmap could not be read.
    #[error(transparent)]
    Unread(#[from] CephReadError),
    /// It took too long.
    #[error("{0} before the pool of the ledger was found: do the monitors have a quorum?")]
    Late(#[from] DeadlineError),
    /// This client cannot use the pool.
    #[error("cannot open pool '{pool}': {}", words(*errno))]
    Unusable {
        pool: String,
        /// What librados said.
        errno: Errno,
    },
}

impl LedgerOpenError {
    /// May it be otherwise later, without anybody doing anything?
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Late(_) | Self::Unusable { .. } => true,
            Self::Unread(error) => error.is_transient(),
            Self::NoPool { .. } | Self::ErasureCoded { .. } | Self::OneCopy { .. } => false,
        }
    }
}

/// The commands that make a pool for the ledger: one object needs one PG.
fn create(pool: &str) -> String {
    format!(
        "`ceph osd pool create {pool} 1 1 replicated`, `ceph osd pool set {pool} size 3`, \
         `ceph osd pool set {pool} min_size 2`, `ceph osd pool application enable {pool} rbd-guardian`"
    )
}

/// Why the ledger could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerReadError {
    /// The key does not allow it.
    #[error("the key may not read the ledger: it lacks {} (deploy/ceph)", cap(pool))]
    Denied { pool: String },
    /// The client is refused itself.
    #[error("cannot read the ledger in pool '{pool}': {}", crate::ceph::rados::errno::BLOCKLISTED)]
    Blocklisted { pool: String },
    /// No answer in time.
    #[error("{late} before the ledger's PG in pool '{pool}' answered: are its OSDs up?")]
    Silent {
        pool: String,
        /// Which end came.
        late: DeadlineError,
    },
    /// No guardian wrote so much.
    #[error(
        "the ledger in pool '{pool}' has more than {} MiB, which no guardian wrote: see which keys do not belong there \
         (`rados -p {pool} -N {NAMESPACE} listomapkeys {OBJECT}`), remove each (`rados … rmomapkey {OBJECT} KEY`), and \
         see who may write there (`ceph auth ls`)",
        limit >> 20
    )]
    TooLarge {
        pool: String,
        /// Bytes.
        limit: usize,
    },
    #[error("cannot read the ledger in pool '{pool}': {errno}")]
    Failed {
        pool: String,
        /// What the OSD said.
        errno: Errno,
    },
}

/// Why nothing was written, or why that is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerWriteError {
    /// Another guardian leads now: stop acting.
    #[error("{} leads now: nothing was written", by.as_ref().map_or_else(|| "nobody".to_owned(), |by| format!("{} on {} (epoch {})", by.guardian, by.host, by.epoch)))]
    Deposed {
        /// Who; nobody if the ledger is gone.
        by: Option<Leader>,
    },
    /// A record is not what was read: decide again on the snapshot, which is fresh now.
    #[error("'{key}' was changed meanwhile: nothing was written")]
    Conflict { key: String },
    /// A newer guardian wrote the ledger.
    #[error(
        "the ledger has form {found} and this guardian knows {known}: nothing was written; update this guardian"
    )]
    NewerLedger {
        /// The newest form there.
        found: u32,
        /// The newest form known here.
        known: u32,
    },
    /// What is there is not understood, and is not written over.
    #[error("'{key}' in the ledger is damaged ({why}): nothing was written; see `rbd-guardian ledger show`")]
    Damaged { key: String, why: String },
    /// The key does not allow it.
    #[error("the key may not write the ledger: it lacks {} (deploy/ceph)", cap(pool))]
    Denied { pool: String },
    /// The OSD said no: surely not done.
    #[error("the ledger's OSD refused to write: {why}")]
    Refused {
        /// In its words.
        why: String,
    },
    /// No answer: it may have been done, or may be done yet. Read, before anything is decided (INV-9).
    #[error("no answer from the ledger's PG: whether it was written is unknown")]
    Unknown,
}

/// Why there is no lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// Another guardian holds it, or held it a moment ago.
    #[error("another guardian holds the lease")]
    Held,
    /// It was this guardian's and ended before it was renewed.
    #[error("the lease ended before it was renewed")]
    Lost,
    /// The key does not allow it.
    #[error("the key may not take the lease: it lacks {} (deploy/ceph)", cap(pool))]
    Denied { pool: String },
    /// The OSD said no.
    #[error("the ledger's OSD refused the lease: {why}")]
    Refused {
        /// In its words.
        why: String,
    },
    /// No answer: it may be held. It ends by itself; asked for again under the same cookie it is given.
    #[error("no answer from the ledger's PG: whether the lease is held is unknown")]
    Unknown,
}

/// The osd capability that the ledger needs.
pub(super) fn cap(pool: &str) -> String {
    format!("osd `allow rwx pool={pool} namespace={NAMESPACE}`")
}
